//! Setting up llama.cpp, once for the process.
//!
//! NUMA placement and the choice of devices are not here: see [`ModelParams`](crate::ModelParams).

use std::sync::Once;

use crate::{ffi, logging};

/// Sets up llama.cpp and routes its log through this crate, see [`log_to`](crate::log_to). Every entry point of this crate does it by itself, so
/// calling it is only needed before raw [`ffi`] calls. Calls after the first do nothing.
///
/// ```
/// llama_hugepages::init();
/// llama_hugepages::init();
/// ```
pub fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        logging::install();
        // SAFETY: takes no arguments; `ONCE` keeps two threads from being in it at the same time.
        // It has a counterpart, `llama_backend_free`, for MPI alone: a process that ends needs no call of it.
        unsafe { ffi::llama_backend_init() };
    });
}
