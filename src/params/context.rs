//! Parameters of a context.

use std::fmt;
use std::thread;

use super::env::Env;
use crate::{Error, ffi};

/// How the embeddings of a sequence's tokens are pooled into one embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Pooling {
    /// The model's default.
    #[default]
    FromModel,
    /// No pooling: one embedding for each token.
    None,
    /// The mean of the embeddings.
    Mean,
    /// The embedding of the first token.
    Cls,
    /// The embedding of the last token.
    Last,
    /// The score of a reranking model.
    Rank,
}

/// Parameters of [`Context::new`](crate::Context::new).
///
/// ```
/// use llama_hugepages::ContextParams;
///
/// let params = ContextParams::default().with_n_ctx(4096).with_threads(2);
/// assert_eq!(params.n_ctx(), 4096);
/// ```
#[derive(Clone)]
#[must_use]
pub struct ContextParams {
    /// Contains no pointer but null, because neither the setters nor the environment set a pointer.
    pub(crate) raw: ffi::llama_context_params,
}

// SAFETY: the pointers in `raw` are null.
unsafe impl Send for ContextParams {}
// SAFETY: as above.
unsafe impl Sync for ContextParams {}

impl Default for ContextParams {
    /// llama.cpp's defaults, independent of the environment, and one thread for each CPU of this process.
    fn default() -> Self {
        // SAFETY: takes no arguments and returns numbers and null pointers.
        let raw = unsafe { ffi::llama_context_default_params() };
        Self { raw }.with_threads(thread::available_parallelism().map_or(1, |n| n.get() as u32))
    }
}

impl ContextParams {
    /// Reads the environment variables of llama.cpp's programs, such as `LLAMA_ARG_CTX_SIZE`, `LLAMA_ARG_THREADS` or
    /// `LLAMA_ARG_CACHE_TYPE_K`, with the rules of [`ModelParams::from_env`](crate::ModelParams::from_env).
    ///
    /// # Errors
    /// [`Error::Environment`]
    ///
    /// ```no_run
    /// let params = llama_hugepages::ContextParams::from_env()?;
    /// # Ok::<(), llama_hugepages::Error>(())
    /// ```
    pub fn from_env() -> Result<Self, Error> {
        Ok(Self {
            raw: Env::read()?.context_params(),
        })
    }

    /// Capacity in tokens, over all sequences. 512 by default. 0 selects the context length of the model's training, which is the default
    /// of llama.cpp's programs.
    pub fn with_n_ctx(mut self, tokens: u32) -> Self {
        self.raw.n_ctx = tokens;
        self
    }

    /// As set by [`with_n_ctx`](Self::with_n_ctx) or the environment.
    pub fn n_ctx(&self) -> u32 {
        self.raw.n_ctx
    }

    /// Maximum number of tokens in one call of [`decode`](crate::Context::decode). 2048 by default.
    pub fn with_n_batch(mut self, tokens: u32) -> Self {
        self.raw.n_batch = tokens;
        self
    }

    /// As set by [`with_n_batch`](Self::with_n_batch) or the environment.
    pub fn n_batch(&self) -> u32 {
        self.raw.n_batch
    }

    /// Maximum number of tokens in one pass over the weights. 512 by default. Models without causal attention, such as BERT, accept no
    /// larger batch.
    pub fn with_n_ubatch(mut self, tokens: u32) -> Self {
        self.raw.n_ubatch = tokens;
        self
    }

    /// As set by [`with_n_ubatch`](Self::with_n_ubatch) or the environment.
    pub fn n_ubatch(&self) -> u32 {
        self.raw.n_ubatch
    }

    /// Number of separate sequences. 1 by default.
    pub fn with_n_seq_max(mut self, sequences: u32) -> Self {
        self.raw.n_seq_max = sequences;
        self
    }

    /// As set by [`with_n_seq_max`](Self::with_n_seq_max) or the environment.
    pub fn n_seq_max(&self) -> u32 {
        self.raw.n_seq_max
    }

    /// Number of threads that compute, for one token and for a batch.
    pub fn with_threads(mut self, threads: u32) -> Self {
        self.raw.n_threads = i32::try_from(threads.max(1)).unwrap_or(i32::MAX);
        self.raw.n_threads_batch = self.raw.n_threads;
        self
    }

    /// As set by [`with_threads`](Self::with_threads) or the environment.
    pub fn threads(&self) -> u32 {
        u32::try_from(self.raw.n_threads).unwrap_or(1)
    }

    /// Whether to compute embeddings, for all tokens of a batch. Off by default.
    pub fn with_embeddings(mut self, embeddings: bool) -> Self {
        self.raw.embeddings = embeddings;
        self
    }

    /// Pooling of embeddings.
    pub fn with_pooling(mut self, pooling: Pooling) -> Self {
        self.raw.pooling_type = match pooling {
            Pooling::FromModel => ffi::LLAMA_POOLING_TYPE_UNSPECIFIED,
            Pooling::None => ffi::LLAMA_POOLING_TYPE_NONE,
            Pooling::Mean => ffi::LLAMA_POOLING_TYPE_MEAN,
            Pooling::Cls => ffi::LLAMA_POOLING_TYPE_CLS,
            Pooling::Last => ffi::LLAMA_POOLING_TYPE_LAST,
            Pooling::Rank => ffi::LLAMA_POOLING_TYPE_RANK,
        };
        self
    }
}

impl fmt::Debug for ContextParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContextParams")
            .field("n_ctx", &self.n_ctx())
            .field("n_batch", &self.n_batch())
            .field("n_ubatch", &self.n_ubatch())
            .field("n_seq_max", &self.n_seq_max())
            .field("threads", &self.threads())
            .field("embeddings", &self.raw.embeddings)
            .finish_non_exhaustive()
    }
}
