//! A vocabulary in which every byte is a token, and eight special tokens.
//!
//! A BPE vocabulary of the GPT-2 family without merges: each text becomes its UTF-8 bytes, and these bytes become the same text.

use llama_hugepages::gguf::{Gguf, GgufError};

/// The tokens after the 256 bytes. Eight tokens, because kernels that repack weights need row counts in multiples of eight.
const SPECIAL: [&str; 8] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|pad|>",
    "<|unused0|>",
    "<|unused1|>",
    "<|unused2|>",
    "<|unused3|>",
];
const END_OF_TEXT: u32 = 256;
const IM_END: u32 = 258;
const PAD: u32 = 259;

/// Number of tokens.
pub(super) const SIZE: u64 = 256 + SPECIAL.len() as u64;

/// `ChatML`, without tools.
const CHAT_TEMPLATE: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Values of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// The purpose of the vocabulary.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Generation,
    /// Two special tokens frame every text, so that no text is empty.
    Embedding,
}

/// Writes the keys of the tokenizer.
pub(super) fn set(header: &mut Gguf, purpose: Use) -> Result<(), GgufError> {
    let tokens: Vec<String> = (0..=255)
        .map(|byte| byte_to_char(byte).into())
        .chain(SPECIAL.map(String::from))
        .collect();
    let types: Vec<i32> = (0..tokens.len())
        .map(|id| if id < 256 { NORMAL } else { CONTROL })
        .collect();
    header.set_str("tokenizer.ggml.model", "gpt2")?;
    // This pre-tokenizer keeps the spaces before punctuation when it joins tokens to text.
    header.set_str("tokenizer.ggml.pre", "qwen2")?;
    header.set_str_array("tokenizer.ggml.tokens", &tokens)?;
    header.set_i32_array("tokenizer.ggml.token_type", &types)?;
    header.set_str_array::<&str>("tokenizer.ggml.merges", &[])?;
    header.set_u32("tokenizer.ggml.bos_token_id", END_OF_TEXT)?;
    header.set_u32("tokenizer.ggml.eos_token_id", IM_END)?;
    header.set_u32("tokenizer.ggml.eot_token_id", IM_END)?;
    header.set_u32("tokenizer.ggml.padding_token_id", PAD)?;
    let framed = purpose == Use::Embedding;
    header.set_bool("tokenizer.ggml.add_bos_token", framed)?;
    header.set_bool("tokenizer.ggml.add_eos_token", framed)?;
    match purpose {
        Use::Generation => {
            // Random weights would soon end the text or break a UTF-8 sequence. Samplers skip these tokens, so that an answer is printable
            // and as long as requested.
            let unprintable: Vec<i32> = (0..SIZE as i32)
                .filter(|id| !(0x20..0x7f).contains(id))
                .collect();
            header.set_i32_array("tokenizer.ggml.suppress_tokens", &unprintable)?;
            header.set_str("tokenizer.chat_template", CHAT_TEMPLATE)
        }
        Use::Embedding => header.set_u32("tokenizer.ggml.token_type_count", 2),
    }
}

/// GPT-2's way to write a byte as a visible character: printable Latin-1 stands for itself, the others take U+0100 and up in turn.
fn byte_to_char(byte: u8) -> char {
    let stands_for_itself = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if stands_for_itself(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !stands_for_itself(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let all: std::collections::BTreeSet<_> = (0..=255).map(byte_to_char).collect();
        assert_eq!(all.len(), 256);
        // As in GPT-2's published vocabulary.
        assert_eq!(
            [b' ', b'\n', b'\t', b'a', 0x7f, 0xad].map(byte_to_char),
            ['Ġ', 'Ċ', 'ĉ', 'a', 'ġ', 'Ń']
        );
    }

    #[test]
    fn special_tokens_are_where_their_numbers_say() {
        assert_eq!(SPECIAL[(END_OF_TEXT - 256) as usize], "<|endoftext|>");
        assert_eq!(SPECIAL[(IM_END - 256) as usize], "<|im_end|>");
        assert_eq!(SPECIAL[(PAD - 256) as usize], "<|pad|>");
    }
}
