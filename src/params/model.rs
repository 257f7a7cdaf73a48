//! Parameters of a load.

use std::ffi::c_char;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::context::ContextParams;
use super::env::Env;
use crate::page_size::HugePageSize;
use crate::{Error, ffi};

/// Policy for memory that the CPU reads: weights, KV cache and compute buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum HugePages {
    /// No huge pages, as in stock llama.cpp.
    #[default]
    Off,
    /// All of this memory on huge pages, or the load fails before it reads, with the number of missing pages.
    Require,
    /// As much of this memory as usable pages allow, the rest as in stock. [`report`](crate::report()) has the result.
    Prefer,
}

/// Size of the huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PageSize {
    /// The largest pages of the machine if they fit, smaller pages for the rest.
    #[default]
    Auto,
    /// Pages of this pool only.
    Of(HugePageSize),
    /// No pool: anonymous memory that the kernel can put on transparent huge pages.
    Thp,
}

/// How the load reads the model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LoadMode {
    /// llama.cpp's choice for the devices.
    #[default]
    Auto,
    /// Read into ordinary memory.
    None,
    /// Mapped.
    Mmap,
    /// Read into ordinary memory, locked against swap.
    Mlock,
    /// Mapped, locked against eviction.
    MmapMlock,
    /// Read past the page cache.
    DirectIo,
}

/// Parameters of [`Model::load`](crate::Model::load).
///
/// ```
/// use llama_hugepages::{HugePages, ModelParams};
///
/// let params = ModelParams::default().with_hugepages(HugePages::Prefer).with_gpu_layers(0);
/// assert_eq!(params.hugepages(), HugePages::Prefer);
/// ```
#[derive(Clone)]
#[must_use]
pub struct ModelParams {
    pub(crate) raw: ffi::llama_model_params,
    /// The first context of the model.
    pub(crate) context: Option<ffi::llama_context_params>,
    /// Keeps alive the memory that `raw` may point into.
    _env: Option<Arc<Env>>,
}

// SAFETY: the pointers in `raw` are null or point into `_env`, which is Send and Sync and lives as long as `raw`.
unsafe impl Send for ModelParams {}
// SAFETY: as above.
unsafe impl Sync for ModelParams {}

impl Default for ModelParams {
    /// llama.cpp's defaults, independent of the environment.
    fn default() -> Self {
        // SAFETY: takes no arguments and returns numbers and null pointers.
        let mut raw = unsafe { ffi::llama_model_default_params() };
        // SAFETY: takes no arguments and returns numbers.
        raw.hugepages = unsafe { ffi::ggml_hugepages_default_params() };
        Self {
            raw,
            context: None,
            _env: None,
        }
    }
}

impl ModelParams {
    /// Reads the environment variables of llama.cpp's programs, such as `LLAMA_ARG_HUGEPAGES`, `LLAMA_ARG_HUGEPAGE_POLICY`,
    /// `LLAMA_ARG_LOAD_MODE` or `LLAMA_ARG_N_GPU_LAYERS`, with the same rules. `on`, `enabled`, `true` and `1` mean on; `off`, `disabled`,
    /// `false` and `0` mean off. `LLAMA_ARG_NO_HUGEPAGES` with any value means off, and overrides `LLAMA_ARG_HUGEPAGES`.
    ///
    /// Reads no configuration file of llama.cpp. A variable for llama.cpp's log, such as `LLAMA_ARG_LOG_FILE`, affects that log.
    ///
    /// # Errors
    /// [`Error::Environment`] with the first variable whose value llama.cpp does not accept, even if the variable does not
    /// concern the load of a model.
    ///
    /// ```no_run
    /// use llama_hugepages::{Model, ModelParams};
    ///
    /// let params = ModelParams::from_env()?.with_gpu_layers(0); // wins over LLAMA_ARG_N_GPU_LAYERS
    /// let model = Model::load("model.gguf", &params)?;
    /// # Ok::<(), llama_hugepages::Error>(())
    /// ```
    pub fn from_env() -> Result<Self, Error> {
        let env = Arc::new(Env::read()?);
        Ok(Self {
            raw: env.model_params(),
            context: None,
            _env: Some(env),
        })
    }

    /// Policy for weights that the CPU reads.
    pub fn with_hugepages(mut self, hugepages: HugePages) -> Self {
        let raw = &mut self.raw.hugepages;
        raw.enabled = hugepages != HugePages::Off;
        match hugepages {
            HugePages::Off => {}
            HugePages::Require => raw.policy = ffi::GGML_HUGEPAGES_POLICY_REQUIRE,
            HugePages::Prefer => raw.policy = ffi::GGML_HUGEPAGES_POLICY_PREFER,
        }
        self
    }

    /// Size of the huge pages. It does not check that such pages exist.
    pub fn with_huge_page_size(mut self, size: PageSize) -> Self {
        self.raw.hugepages.page_size = match size {
            PageSize::Auto => ffi::GGML_HUGEPAGES_SIZE_AUTO as usize,
            PageSize::Thp => ffi::GGML_HUGEPAGES_SIZE_THP as usize,
            // A size that does not fit matches no pool.
            PageSize::Of(size) => usize::try_from(size.bytes()).unwrap_or(usize::MAX),
        };
        self
    }

    /// Number of threads that read the model onto huge pages; 0 derives it from the number of cores.
    pub fn with_huge_page_threads(mut self, threads: u16) -> Self {
        self.raw.hugepages.n_threads = threads.into();
        self
    }

    /// Keeps the weights in this hugetlbfs directory after the process ends, and attaches to weights in it. `auto` selects the first store
    /// that this user can use.
    ///
    /// # Errors
    /// [`Error::ZeroByte`] and [`Error::LongStorePath`].
    ///
    /// ```
    /// use llama_hugepages::{HugePages, ModelParams};
    ///
    /// let params = ModelParams::default().with_hugepages(HugePages::Require).with_resident_store("/run/llama-hugepages/store/2M")?;
    /// # Ok::<(), llama_hugepages::Error>(())
    /// ```
    pub fn with_resident_store(mut self, dir: impl AsRef<Path>) -> Result<Self, Error> {
        let path = dir.as_ref().as_os_str().as_bytes();
        let store = &mut self.raw.hugepages.store;
        if path.contains(&0) {
            return Err(Error::ZeroByte {
                what: "the path of a store",
            });
        }
        if path.len() >= store.len() {
            return Err(Error::LongStorePath {
                len: path.len(),
                max: store.len() - 1,
            });
        }
        store.fill(0);
        for (to, from) in store.iter_mut().zip(path) {
            *to = c_char::from_ne_bytes([*from]);
        }
        Ok(self)
    }

    /// The first context that the program will create. With huge pages, the load then counts its KV cache and compute buffers, too: it
    /// fails before it reads if their pages are missing, and keeps these pages for the context. Without this call, the load counts only
    /// the weights.
    ///
    /// ```no_run
    /// use llama_hugepages::{Context, ContextParams, HugePages, Model, ModelParams};
    ///
    /// let context = ContextParams::default().with_n_ctx(4096);
    /// let model = Model::load(
    ///     "model.gguf",
    ///     &ModelParams::default().with_hugepages(HugePages::Require).with_context(&context),
    /// )?;
    /// let context = Context::new(&model, &context)?; // its pages are there
    /// # Ok::<(), llama_hugepages::Error>(())
    /// ```
    pub fn with_context(mut self, context: &ContextParams) -> Self {
        self.context = Some(context.raw);
        self
    }

    /// As set by [`with_hugepages`](Self::with_hugepages) or the environment.
    pub fn hugepages(&self) -> HugePages {
        match self.raw.hugepages {
            raw if !raw.enabled => HugePages::Off,
            raw if raw.policy == ffi::GGML_HUGEPAGES_POLICY_PREFER => HugePages::Prefer,
            _ => HugePages::Require,
        }
    }

    /// How the load reads the model file.
    pub fn with_load_mode(mut self, mode: LoadMode) -> Self {
        self.raw.load_mode = match mode {
            LoadMode::Auto => ffi::LLAMA_LOAD_MODE_AUTO,
            LoadMode::None => ffi::LLAMA_LOAD_MODE_NONE,
            LoadMode::Mmap => ffi::LLAMA_LOAD_MODE_MMAP,
            LoadMode::Mlock => ffi::LLAMA_LOAD_MODE_MLOCK,
            LoadMode::MmapMlock => ffi::LLAMA_LOAD_MODE_MMAP_MLOCK,
            LoadMode::DirectIo => ffi::LLAMA_LOAD_MODE_DIRECT_IO,
        };
        self
    }

    /// As set by [`with_load_mode`](Self::with_load_mode) or the environment.
    pub fn load_mode(&self) -> LoadMode {
        match self.raw.load_mode {
            ffi::LLAMA_LOAD_MODE_NONE => LoadMode::None,
            ffi::LLAMA_LOAD_MODE_MMAP => LoadMode::Mmap,
            ffi::LLAMA_LOAD_MODE_MLOCK => LoadMode::Mlock,
            ffi::LLAMA_LOAD_MODE_MMAP_MLOCK => LoadMode::MmapMlock,
            ffi::LLAMA_LOAD_MODE_DIRECT_IO => LoadMode::DirectIo,
            _ => LoadMode::Auto,
        }
    }

    /// Number of layers on GPUs; a negative number means all layers. The CPU does not read their weights, so they take no
    /// huge page. Without a GPU backend it has no effect.
    pub fn with_gpu_layers(mut self, layers: i32) -> Self {
        self.raw.n_gpu_layers = layers;
        self
    }

    /// As set by [`with_gpu_layers`](Self::with_gpu_layers) or the environment.
    pub fn gpu_layers(&self) -> i32 {
        self.raw.n_gpu_layers
    }

    /// Whether llama.cpp may repack weights into a layout that is faster on this CPU: its `--repack`, on by default.
    pub fn with_repack(mut self, repack: bool) -> Self {
        self.raw.use_extra_bufts = repack;
        self
    }

    /// As set by [`with_repack`](Self::with_repack) or the environment.
    pub fn repack(&self) -> bool {
        self.raw.use_extra_bufts
    }

    /// Whether to check the weights for invalid values while loading. Off by default.
    pub fn with_check_tensors(mut self, check: bool) -> Self {
        self.raw.check_tensors = check;
        self
    }

    /// Whether to load only the vocabulary: such a model tokenizes, but creates no context. Off by default.
    pub fn with_vocab_only(mut self, vocab_only: bool) -> Self {
        self.raw.vocab_only = vocab_only;
        self
    }
}

impl fmt::Debug for ModelParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelParams")
            .field("hugepages", &self.hugepages())
            .field("load_mode", &self.load_mode())
            .field("gpu_layers", &self.gpu_layers())
            .field("repack", &self.repack())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_what_is_read() {
        for hugepages in [HugePages::Off, HugePages::Require, HugePages::Prefer] {
            assert_eq!(
                ModelParams::default().with_hugepages(hugepages).hugepages(),
                hugepages
            );
        }
        for mode in [
            LoadMode::Auto,
            LoadMode::None,
            LoadMode::Mmap,
            LoadMode::Mlock,
            LoadMode::MmapMlock,
            LoadMode::DirectIo,
        ] {
            assert_eq!(
                ModelParams::default().with_load_mode(mode).load_mode(),
                mode
            );
        }
    }

    #[test]
    fn a_path_of_a_store_that_does_not_fit_is_an_error() {
        let with = |path: &str| ModelParams::default().with_resident_store(path).map(|_| ());
        assert!(matches!(with("a\0b"), Err(Error::ZeroByte { .. })));
        let limit = ModelParams::default().raw.hugepages.store.len();
        assert!(with(&"a".repeat(limit - 1)).is_ok());
        let long = with(&"a".repeat(limit));
        assert!(matches!(long, Err(Error::LongStorePath { max, .. }) if max == limit - 1));
    }

    #[test]
    fn huge_pages_are_off_by_default() {
        assert_eq!(ModelParams::default().hugepages(), HugePages::Off);
    }
}
