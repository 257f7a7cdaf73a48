//! Choosing the next token from the logits.

use std::fmt;

use crate::token::Token;
use crate::{Context, Error, Model, ffi};

/// Chooses tokens: a chain of llama.cpp's samplers; the last one decides.
///
/// Never chooses the tokens that the model file suppresses, like llama.cpp's programs.
///
/// ```no_run
/// use llama_hugepages::{Model, ModelParams, Sampler};
///
/// let model = Model::load("model.gguf", &ModelParams::default())?;
/// let most_likely = Sampler::greedy(&model);
/// let seeded = Sampler::chain(&model).top_k(40).top_p(0.95).temperature(0.8).seeded(42);
/// # Ok::<(), llama_hugepages::Error>(())
/// ```
pub struct Sampler(*mut ffi::llama_sampler);

// SAFETY: a sampler belongs to no thread. Being a pointer, it is not Sync.
unsafe impl Send for Sampler {}

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: made by `llama_sampler_chain_init`, and freed nowhere else. It frees the samplers in it.
        unsafe { ffi::llama_sampler_free(self.0) };
    }
}

impl Sampler {
    /// Always chooses the most likely token.
    pub fn greedy(model: &Model) -> Self {
        let chain = Self::chain(model);
        // SAFETY: takes no arguments.
        let greedy = unsafe { ffi::llama_sampler_init_greedy() };
        chain.add(greedy).0
    }

    /// Starts a chain that ends with a random choice. The samplers apply in the order of the calls.
    pub fn chain(model: &Model) -> SamplerChain {
        // SAFETY: takes no arguments.
        let params = unsafe { ffi::llama_sampler_chain_default_params() };
        // SAFETY: takes a struct of numbers.
        let chain = SamplerChain(Self(unsafe { ffi::llama_sampler_chain_init(params) }));

        let never = |token: &Token| ffi::llama_logit_bias {
            token: token.0,
            bias: f32::NEG_INFINITY,
        };
        let never: Vec<_> = model.suppressed().iter().map(never).collect();
        let c_int = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let (n_vocab, n) = (c_int(model.n_vocab()), c_int(never.len()));
        // SAFETY: `n` biases, which are copied.
        let never = unsafe { ffi::llama_sampler_init_logit_bias(n_vocab, n, never.as_ptr()) };
        chain.add(never)
    }

    /// Chooses the token after an entry of the last batch, and adds it to the history of the sampler.
    ///
    /// # Errors
    /// [`Error::NoOutput`]
    pub fn sample(&mut self, context: &mut Context, index: usize) -> Result<Token, Error> {
        let index = context.check_logits(index)?;
        // SAFETY: sampler and context are alive, the entry has logits, and the chain ends with a sampler that decides.
        Ok(Token(unsafe {
            ffi::llama_sampler_sample(self.0, context.as_ptr(), index)
        }))
    }

    /// Returns to the start: the same seed and an empty history.
    pub fn reset(&mut self) {
        // SAFETY: the sampler is alive.
        unsafe { ffi::llama_sampler_reset(self.0) };
    }
}

/// A [`Sampler`] without the last step, which decides.
#[must_use]
pub struct SamplerChain(Sampler);

impl SamplerChain {
    /// Keeps the `k` most likely tokens; 0 keeps all.
    pub fn top_k(self, k: u32) -> Self {
        // SAFETY: takes a number.
        let sampler =
            unsafe { ffi::llama_sampler_init_top_k(i32::try_from(k).unwrap_or(i32::MAX)) };
        self.add(sampler)
    }

    /// Keeps the most likely tokens with a total probability of `p`; 1 keeps all.
    pub fn top_p(self, p: f32) -> Self {
        // SAFETY: takes numbers.
        let sampler = unsafe { ffi::llama_sampler_init_top_p(p, 1) };
        self.add(sampler)
    }

    /// Divides the logits: a value below 1 favours likely tokens, 0 keeps only the most likely token.
    pub fn temperature(self, temperature: f32) -> Self {
        // SAFETY: takes a number.
        let sampler = unsafe { ffi::llama_sampler_init_temp(temperature) };
        self.add(sampler)
    }

    /// Ends the chain with a random choice. The same seed chooses the same tokens, except `u32::MAX`, which selects a new seed each time.
    pub fn seeded(self, seed: u32) -> Sampler {
        // SAFETY: takes a number.
        let dist = unsafe { ffi::llama_sampler_init_dist(seed) };
        self.add(dist).0
    }

    fn add(self, sampler: *mut ffi::llama_sampler) -> Self {
        // SAFETY: both were just created, and the call makes the chain the owner of the sampler.
        unsafe { ffi::llama_sampler_chain_add(self.0.0, sampler) };
        self
    }
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sampler").finish_non_exhaustive()
    }
}

impl fmt::Debug for SamplerChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SamplerChain").finish_non_exhaustive()
    }
}
