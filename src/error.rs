//! Errors of this library, with their data.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::path::PathBuf;

use crate::ffi;
use crate::page_size::HugePageSize;
use crate::token::Token;

/// Why a call failed.
///
/// The text is a lower-case fragment without a final stop. If the user has a remedy, a second line starts with `hint:`.
///
/// ```
/// use llama_hugepages::{Error, Model, ModelParams};
///
/// let error = Model::load("/no/such/model.gguf", &ModelParams::default()).unwrap_err();
/// assert!(matches!(error, Error::Load { .. }));
/// assert!(error.to_string().starts_with("cannot load `/no/such/model.gguf`: "));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model was not loaded. No huge page is kept.
    #[error("cannot load `{}`: {said}", path.display())]
    Load {
        /// The requested file.
        path: PathBuf,
        /// The cause and the hint from the loader.
        said: Said,
    },
    /// The progress callback stopped the load. No huge page is kept.
    #[error("the load was cancelled")]
    Cancelled,
    /// An environment variable has a value that llama.cpp does not accept.
    #[error("cannot use the environment variable `{variable}`: {reason}")]
    Environment {
        /// Its name, such as `LLAMA_ARG_HUGEPAGES`.
        variable: String,
        /// The message of llama.cpp about its value.
        reason: String,
    },
    /// A text for llama.cpp contains a zero byte, so it is no C string.
    #[error("{what} contains a zero byte")]
    ZeroByte {
        /// Kind of the text.
        what: &'static str,
    },
    /// The path of the store is too long.
    #[error("the path of the store is too long: {len} bytes, limit {max}")]
    LongStorePath {
        /// Length of the path.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The model was loaded without weights: it can only tokenize.
    #[error("the model was loaded without weights")]
    NoWeights,
    /// The context was not created.
    #[error("cannot create a context: {0}")]
    Context(Said),
    /// The model file has no vocabulary.
    #[error("the model has no vocabulary")]
    NoVocabulary,
    /// The text cannot be turned into tokens.
    #[error("cannot tokenize: {0}")]
    Tokenize(Said),
    /// The vocabulary has no such token.
    #[error("token {token} is not in the vocabulary of {n_vocab} tokens")]
    InvalidToken {
        /// The token.
        token: Token,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// The batch contains a sequence that the context does not have.
    #[error("sequence {sequence} is out of range: the context has {n_seq_max} sequences")]
    InvalidSequence {
        /// The value of the caller.
        sequence: i32,
        /// Number of sequences in the context; they count from 0.
        n_seq_max: usize,
    },
    /// A position is negative, or too large for a model with learned positions.
    #[error("position {position} is out of range: it must be below {limit}")]
    InvalidPosition {
        /// The value of the caller.
        position: i32,
        /// The first position that is too large.
        limit: i32,
    },
    /// The batch has too many tokens for the context.
    #[error("batch of {tokens} tokens is too large: the context accepts {limit}")]
    BatchTooLarge {
        /// Tokens in the batch.
        tokens: usize,
        /// `n_batch`, or `n_ubatch` if the attention is not causal.
        limit: usize,
    },
    /// The context has no room for the batch. No token was decoded.
    #[error("no room in the context for {tokens} more tokens")]
    ContextFull {
        /// Tokens in the batch.
        tokens: usize,
    },
    /// The batch was not decoded.
    #[error("cannot decode: {0}")]
    Decode(Said),
    /// Nothing was computed for this entry of the last batch.
    #[error("entry {index} of the last batch has no {what}")]
    NoOutput {
        /// The kind of output: logits or embeddings.
        what: &'static str,
        /// Entry of the batch, or sequence for pooled embeddings.
        index: usize,
    },
    /// The kernel does not report the backing of the memory.
    #[error("cannot read the backing of the weights from `/proc/self/smaps`")]
    NoReport,
}

/// What llama.cpp said about a failed call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Said {
    /// The cause, one line.
    pub message: String,
    /// The hint for the user.
    pub hint: Option<String>,
    /// The cause as data, if huge pages are the cause.
    pub refusal: Option<Box<Refusal>>,
    /// All error lines of the log, in order.
    pub lines: Vec<String>,
}

/// Why there are no huge pages for a model or a context.
///
/// ```no_run
/// use llama_hugepages::{Error, HugePages, Model, ModelParams};
///
/// let params = ModelParams::default().with_hugepages(HugePages::Require);
/// if let Err(Error::Load { said, .. }) = Model::load("model.gguf", &params) {
///     if let Some(shortage) = said.refusal.and_then(|refusal| refusal.shortage) {
///         println!("{} more pages of {} are needed", shortage.needed - shortage.usable, shortage.page_size);
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The kind of the cause.
    pub cause: Cause,
    /// The numbers, if pages are short.
    pub shortage: Option<Shortage>,
}

/// The kind of a cause, from the status of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The kernel has no such pool, or is older than Linux 5.14.
    Unsupported,
    /// Too few pages: in the pool, below a limit, or in the mount of the store.
    Short,
    /// Too little ordinary memory or address space.
    NoMemory,
    /// A file cannot be read.
    Io,
    /// A file is damaged.
    Invalid,
    /// This process may not use a system call.
    Forbidden,
}

/// The pages that are missing. Of several page sizes, the numbers are those of the first that is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shortage {
    /// Size of the pages.
    pub page_size: HugePageSize,
    /// Pages that the call needs.
    pub needed: u64,
    /// Pages that it could use. Source: the pool, limits and the mount at the time of the failure.
    pub usable: u64,
}

impl Refusal {
    /// `None` if the engine refused nothing.
    fn new(raw: &ffi::ggml_hugepages_error) -> Option<Self> {
        let cause = match raw.status {
            ffi::GGML_HUGEPAGES_STATUS_UNSUPPORTED => Cause::Unsupported,
            ffi::GGML_HUGEPAGES_STATUS_SHORT => Cause::Short,
            ffi::GGML_HUGEPAGES_STATUS_NO_MEMORY => Cause::NoMemory,
            ffi::GGML_HUGEPAGES_STATUS_IO => Cause::Io,
            ffi::GGML_HUGEPAGES_STATUS_INVALID => Cause::Invalid,
            ffi::GGML_HUGEPAGES_STATUS_FORBIDDEN => Cause::Forbidden,
            _ => return None,
        };
        let shortage = HugePageSize::new(raw.page_size as u64).map(|page_size| Shortage {
            page_size,
            needed: raw.needed,
            usable: raw.usable,
        });
        Some(Self { cause, shortage })
    }
}

impl Said {
    /// Takes the cause and the hint from the error of the shim, or finds them in the error lines of the call.
    pub(crate) fn new(lines: Vec<String>, error: &ffi::lh_error) -> Self {
        let Some(refusal) = Refusal::new(&error.hugepages) else {
            return Self::from_log(lines, &text(&error.message));
        };
        let hint = text(&error.hugepages.hint);
        Self {
            message: text(&error.hugepages.message),
            hint: (!hint.is_empty()).then_some(hint),
            refusal: Some(Box::new(refusal)),
            lines,
        }
    }

    /// Finds the cause and the hint in the error lines of one call. `thrown` is the text of a C++ exception.
    fn from_log(lines: Vec<String>, thrown: &str) -> Self {
        let hint = lines
            .iter()
            .rev()
            .find_map(|line| line.strip_prefix(HINT))
            .map(str::to_owned);
        let causes: Vec<&str> = lines
            .iter()
            .filter(|line| !line.starts_with(HINT))
            .map(|line| without_function(line))
            .filter(|line| is_cause(line))
            .collect();
        let message = if thrown.is_empty() {
            causes.join("; ")
        } else {
            thrown.to_owned()
        };
        let message = if message.is_empty() {
            "llama.cpp gave no reason".to_owned()
        } else {
            message
        };
        Self {
            message,
            hint,
            refusal: None,
            lines,
        }
    }
}

/// A C string in a buffer that always contains a zero byte.
pub(crate) fn text(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> = buffer.iter().map(|c| c.to_ne_bytes()[0]).collect();
    CStr::from_bytes_until_nul(&bytes)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default()
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint
            .as_ref()
            .map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

const HINT: &str = "hint: ";

/// Cuts `llama_model_load: error loading model: the cause` to `the cause`.
fn without_function(line: &str) -> &str {
    let is_name = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let line = line
        .split_once(": ")
        .filter(|(name, _)| is_name(name))
        .map_or(line, |(_, rest)| rest);
    [
        "error loading model: ",
        "llama_model_loader: ",
        "failed to initialize the context: ",
    ]
    .iter()
    .fold(line, |line, prefix| {
        line.strip_prefix(prefix).unwrap_or(line)
    })
}

/// Whether a line contains a cause, not only the report of a failure.
fn is_cause(line: &str) -> bool {
    const SAY_NOTHING: [&str; 4] = [
        "failed to load model",
        "failed to decode, ret",
        "failed to encode, ret",
        "failed to initialize batch",
    ];
    !line.is_empty() && !SAY_NOTHING.iter().any(|prefix| line.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[&str]) -> Said {
        Said::from_log(lines.iter().map(ToString::to_string).collect(), "")
    }

    #[test]
    fn the_cause_is_told_from_what_only_says_that_it_failed() {
        let said = said(&[
            "llama_model_load: error loading model: needs 514 huge pages",
            "hint: sysctl vm.nr_hugepages=514",
            "llama_model_load_from_file_impl: failed to load model",
        ]);
        assert_eq!(
            said.to_string(),
            "needs 514 huge pages\nhint: sysctl vm.nr_hugepages=514"
        );
    }

    #[test]
    fn causes_of_several_layers_are_joined() {
        let said = said(&[
            "gguf_init_from_reader: invalid magic",
            "llama_model_load: error loading model: no such model",
        ]);
        assert_eq!(said.to_string(), "invalid magic; no such model");
    }

    #[test]
    fn silence_is_called_silence() {
        assert_eq!(said(&[]).to_string(), "llama.cpp gave no reason");
    }

    #[test]
    fn a_refusal_of_the_engine_is_told_by_the_engine() {
        let mut error = ffi::lh_error::default();
        error.hugepages.status = ffi::GGML_HUGEPAGES_STATUS_SHORT;
        error.hugepages.page_size = 2 << 20;
        error.hugepages.needed = 7;
        error.hugepages.usable = 5;
        for (to, from) in error.hugepages.message.iter_mut().zip(b"short") {
            *to = c_char::from_ne_bytes([*from]);
        }
        let said = Said::new(vec!["f: another text".into()], &error);
        let refusal = said.refusal.as_ref().unwrap();
        let shortage = refusal.shortage.unwrap();
        assert_eq!((shortage.needed, shortage.usable), (7, 5));
        assert_eq!(said.to_string(), "short");
    }

    #[test]
    fn an_exception_is_the_cause() {
        assert_eq!(
            Said::from_log(vec!["f: x".into()], "bad alloc").message,
            "bad alloc"
        );
    }
}
