//! Setting up llama.cpp and its log, once for the process.
//!
//! NUMA placement and the choice of devices are not here: see [`ModelParams`](crate::ModelParams).

use std::sync::Once;

use crate::ffi;
use crate::logging::{self, LogTarget};

/// Sets up llama.cpp and routes its log through this crate, see [`log_to`](crate::log_to). Every entry point of this crate calls this
/// function, so a program needs it only before raw [`ffi`] calls. Later calls do nothing.
///
/// ```
/// llama_hugepages::init();
/// llama_hugepages::init();
/// ```
pub fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        logging::install();
        // SAFETY: takes no arguments, and `ONCE` lets one thread call it once. Its counterpart `llama_backend_free` serves only MPI, so an
        // ending process need not call it.
        unsafe { ffi::llama_backend_init() };
    });
}

/// Sets the target of llama.cpp's log for the whole process.
///
/// ```
/// use llama_hugepages::{LogTarget, log_to};
///
/// log_to(LogTarget::LogCrate);
/// ```
pub fn log_to(target: LogTarget) {
    init();
    logging::set_target(target);
}
