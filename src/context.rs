//! Computing with a model.
//!
//! llama.cpp aborts the process on some mistakes: a batch that is too large, an unknown sequence, logits that no caller requested. This
//! module checks for these mistakes first, and returns errors.

use std::collections::HashMap;
use std::fmt;
use std::ptr::{self, NonNull};
use std::slice;

use crate::error::Said;
use crate::{Batch, ContextParams, Error, Model, ffi, logging};

/// The state of one or more sequences of tokens: key and value memory, and the output of the last batch.
///
/// A context keeps its model in memory. It can move between threads, but only one thread uses it at a time: methods that compute or read
/// take `&mut self`, because llama.cpp finishes and reorders the output at the first read.
///
/// ```no_run
/// use llama_hugepages::{Batch, Context, ContextParams, Model, ModelParams, Sampler, Specials};
///
/// let model = Model::load("model.gguf", &ModelParams::default())?;
/// let mut context = Context::new(&model, &ContextParams::default())?;
/// let tokens = model.tokenize("Once upon a time", Specials::Add)?;
/// context.decode(&Batch::prompt(&tokens))?;
/// let next = Sampler::greedy(&model).sample(&mut context, tokens.len() - 1)?;
/// println!("{}", String::from_utf8_lossy(&model.piece(next)?));
/// # Ok::<(), llama_hugepages::Error>(())
/// ```
pub struct Context {
    raw: NonNull<ffi::llama_context>,
    /// Null for models that only encode, such as BERT.
    memory: ffi::llama_memory_t,
    embeddings: bool,
    pooling: ffi::llama_pooling_type,
    /// Whether each entry of the last batch has output.
    outputs: Vec<bool>,
    /// Sequences of the last batch.
    sequences: Vec<i32>,
    // Freed after the context.
    model: Model,
}

// SAFETY: llama.cpp ties no context to a thread: its server creates a context in one thread and computes in others. It is not Sync.
unsafe impl Send for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `lh_context_init`, freed nowhere else, and the model is still alive.
        unsafe { ffi::llama_free(self.raw.as_ptr()) };
    }
}

impl Context {
    /// Creates a context with memory for [`n_ctx`](ContextParams::with_n_ctx) tokens.
    ///
    /// # Errors
    /// [`Error::Context`] with the cause, [`Error::NoWeights`]
    ///
    /// ```no_run
    /// use llama_hugepages::{Context, ContextParams, Model, ModelParams};
    ///
    /// let model = Model::load("model.gguf", &ModelParams::default())?;
    /// let context = Context::new(&model, &ContextParams::default().with_n_ctx(4096))?;
    /// # Ok::<(), llama_hugepages::Error>(())
    /// ```
    pub fn new(model: &Model, params: &ContextParams) -> Result<Self, Error> {
        let raw = model.make_context(params.raw)?;
        // SAFETY: the context is alive.
        let memory = unsafe { ffi::llama_get_memory(raw.as_ptr()) };
        // SAFETY: the context is alive.
        let pooling = unsafe { ffi::llama_pooling_type(raw.as_ptr()) };
        let embeddings = params.raw.embeddings;
        Ok(Self {
            raw,
            memory,
            embeddings,
            pooling,
            outputs: Vec::new(),
            sequences: Vec::new(),
            model: model.clone(),
        })
    }

    /// The model of this context.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Capacity in tokens, over all sequences; at least the requested number.
    pub fn n_ctx(&self) -> usize {
        // SAFETY: the context is alive.
        unsafe { ffi::llama_n_ctx(self.raw.as_ptr()) as usize }
    }

    /// Maximum number of tokens in one batch.
    pub fn max_batch(&self) -> usize {
        // SAFETY: the context is alive.
        let causal = unsafe { ffi::llama_get_causal_attn(self.raw.as_ptr()) };
        if causal && !self.memory.is_null() {
            // SAFETY: as above.
            unsafe { ffi::llama_n_batch(self.raw.as_ptr()) as usize }
        } else {
            // SAFETY: as above.
            unsafe { ffi::llama_n_ubatch(self.raw.as_ptr()) as usize }
        }
    }

    /// Computes a batch. Discards the logits and embeddings of the previous batch, also after an error.
    ///
    /// # Errors
    /// [`Error::BatchTooLarge`], [`Error::InvalidToken`], [`Error::InvalidSequence`], [`Error::InvalidPosition`] and
    /// [`Error::ContextFull`]: the context contains no token of the batch. [`Error::Decode`] with the cause.
    pub fn decode(&mut self, batch: &Batch) -> Result<(), Error> {
        self.outputs.clear();
        self.sequences.clear();
        let n_tokens = self.check(batch)?;
        let mut positions = self.positions(batch)?;
        let mut sequences = batch.sequences.clone();
        let mut per_token: Vec<*mut i32> = sequences.iter_mut().map(ptr::from_mut).collect();
        let mut counts = vec![1; batch.len()];
        let mut tokens: Vec<i32> = batch.tokens.iter().map(|token| token.0).collect();
        // Such contexts compute output for all entries, and warn about entries that do not request it.
        let all = self.embeddings || self.memory.is_null();
        let mut outputs: Vec<i8> = batch
            .outputs
            .iter()
            .map(|output| i8::from(all || *output != 0))
            .collect();
        let raw = ffi::llama_batch {
            n_tokens,
            token: tokens.as_mut_ptr(),
            embd: ptr::null_mut(),
            pos: positions.as_mut_ptr(),
            n_seq_id: counts.as_mut_ptr(),
            seq_id: per_token.as_mut_ptr(),
            logits: outputs.as_mut_ptr(),
        };
        let mut thrown = ffi::lh_error::default();
        // SAFETY: the context is alive; each array has `n_tokens` entries and outlives the call; sequences and size were
        // checked above. The shim throws nothing.
        let (status, lines) =
            logging::capture(|| unsafe { ffi::lh_decode(self.raw.as_ptr(), raw, &raw mut thrown) });
        match status {
            0 => {
                logging::release(&lines);
                self.outputs = outputs.iter().map(|output| *output != 0).collect();
                self.sequences = sequences;
                Ok(())
            }
            1 => Err(Error::ContextFull {
                tokens: batch.len(),
            }),
            _ => Err(Error::Decode(Said::new(lines, &thrown))),
        }
    }

    /// The logits after an entry of the last batch: one number for each token of the vocabulary, not normalized.
    ///
    /// # Errors
    /// [`Error::NoOutput`] for an entry without output, or for a model without logits.
    pub fn logits(&mut self, index: usize) -> Result<&[f32], Error> {
        let i = self.check_logits(index)?;
        let n_vocab = self.model.n_vocab();
        // SAFETY: the context is alive and the entry has output.
        let logits = unsafe { ffi::llama_get_logits_ith(self.raw.as_ptr(), i) };
        // SAFETY: `n_vocab` floats that stay as they are until the next call that takes `&mut self`.
        unsafe { floats(logits, n_vocab) }.ok_or(Error::NoOutput {
            what: "logits",
            index,
        })
    }

    /// The embedding of an entry of the last batch: [`Model::n_embd`] floats, not normalized. For contexts with
    /// embeddings and [`Pooling::None`](crate::Pooling).
    ///
    /// # Errors
    /// [`Error::NoOutput`]
    pub fn embeddings(&mut self, index: usize) -> Result<&[f32], Error> {
        let none = Error::NoOutput {
            what: "embeddings",
            index,
        };
        let computed = self.embeddings && self.pooling == ffi::LLAMA_POOLING_TYPE_NONE;
        let Some(i) = self.output(index).filter(|_| computed) else {
            return Err(none);
        };
        let n_embd = self.model.n_embd();
        // SAFETY: the context is alive and the entry has output.
        let embeddings = unsafe { ffi::llama_get_embeddings_ith(self.raw.as_ptr(), i) };
        // SAFETY: `n_embd` floats that stay as they are until the next call that takes `&mut self`.
        unsafe { floats(embeddings, n_embd) }.ok_or(none)
    }

    /// The embedding of a sequence of the last batch: [`Model::n_embd`] floats, not normalized; for
    /// [`Pooling::Rank`](crate::Pooling) one score for each class. For contexts with embeddings and pooling.
    ///
    /// # Errors
    /// [`Error::NoOutput`]
    ///
    /// ```no_run
    /// use llama_hugepages::{Batch, Context, ContextParams, Model, ModelParams, Specials};
    ///
    /// let model = Model::load("embedding.gguf", &ModelParams::default())?;
    /// let mut context = Context::new(&model, &ContextParams::default().with_embeddings(true))?;
    /// context.decode(&Batch::all_outputs(&model.tokenize("a dog", Specials::Add)?))?;
    /// println!("{:?}", context.sequence_embeddings(0)?);
    /// # Ok::<(), llama_hugepages::Error>(())
    /// ```
    pub fn sequence_embeddings(&mut self, sequence: i32) -> Result<&[f32], Error> {
        let none = Error::NoOutput {
            what: "pooled embeddings",
            index: usize::try_from(sequence).unwrap_or(usize::MAX),
        };
        if !self.embeddings
            || self.pooling == ffi::LLAMA_POOLING_TYPE_NONE
            || !self.sequences.contains(&sequence)
        {
            return Err(none);
        }
        // SAFETY: the model is alive.
        let n_classes = unsafe { ffi::llama_model_n_cls_out(self.model.as_ptr()) };
        let len = if self.pooling == ffi::LLAMA_POOLING_TYPE_RANK {
            n_classes as usize
        } else {
            self.model.n_embd()
        };
        // SAFETY: the context is alive.
        let embeddings = unsafe { ffi::llama_get_embeddings_seq(self.raw.as_ptr(), sequence) };
        // SAFETY: `len` floats that stay as they are until the next call that takes `&mut self`.
        unsafe { floats(embeddings, len) }.ok_or(none)
    }

    /// Forgets all sequences, and the output of the last batch.
    pub fn clear(&mut self) {
        self.outputs.clear();
        self.sequences.clear();
        if !self.memory.is_null() {
            // SAFETY: the memory is part of the context, which is alive.
            unsafe { ffi::llama_memory_clear(self.memory, true) };
        }
    }

    pub(crate) fn as_ptr(&mut self) -> *mut ffi::llama_context {
        self.raw.as_ptr()
    }

    /// Checks that an entry has logits, and returns its index as C's type. A model without memory computes no logits, unless it is a
    /// diffusion model.
    pub(crate) fn check_logits(&self, index: usize) -> Result<i32, Error> {
        let computed = self.is_diffusion() || !self.memory.is_null();
        self.output(index)
            .filter(|_| computed)
            .ok_or(Error::NoOutput {
                what: "logits",
                index,
            })
    }

    /// The index of an entry as C's type. `None` if the last batch has no output for the entry.
    fn output(&self, index: usize) -> Option<i32> {
        let is_output = *self.outputs.get(index)?;
        i32::try_from(index).ok().filter(|_| is_output)
    }

    /// Checks that llama.cpp accepts the batch, and returns its length as C's type.
    fn check(&self, batch: &Batch) -> Result<i32, Error> {
        let (tokens, limit) = (batch.len(), self.max_batch());
        let too_large = Error::BatchTooLarge { tokens, limit };
        let n_tokens = i32::try_from(tokens)
            .ok()
            .filter(|_| tokens <= limit)
            .ok_or(too_large)?;
        batch
            .tokens
            .iter()
            .try_for_each(|token| self.model.check_token(*token))?;
        // SAFETY: the context is alive.
        let n_seq_max = unsafe { ffi::llama_n_seq_max(self.raw.as_ptr()) } as usize;
        let known = |sequence: i32| usize::try_from(sequence).is_ok_and(|index| index < n_seq_max);
        match batch.sequences.iter().find(|sequence| !known(**sequence)) {
            Some(&sequence) => Err(Error::InvalidSequence {
                sequence,
                n_seq_max,
            }),
            None => Ok(n_tokens),
        }
    }

    /// The position of each entry. Requires checked sequences.
    fn positions(&self, batch: &Batch) -> Result<Vec<i32>, Error> {
        let limit = self.position_limit();
        let mut next: HashMap<i32, i32> = HashMap::new();
        let mut positions = Vec::with_capacity(batch.len());
        for (sequence, position) in batch.sequences.iter().zip(&batch.positions) {
            // SAFETY: the memory is part of the context, which is alive; without memory the answer is -1.
            let next = next.entry(*sequence).or_insert_with(
                || unsafe { ffi::llama_memory_seq_pos_max(self.memory, *sequence) } + 1,
            );
            let position = position.unwrap_or(*next);
            if !(0..limit).contains(&position) {
                return Err(Error::InvalidPosition { position, limit });
            }
            *next = position + 1;
            positions.push(position);
        }
        Ok(positions)
    }

    /// The first position that is too large. Learned positions are rows of a table, and llama.cpp aborts on a row after its end. It does
    /// not report which models have such a table, so the limit applies to models that only encode and to models without rotary positions.
    fn position_limit(&self) -> i32 {
        // SAFETY: the model is alive.
        let rotary =
            unsafe { ffi::llama_model_rope_type(self.model.as_ptr()) } != ffi::LLAMA_ROPE_TYPE_NONE;
        // SAFETY: the model is alive.
        let recurrent = unsafe { ffi::llama_model_is_recurrent(self.model.as_ptr()) };
        let only_encodes = self.memory.is_null() && !self.is_diffusion();
        if recurrent || (rotary && !only_encodes) {
            i32::MAX
        } else {
            i32::try_from(self.model.n_ctx_train()).unwrap_or(i32::MAX)
        }
    }

    /// A diffusion model computes logits without memory.
    fn is_diffusion(&self) -> bool {
        // SAFETY: the model is alive.
        unsafe { ffi::llama_model_is_diffusion(self.model.as_ptr()) }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("model", &self.model)
            .field("n_ctx", &self.n_ctx())
            .finish_non_exhaustive()
    }
}

/// # Safety
/// `data` is null, or points to `len` floats that live, and do not change, for `'a`.
unsafe fn floats<'a>(data: *const f32, len: usize) -> Option<&'a [f32]> {
    if data.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { slice::from_raw_parts(data, len) })
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Context>();
};
