//! Small GGUF files that `hugepages demo-model` does not write: an adapter, and an architecture with a lazy tensor.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use llama_hugepages::gguf::{Gguf, TensorType};

/// Writes a header and pseudo-random F32 tensors. The same header gives the same bytes.
fn write(header: &Gguf, path: &Path) {
    let mut file = BufWriter::new(File::create(path).expect("the folder is the test's"));
    let head = header.header_bytes();
    file.write_all(&head).expect("the disk has space");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for tensor in header.tensors() {
        let start = head.len() as u64 + tensor.offset;
        file.seek(SeekFrom::Start(start)).expect("a file");
        let is_norm = tensor.name.contains("norm");
        for _ in 0..tensor.size / 4 {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let random = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
            let value = if is_norm { 1.0 } else { 0.05 * random };
            file.write_all(&value.to_le_bytes())
                .expect("the disk has space");
        }
    }
    // Tensors are padded, the last one too.
    let end = file.stream_position().expect("a file");
    let padding = end.next_multiple_of(32) - end;
    file.write_all(&vec![0; padding as usize])
        .expect("the disk has space");
    file.flush().expect("the disk has space");
}

/// An adapter for the attention and feed-forward weights of a model. Returns the bytes of its tensors.
pub fn lora(model: &Path, rank: u64, path: &Path) -> u64 {
    let model = Gguf::open(model).expect("a model");
    let mut header = Gguf::new().expect("the process has memory");
    for (key, value) in [
        ("general.type", "adapter"),
        (
            "general.architecture",
            &model.str("general.architecture").expect("a model"),
        ),
        ("adapter.type", "lora"),
    ] {
        header.set_str(key, value).expect("a key");
    }
    header.set_f32("adapter.lora.alpha", 8.0).expect("a key");
    let targets = ["attn_q.weight", "attn_output.weight", "ffn_up.weight"];
    for tensor in model.tensors() {
        if targets.iter().any(|target| tensor.name.ends_with(target)) {
            let [inputs, outputs, ..] = tensor.shape;
            let mut add = |end: &str, shape: [u64; 2]| {
                let name = format!("{}.lora_{end}", tensor.name);
                header
                    .add_tensor(&name, TensorType::F32, &shape)
                    .expect("a new name");
            };
            add("a", [inputs, rank]);
            add("b", [rank, outputs]);
        }
    }
    write(&header, path);
    header.tensors().map(|tensor| tensor.size).sum()
}

/// A control vector with a direction for each layer of a model but the first.
pub fn control_vector(model: &Path, path: &Path) {
    let model = Gguf::open(model).expect("a model");
    let arch = model.str("general.architecture").expect("a model");
    let number = |key: &str| model.u32(&format!("{arch}.{key}")).expect("a model");
    let mut header = Gguf::new().expect("the process has memory");
    header
        .set_str("general.architecture", "controlvector")
        .expect("a key");
    for layer in 1..number("block_count") {
        let shape = [u64::from(number("embedding_length"))];
        header
            .add_tensor(&format!("direction.{layer}"), TensorType::F32, &shape)
            .expect("a new name");
    }
    write(&header, path);
}

/// A vision encoder for a model. Its weights and its computation take several huge pages.
pub fn projector(model: &Path, path: &Path) {
    const WIDTH: u64 = 256;
    const INNER: u64 = 1024;
    const LAYERS: u32 = 4;
    const IMAGE: u32 = 256;
    const PATCH: u32 = 8;
    let width = Gguf::open(model)
        .ok()
        .and_then(|model| {
            let arch = model.str("general.architecture")?;
            model.u32(&format!("{arch}.embedding_length"))
        })
        .expect("a model with a width");

    let mut header = Gguf::new().expect("the process has memory");
    for (key, value) in [
        ("general.type", "mmproj"),
        ("general.architecture", "clip"),
        ("clip.projector_type", "gemma3"),
    ] {
        header.set_str(key, value).expect("a key");
    }
    for key in ["clip.has_vision_encoder", "clip.use_gelu"] {
        header.set_bool(key, true).expect("a key");
    }
    set_numbers(
        &mut header,
        "clip.vision",
        &[
            ("image_size", IMAGE),
            ("patch_size", PATCH),
            ("embedding_length", WIDTH as u32),
            ("feed_forward_length", INNER as u32),
            ("block_count", LAYERS),
            ("attention.head_count", 4),
            ("projection_dim", width),
            ("projector.scale_factor", 4),
        ],
    );
    header
        .set_f32("clip.vision.attention.layer_norm_epsilon", 1e-6)
        .expect("a key");
    for key in ["image_mean", "image_std"] {
        header
            .set_f32_array(&format!("clip.vision.{key}"), &[0.5; 3])
            .expect("a key");
    }
    let mut add = |name: &str, shape: &[u64]| {
        header
            .add_tensor(name, TensorType::F32, shape)
            .expect("a new name");
    };
    let side = u64::from(PATCH);
    add("v.patch_embd.weight", &[side, side, 3, WIDTH]);
    add("v.patch_embd.bias", &[WIDTH]);
    add(
        "v.position_embd.weight",
        &[WIDTH, u64::from(IMAGE / PATCH).pow(2)],
    );
    for layer in 0..LAYERS {
        let block = format!("v.blk.{layer}");
        for norm in ["ln1", "ln2"] {
            add(&format!("{block}.{norm}.weight"), &[WIDTH]);
            add(&format!("{block}.{norm}.bias"), &[WIDTH]);
        }
        for part in ["attn_q", "attn_k", "attn_v", "attn_out"] {
            add(&format!("{block}.{part}.weight"), &[WIDTH, WIDTH]);
            add(&format!("{block}.{part}.bias"), &[WIDTH]);
        }
        add(&format!("{block}.ffn_up.weight"), &[WIDTH, INNER]);
        add(&format!("{block}.ffn_up.bias"), &[INNER]);
        add(&format!("{block}.ffn_down.weight"), &[INNER, WIDTH]);
        add(&format!("{block}.ffn_down.bias"), &[WIDTH]);
    }
    for end in ["weight", "bias"] {
        add(&format!("v.post_ln.{end}"), &[WIDTH]);
    }
    add("mm.input_projection.weight", &[u64::from(width), WIDTH]);
    add("mm.soft_emb_norm.weight", &[WIDTH]);
    write(&header, path);
}

/// The tensor of `gemma4` that llama.cpp can read row by row.
pub const LAZY: &str = "per_layer_token_embd.weight";

/// A Gemma 4 of about 40 MB: it has per-layer embeddings, and a second KV cache for its sliding window.
pub fn gemma4(path: &Path) {
    const LAYERS: u32 = 6;
    const WIDTH: u64 = 256;
    const PER_LAYER: u64 = 1024;
    const INNER: u64 = 1024;
    const HEADS: u64 = 2;
    const HEAD: u64 = 64;

    let mut header = Gguf::new().expect("the process has memory");
    header
        .set_str("general.architecture", "gemma4")
        .expect("a key");
    set_numbers(
        &mut header,
        "gemma4",
        &[
            ("block_count", LAYERS),
            ("context_length", 4096),
            ("embedding_length", WIDTH as u32),
            ("embedding_length_per_layer_input", PER_LAYER as u32),
            ("feed_forward_length", INNER as u32),
            ("attention.head_count", HEADS as u32),
            ("attention.head_count_kv", HEADS as u32),
            ("attention.key_length", HEAD as u32),
            ("attention.value_length", HEAD as u32),
            ("attention.key_length_swa", HEAD as u32),
            ("attention.value_length_swa", HEAD as u32),
            ("attention.sliding_window", 128),
            ("attention.shared_kv_layers", 0),
            ("rope.dimension_count", HEAD as u32),
        ],
    );
    header
        .set_f32("gemma4.attention.layer_norm_rms_epsilon", 1e-6)
        .expect("a key");
    for key in ["rope.freq_base", "rope.freq_base_swa"] {
        header
            .set_f32(&format!("gemma4.{key}"), 10_000.0)
            .expect("a key");
    }
    // The last layer attends to everything.
    header
        .set_i32_array(
            "gemma4.attention.sliding_window_pattern",
            &[1, 1, 1, 1, 1, 0],
        )
        .expect("a key");
    let vocabulary = set_vocabulary(&mut header);

    let mut add = |name: &str, shape: &[u64]| {
        header
            .add_tensor(name, TensorType::F32, shape)
            .expect("a new name");
    };
    add("token_embd.weight", &[WIDTH, vocabulary]);
    add(LAZY, &[PER_LAYER * u64::from(LAYERS), vocabulary]);
    add(
        "per_layer_model_proj.weight",
        &[WIDTH, PER_LAYER * u64::from(LAYERS)],
    );
    add("per_layer_proj_norm.weight", &[PER_LAYER]);
    add("output_norm.weight", &[WIDTH]);
    add("rope_freqs.weight", &[HEAD / 2]);
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[u64]| {
            add(&format!("blk.{layer}.{name}.weight"), shape);
        };
        for norm in [
            "attn_norm",
            "post_attention_norm",
            "ffn_norm",
            "post_ffw_norm",
            "post_norm",
        ] {
            add(norm, &[WIDTH]);
        }
        for norm in ["attn_q_norm", "attn_k_norm"] {
            add(norm, &[HEAD]);
        }
        for weight in ["attn_q", "attn_k", "attn_v"] {
            add(weight, &[WIDTH, HEADS * HEAD]);
        }
        add("attn_output", &[HEADS * HEAD, WIDTH]);
        add("ffn_gate", &[WIDTH, INNER]);
        add("ffn_up", &[WIDTH, INNER]);
        add("ffn_down", &[INNER, WIDTH]);
        add("inp_gate", &[WIDTH, PER_LAYER]);
        add("proj", &[PER_LAYER, WIDTH]);
    }
    write(&header, path);
}

/// A model of the architecture `mimo2` of about 40 MB, without experts. Its last block predicts the token after the next (MTP).
pub fn mimo2(path: &Path) {
    const LAYERS: u32 = 5;
    const WIDTH: u64 = 512;
    const INNER: u64 = 1024;
    const HEADS: u64 = 8;
    const HEAD: u64 = 64;

    let mut header = Gguf::new().expect("the process has memory");
    header
        .set_str("general.architecture", "mimo2")
        .expect("a key");
    set_numbers(
        &mut header,
        "mimo2",
        &[
            ("block_count", LAYERS),
            ("nextn_predict_layers", 1),
            ("context_length", 4096),
            ("embedding_length", WIDTH as u32),
            ("feed_forward_length", INNER as u32),
            ("expert_feed_forward_length", INNER as u32),
            ("attention.head_count", HEADS as u32),
            ("attention.head_count_kv", HEADS as u32),
            ("attention.key_length", HEAD as u32),
            ("attention.value_length", HEAD as u32),
            ("attention.sliding_window", 128),
            ("rope.dimension_count", HEAD as u32),
        ],
    );
    header
        .set_f32("mimo2.attention.layer_norm_rms_epsilon", 1e-6)
        .expect("a key");
    header
        .set_f32("mimo2.rope.freq_base", 10_000.0)
        .expect("a key");
    header
        .set_i32_array("mimo2.attention.sliding_window_pattern", &[1, 1, 1, 0, 1])
        .expect("a key");
    let vocabulary = set_vocabulary(&mut header);

    let mut add = |name: &str, shape: &[u64]| {
        header
            .add_tensor(&format!("{name}.weight"), TensorType::F32, shape)
            .expect("a new name");
    };
    add("token_embd", &[WIDTH, vocabulary]);
    add("output_norm", &[WIDTH]);
    add("output", &[WIDTH, vocabulary]);
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[u64]| add(&format!("blk.{layer}.{name}"), shape);
        for norm in ["attn_norm", "ffn_norm"] {
            add(norm, &[WIDTH]);
        }
        add("attn_qkv", &[WIDTH, 3 * HEADS * HEAD]);
        add("attn_output", &[HEADS * HEAD, WIDTH]);
        add("ffn_gate", &[WIDTH, INNER]);
        add("ffn_up", &[WIDTH, INNER]);
        add("ffn_down", &[INNER, WIDTH]);
        if layer == LAYERS - 1 {
            add("nextn.eh_proj", &[2 * WIDTH, WIDTH]);
            for norm in ["nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm"] {
                add(norm, &[WIDTH]);
            }
        }
    }
    write(&header, path);
}

/// Sets numbers whose keys start with the same words.
fn set_numbers(header: &mut Gguf, start: &str, numbers: &[(&str, u32)]) {
    for (key, value) in numbers {
        header
            .set_u32(&format!("{start}.{key}"), *value)
            .expect("a key");
    }
}

/// Sets one token for each byte, as GPT-2 does, and an end token. Returns the number of tokens.
fn set_vocabulary(header: &mut Gguf) -> u64 {
    let is_visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    let mut tokens: Vec<String> = (0..=255)
        .map(|byte| {
            let code = if is_visible(byte) {
                u32::from(byte)
            } else {
                others.next().expect("more than 256")
            };
            char::from_u32(code).expect("a letter").to_string()
        })
        .collect();
    tokens.push("<|end|>".to_owned());
    // Some compute kernels want a multiple of 32.
    while !tokens.len().is_multiple_of(32) {
        tokens.push(format!("<|unused{}|>", tokens.len()));
    }
    let types: Vec<i32> = (0..tokens.len())
        .map(|id| if id < 256 { 1 } else { 3 })
        .collect();
    let count = tokens.len() as u64;
    header
        .set_str("tokenizer.ggml.model", "gpt2")
        .and_then(|()| header.set_str("tokenizer.ggml.pre", "qwen2"))
        .and_then(|()| header.set_str_array("tokenizer.ggml.tokens", &tokens))
        .and_then(|()| header.set_i32_array("tokenizer.ggml.token_type", &types))
        .and_then(|()| header.set_str_array::<&str>("tokenizer.ggml.merges", &[]))
        .and_then(|()| header.set_u32("tokenizer.ggml.eos_token_id", 256))
        .and_then(|()| header.set_bool("tokenizer.ggml.add_bos_token", false))
        .expect("keys");
    count
}
