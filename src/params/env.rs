//! The `LLAMA_ARG_*` environment variables, read by llama.cpp's own parser.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use crate::error::text;
use crate::{Error, ffi};

/// The shim's parameters from the environment. The parameters of a model point into this object.
#[derive(Debug)]
pub(super) struct Env(NonNull<ffi::lh_env>);

// SAFETY: the object belongs to no thread.
unsafe impl Send for Env {}
// SAFETY: nothing changes the object between `read` and `drop`.
unsafe impl Sync for Env {}

impl Env {
    /// Reads the current environment.
    pub(super) fn read() -> Result<Self, Error> {
        crate::init();
        let mut error = MaybeUninit::<ffi::lh_env_error>::zeroed();
        // SAFETY: room for one error, which outlives the call. The shim throws nothing.
        let env = unsafe { ffi::lh_env_init(error.as_mut_ptr()) };
        // SAFETY: characters only, zeroed above.
        let error = unsafe { error.assume_init() };
        NonNull::new(env)
            .map(Self)
            .ok_or_else(|| Error::Environment {
                variable: text(&error.variable),
                reason: text(&error.reason),
            })
    }

    /// Some fields point into `self`.
    pub(super) fn model_params(&self) -> ffi::llama_model_params {
        // SAFETY: the object is alive.
        unsafe { ffi::lh_env_model_params(self.0.as_ptr()) }
    }

    pub(super) fn context_params(&self) -> ffi::llama_context_params {
        // SAFETY: the object is alive.
        unsafe { ffi::lh_env_context_params(self.0.as_ptr()) }
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        // SAFETY: made by `lh_env_init`, and freed nowhere else.
        unsafe { ffi::lh_env_free(self.0.as_ptr()) };
    }
}
