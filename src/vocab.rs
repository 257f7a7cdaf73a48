//! A model's vocabulary: text to tokens and back.

use std::{ptr, slice};

use crate::error::Said;
use crate::token::Token;
use crate::{Error, Model, ffi, logging};

/// How [`Model::tokenize`] treats special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Specials {
    /// Reads special tokens as plain text, and adds no token.
    Plain,
    /// Reads special tokens as plain text, and adds a begin and an end token if the model wants them.
    #[default]
    Add,
    /// Parses special tokens in the text: for the output of a chat template.
    Parse,
    /// Parses special tokens, and adds a begin and an end token if the model wants them.
    AddAndParse,
}

impl Model {
    /// Number of tokens in the vocabulary, and length of [`Context::logits`](crate::Context::logits). 0 for a model without a vocabulary.
    pub fn n_vocab(&self) -> usize {
        // SAFETY: the vocabulary lives as long as the model.
        let n = unsafe { ffi::llama_vocab_n_tokens(self.vocab()) };
        usize::try_from(n).unwrap_or(0)
    }

    /// The token that begins a text. `None` if the model has no such token.
    pub fn bos(&self) -> Option<Token> {
        // SAFETY: as above.
        some(unsafe { ffi::llama_vocab_bos(self.vocab()) })
    }

    /// The token that ends a text. `None` if the model has no such token.
    pub fn eos(&self) -> Option<Token> {
        // SAFETY: as above.
        some(unsafe { ffi::llama_vocab_eos(self.vocab()) })
    }

    /// Whether this token ends an answer: end of text, end of turn and similar tokens.
    pub fn is_end(&self, token: Token) -> bool {
        // SAFETY: as above; the set of ends does not contain unknown tokens.
        unsafe { ffi::llama_vocab_is_eog(self.vocab(), token.0) }
    }

    /// Tokens that a sampler must never choose. Source: `tokenizer.ggml.suppress_tokens`.
    pub(crate) fn suppressed(&self) -> &[Token] {
        let mut n = 0;
        // SAFETY: as above; `n` outlives the call.
        let tokens = unsafe { ffi::llama_vocab_get_suppress_tokens(self.vocab(), &raw mut n) };
        match usize::try_from(n) {
            // SAFETY: `n` numbers in the vocabulary, which does not change; `Token` is a transparent type.
            Ok(n) if n > 0 && !tokens.is_null() => unsafe {
                slice::from_raw_parts(tokens.cast(), n)
            },
            _ => &[],
        }
    }

    /// Turns text into tokens.
    ///
    /// # Errors
    /// [`Error::NoVocabulary`], or [`Error::Tokenize`] for a text of more than 2 GiB or a text that the model's tokenizer cannot handle.
    ///
    /// ```no_run
    /// use llama_hugepages::{Model, ModelParams, Specials};
    ///
    /// let model = Model::load("model.gguf", &ModelParams::default().with_vocab_only(true))?;
    /// let tokens = model.tokenize("Hello", Specials::Plain)?;
    /// assert_eq!(model.detokenize(&tokens)?, b"Hello");
    /// # Ok::<(), llama_hugepages::Error>(())
    /// ```
    pub fn tokenize(&self, text: &str, specials: Specials) -> Result<Vec<Token>, Error> {
        self.check_vocabulary()?;
        let mut tokens = vec![Token(0); text.len() + 2];
        let mut n = self.tokenize_into(text, specials, &mut tokens)?;
        if n < 0 {
            // Room for a token for each byte and two more was not enough.
            tokens.resize(n.unsigned_abs() as usize, Token(0));
            n = self.tokenize_into(text, specials, &mut tokens)?;
        }
        tokens.truncate(usize::try_from(n).unwrap_or(0));
        Ok(tokens)
    }

    /// Returns the number of tokens; a negative number means too little room.
    fn tokenize_into(
        &self,
        text: &str,
        specials: Specials,
        tokens: &mut [Token],
    ) -> Result<i32, Error> {
        let said = |message: &str| {
            Error::Tokenize(Said {
                message: message.to_owned(),
                ..Said::default()
            })
        };
        let len = i32::try_from(text.len()).map_err(|_| said("the text is longer than 2 GiB"))?;
        let room = i32::try_from(tokens.len()).unwrap_or(i32::MAX);
        let (add, parse) = match specials {
            Specials::Plain => (false, false),
            Specials::Add => (true, false),
            Specials::Parse => (false, true),
            Specials::AddAndParse => (true, true),
        };
        let mut thrown = ffi::lh_error::default();
        let (n, lines) = logging::capture(|| {
            // SAFETY: `len` bytes of text and room for `room` tokens, which are numbers in a transparent type. llama.cpp
            // tokenizes from any number of threads. The shim throws nothing.
            unsafe {
                ffi::lh_tokenize(
                    self.vocab(),
                    text.as_ptr().cast(),
                    len,
                    tokens.as_mut_ptr().cast(),
                    room,
                    add,
                    parse,
                    &raw mut thrown,
                )
            }
        });
        if n == i32::MIN {
            return Err(Error::Tokenize(Said::new(lines, &thrown)));
        }
        logging::release(&lines);
        Ok(n)
    }

    /// The bytes of one token, which may be a part of a character. Special tokens are empty.
    ///
    /// # Errors
    /// [`Error::NoVocabulary`], [`Error::InvalidToken`]
    pub fn piece(&self, token: Token) -> Result<Vec<u8>, Error> {
        self.check_vocabulary()?;
        self.check_token(token)?;
        let mut bytes = vec![0_u8; 32];
        let mut n = self.piece_into(token, &mut bytes)?;
        if n < 0 {
            bytes.resize(n.unsigned_abs() as usize, 0);
            n = self.piece_into(token, &mut bytes)?;
        }
        bytes.truncate(usize::try_from(n).unwrap_or(0));
        Ok(bytes)
    }

    /// Returns the number of bytes; a negative number means too little room.
    fn piece_into(&self, token: Token, bytes: &mut [u8]) -> Result<i32, Error> {
        let mut thrown = ffi::lh_error::default();
        let room = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
        // SAFETY: the token is in the vocabulary, and `bytes` has `room` bytes. The shim throws nothing.
        let n = unsafe {
            ffi::lh_token_to_piece(
                self.vocab(),
                token.0,
                bytes.as_mut_ptr().cast(),
                room,
                &raw mut thrown,
            )
        };
        if n == i32::MIN {
            Err(Error::Tokenize(Said::new(Vec::new(), &thrown)))
        } else {
            Ok(n)
        }
    }

    /// The bytes of several tokens. A token of most vocabularies may be one byte, so the result may end inside a character.
    ///
    /// # Errors
    /// As [`piece`](Self::piece).
    pub fn detokenize(&self, tokens: &[Token]) -> Result<Vec<u8>, Error> {
        tokens.iter().try_fold(Vec::new(), |mut text, token| {
            text.extend(self.piece(*token)?);
            Ok(text)
        })
    }

    pub(crate) fn check_token(&self, token: Token) -> Result<(), Error> {
        let n_vocab = self.n_vocab();
        let known = usize::try_from(token.0).is_ok_and(|index| index < n_vocab);
        if known {
            Ok(())
        } else {
            Err(Error::InvalidToken { token, n_vocab })
        }
    }

    /// llama.cpp's tokenizer aborts the process if the model has no vocabulary.
    fn check_vocabulary(&self) -> Result<(), Error> {
        // SAFETY: the vocabulary lives as long as the model.
        let kind = unsafe { ffi::llama_vocab_type(self.vocab()) };
        if kind == ffi::LLAMA_VOCAB_TYPE_NONE {
            Err(Error::NoVocabulary)
        } else {
            Ok(())
        }
    }

    fn vocab(&self) -> *const ffi::llama_vocab {
        // SAFETY: the model is alive.
        let vocab = unsafe { ffi::llama_model_get_vocab(self.as_ptr()) };
        debug_assert_ne!(vocab, ptr::null());
        vocab
    }
}

fn some(token: i32) -> Option<Token> {
    (token != ffi::LLAMA_TOKEN_NULL).then_some(Token(token))
}
