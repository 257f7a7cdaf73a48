//! A loaded model.
//!
//! The vocabulary of a model is in `vocab.rs`.

use std::any::Any;
use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::Said;
use crate::report::{self, Report};
use crate::{Error, ModelParams, ffi, logging};

/// A model in memory. A clone is another handle to the same model. The memory is freed with the last handle and the last
/// [`Context`](crate::Context).
///
/// All threads can use a handle, because a loaded model does not change.
#[derive(Clone)]
pub struct Model(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    raw: NonNull<ffi::llama_model>,
    vocab_only: bool,
    n_ctx_train: usize,
    /// Locked while a context is created, because `YaRN` then writes to the model.
    making_context: Mutex<()>,
    /// The engine's name for this model. 0 without huge pages.
    id: u32,
}

// SAFETY: llama.cpp ties no model to a thread: its server loads a model in one thread and uses it in others.
unsafe impl Send for Inner {}
// SAFETY: a shared reference only reads the model, except to create a context, which locks `making_context`. Creation writes one field,
// `n_ctx_train`; `new` reads this field before the first context exists.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        self.return_unused_pages();
        // SAFETY: loaded by `lh_model_load`, freed nowhere else, and every context holds a handle of its own.
        unsafe { ffi::llama_model_free(self.raw.as_ptr()) };
    }
}

impl Model {
    /// Loads a GGUF file. For a model in several files, pass the first file.
    ///
    /// # Errors
    /// [`Error::Load`] with the cause: with [`HugePages::Require`](crate::HugePages) and too few pages its
    /// [`Refusal`](crate::Refusal) contains the numbers of needed and usable pages. [`Error::ZeroByte`], and [`Error::Context`] if the
    /// context of [`ModelParams::with_context`] cannot be created.
    ///
    /// ```no_run
    /// use llama_hugepages::{HugePages, Model, ModelParams};
    ///
    /// let model = Model::load("model.gguf", &ModelParams::default().with_hugepages(HugePages::Require))?;
    /// println!("{}: {} bytes of weights", model.description(), model.size());
    /// println!("{}", model.report()?);
    /// # Ok::<(), llama_hugepages::Error>(())
    /// ```
    pub fn load(path: impl AsRef<Path>, params: &ModelParams) -> Result<Self, Error> {
        Self::load_with_progress(path, params, |_| ControlFlow::Continue(()))
    }

    /// Loads a GGUF file and calls `progress` with the completed share, from 0 to 1, on this thread.
    ///
    /// `ControlFlow::Break(())` stops the load. A panic stops it too, and continues after the load returned all its memory.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `progress` stopped the load, otherwise as [`load`](Self::load).
    ///
    /// ```no_run
    /// use std::ops::ControlFlow;
    /// use std::time::{Duration, Instant};
    ///
    /// use llama_hugepages::{Error, Model, ModelParams};
    ///
    /// let begin = Instant::now();
    /// let result = Model::load_with_progress("model.gguf", &ModelParams::default(), |done| {
    ///     eprint!("\r{:3.0} %", done * 100.0);
    ///     if begin.elapsed() < Duration::from_secs(60) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    /// });
    /// assert!(!matches!(result, Err(Error::Cancelled)), "this disk is too slow");
    /// ```
    pub fn load_with_progress<F>(
        path: impl AsRef<Path>,
        params: &ModelParams,
        progress: F,
    ) -> Result<Self, Error>
    where
        F: FnMut(f32) -> ControlFlow<()>,
    {
        crate::init();
        let path = path.as_ref();
        let c_path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| Error::ZeroByte { what: "the path" })?;
        let mut progress = Progress {
            callback: progress,
            end: None,
        };
        let mut raw = params.raw;
        if raw.hugepages.enabled {
            raw.hugepages.model_id = next_id();
            if let Some(context) = params.context {
                measure(&c_path, &mut raw, context)?;
            }
        }
        raw.progress_callback = Some(on_progress::<F>);
        raw.progress_callback_user_data = ptr::from_mut(&mut progress).cast();

        let mut thrown = ffi::lh_error::default();
        // SAFETY: the path, the targets of `raw` and `thrown` outlive the call. The shim throws nothing.
        let (model, lines) = logging::capture(|| unsafe {
            ffi::lh_model_load(c_path.as_ptr(), raw, &raw mut thrown)
        });
        // If the load finished despite a cancel, dropping `model` frees the memory.
        let model = NonNull::new(model).map(|model| Inner::new(model, &raw));
        if model.is_none() {
            return_unused_pages(raw.hugepages.model_id);
        }
        match (progress.end, model) {
            (Some(End::Panic(payload)), model) => {
                drop(model);
                panic::resume_unwind(payload)
            }
            (Some(End::Break), _) => Err(Error::Cancelled),
            (None, Some(model)) => {
                logging::release(&lines);
                Ok(Self(Arc::new(model)))
            }
            (None, None) => Err(Error::Load {
                path: path.to_owned(),
                said: Said::new(lines, &thrown),
            }),
        }
    }

    /// Architecture, size and weight type in words, such as `llama 7B Q8_0`. Source: the model file.
    pub fn description(&self) -> String {
        let mut buffer = [0_u8; 256];
        // SAFETY: the model is alive, and the length is that of the buffer.
        unsafe { ffi::llama_model_desc(self.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
        CStr::from_bytes_until_nul(&buffer)
            .map(|text| text.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// Bytes of all weights.
    pub fn size(&self) -> u64 {
        // SAFETY: the model is alive.
        unsafe { ffi::llama_model_size(self.as_ptr()) }
    }

    /// Number of parameters in all weights.
    pub fn n_params(&self) -> u64 {
        // SAFETY: the model is alive.
        unsafe { ffi::llama_model_n_params(self.as_ptr()) }
    }

    /// Number of floats in one embedding, see [`Context::embeddings`](crate::Context::embeddings).
    pub fn n_embd(&self) -> usize {
        // SAFETY: the model is alive.
        let n = unsafe { ffi::llama_model_n_embd_out(self.as_ptr()) };
        usize::try_from(n).unwrap_or(0)
    }

    /// Number of layers.
    pub fn n_layer(&self) -> usize {
        // SAFETY: the model is alive.
        let n = unsafe { ffi::llama_model_n_layer(self.as_ptr()) };
        usize::try_from(n).unwrap_or(0)
    }

    /// Tokens of context that the model was trained with.
    pub fn n_ctx_train(&self) -> usize {
        self.0.n_ctx_train
    }

    /// The chat template of the model file, in Jinja. Source: `tokenizer.chat_template`.
    pub fn chat_template(&self) -> Option<&str> {
        // SAFETY: the model is alive, and no name asks for the default template.
        let template = unsafe { ffi::llama_model_chat_template(self.as_ptr(), ptr::null()) };
        if template.is_null() {
            return None;
        }
        // SAFETY: a C string that is part of the model, which lives as long as `self` and does not change.
        unsafe { CStr::from_ptr(template) }.to_str().ok()
    }

    /// The backing of this model and its contexts. [`report()`](crate::report()) covers all models of the process.
    ///
    /// # Errors
    /// [`Error::NoReport`] if the kernel does not report the backing.
    ///
    /// ```no_run
    /// use llama_hugepages::{HugePages, Model, ModelParams};
    ///
    /// let model = Model::load("model.gguf", &ModelParams::default().with_hugepages(HugePages::Prefer))?;
    /// let report = model.report()?;
    /// println!("{} of {} bytes are on huge pages", report.on_huge(), report.wanted());
    /// # Ok::<(), llama_hugepages::Error>(())
    /// ```
    pub fn report(&self) -> Result<Report, Error> {
        match self.0.id {
            0 => Ok(Report::default()),
            id => report::of(id),
        }
    }

    pub(crate) fn as_ptr(&self) -> *mut ffi::llama_model {
        self.0.raw.as_ptr()
    }

    /// Creates a raw context, one at a time.
    pub(crate) fn make_context(
        &self,
        params: ffi::llama_context_params,
    ) -> Result<NonNull<ffi::llama_context>, Error> {
        if self.0.vocab_only {
            return Err(Error::NoWeights);
        }
        let mut thrown = ffi::lh_error::default();
        let (context, lines) = {
            let _alone = self
                .0
                .making_context
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            // SAFETY: the model is alive and has weights, `params` holds no pointer. The shim throws nothing.
            logging::capture(|| unsafe {
                ffi::lh_context_init(self.as_ptr(), params, &raw mut thrown)
            })
        };
        let context = NonNull::new(context)
            .ok_or_else(|| Error::Context(Said::new(lines.clone(), &thrown)))?;
        logging::release(&lines);
        self.0.return_unused_pages();
        Ok(context)
    }
}

impl Inner {
    fn new(raw: NonNull<ffi::llama_model>, params: &ffi::llama_model_params) -> Self {
        // SAFETY: the model is alive.
        let n_ctx_train = unsafe { ffi::llama_model_n_ctx_train(raw.as_ptr()) };
        Self {
            raw,
            vocab_only: params.vocab_only,
            n_ctx_train: usize::try_from(n_ctx_train).unwrap_or(0),
            making_context: Mutex::new(()),
            id: params.hugepages.model_id,
        }
    }

    fn return_unused_pages(&self) {
        return_unused_pages(self.id);
    }
}

/// Returns the pages that the load of a model keeps for its first context and that no buffer uses.
fn return_unused_pages(id: u32) {
    if id != 0 {
        // SAFETY: takes a number. Pages of other models stay.
        unsafe { ffi::ggml_hugepages_hold_end(id) };
    }
}

/// A number that no other model of this process has, but 0.
fn next_id() -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// Adds the buffers of a context to the need of the load.
///
/// # Errors
/// [`Error::Context`], before anything is read, if the context cannot be created.
fn measure(
    path: &CStr,
    params: &mut ffi::llama_model_params,
    context: ffi::llama_context_params,
) -> Result<(), Error> {
    let mut thrown = ffi::lh_error::default();
    // SAFETY: the path, the targets of `params` and `thrown` outlive the call. The shim throws nothing.
    let (is_possible, lines) = logging::capture_quietly(|| unsafe {
        ffi::lh_measure(path.as_ptr(), params, context, &raw mut thrown)
    });
    if is_possible {
        Ok(())
    } else {
        Err(Error::Context(Said::new(lines, &thrown)))
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("description", &self.description())
            .finish_non_exhaustive()
    }
}

struct Progress<F> {
    callback: F,
    end: Option<End>,
}

/// How `progress` ended the load.
enum End {
    Break,
    Panic(Box<dyn Any + Send>),
}

unsafe extern "C" fn on_progress<F: FnMut(f32) -> ControlFlow<()>>(
    done: f32,
    progress: *mut c_void,
) -> bool {
    // SAFETY: `load_with_progress` passes its own `Progress<F>` and does not touch it before the load returns. llama.cpp
    // and the engine report from the thread that loads, one call after the other.
    let progress = unsafe { &mut *progress.cast::<Progress<F>>() };
    if progress.end.is_some() {
        return false;
    }
    progress.end = match panic::catch_unwind(AssertUnwindSafe(|| (progress.callback)(done))) {
        Ok(ControlFlow::Continue(())) => None,
        Ok(ControlFlow::Break(())) => Some(End::Break),
        Err(payload) => Some(End::Panic(payload)),
    };
    progress.end.is_none()
}

const _: () = {
    const fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Model>();
    is_send_and_sync::<ModelParams>();
};
