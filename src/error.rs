//! Errors of this library, with their data.

use std::fmt;
use std::path::PathBuf;

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

/// The error lines that llama.cpp logged during a failed call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Said {
    /// The cause, one line.
    pub message: String,
    /// The hint for the user.
    pub hint: Option<String>,
    /// All error lines of the log, in order.
    pub lines: Vec<String>,
}

impl Said {
    /// Finds the cause and the hint in the error lines of one call. `thrown` is the text of a C++ exception.
    pub(crate) fn new(lines: Vec<String>, thrown: &str) -> Self {
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
            lines,
        }
    }
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
        Said::new(lines.iter().map(ToString::to_string).collect(), "")
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
    fn an_exception_is_the_cause() {
        assert_eq!(
            Said::new(vec!["f: x".into()], "bad alloc").message,
            "bad alloc"
        );
    }
}
