//! The interposed allocations: large aligned ones, as ggml makes for repacked weights, KV caches and compute buffers.
//!
//! `malloc` and `calloc` stay as they are, because ggml aligns its buffers. A buffer of the engine starts at a page, while small pointers
//! of an allocator do not, so `free` compares the lowest bits first.

use std::ffi::{c_int, c_void};
use std::ptr;

use libc::size_t;

use crate::engine::{self, Allocated};
use crate::lock::Inside;
use crate::{memory, next, regions};

/// Smaller allocations would fill less than half of a huge page.
const LEAST: usize = 1 << 20;

/// No machine has so much memory. The engine would count its pages.
const MOST: usize = 1 << 46;

/// Every buffer starts at a multiple of this.
const PAGE: usize = 4096;

/// Tries the engine. `None`: the next library allocates.
fn allocate(alignment: usize, size: usize) -> Option<Result<*mut c_void, c_int>> {
    if !(LEAST..MOST).contains(&size)
        || memory::least() == usize::MAX
        || !alignment.is_power_of_two()
    {
        return None;
    }
    let _inside = Inside::enter()?;
    match engine::allocate(alignment, size, memory::least()) {
        Allocated::Plain => None,
        Allocated::At(address) => Some(Ok(ptr::with_exposed_provenance_mut(address))),
        Allocated::Failed => Some(Err(libc::ENOMEM)),
    }
}

/// Whether a pointer may be a buffer of the engine.
#[inline]
fn may_be_buffer(ptr: *mut c_void) -> bool {
    let address = ptr.addr();
    address.is_multiple_of(PAGE) && regions::may_touch(&(address..address.wrapping_add(1)))
}

/// The size of a buffer of the engine.
fn size_of_buffer(ptr: *mut c_void) -> Option<usize> {
    let _inside = may_be_buffer(ptr).then(Inside::enter)??;
    regions::lock().buffer(ptr.addr()).map(|buffer| buffer.size)
}

/// # Safety
/// As of `posix_memalign`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn posix_memalign(
    out: *mut *mut c_void,
    alignment: size_t,
    size: size_t,
) -> c_int {
    // posix_memalign(3): a multiple of the size of a pointer
    let is_valid = alignment.is_multiple_of(size_of::<*mut c_void>());
    match is_valid.then(|| allocate(alignment, size)).flatten() {
        Some(Ok(address)) => {
            // SAFETY: the caller's promise.
            unsafe { *out = address };
            0
        }
        Some(Err(error)) => error,
        // SAFETY: the caller's promise.
        None => unsafe { next::posix_memalign(out, alignment, size) },
    }
}

/// # Safety
/// As of `aligned_alloc`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn aligned_alloc(alignment: size_t, size: size_t) -> *mut c_void {
    match allocate(alignment, size) {
        Some(result) => pointer_of(result),
        // SAFETY: the caller's promise.
        None => unsafe { next::aligned_alloc(alignment, size) },
    }
}

/// # Safety
/// As of `memalign`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn memalign(alignment: size_t, size: size_t) -> *mut c_void {
    match allocate(alignment, size) {
        Some(result) => pointer_of(result),
        // SAFETY: the caller's promise.
        None => unsafe { next::memalign(alignment, size) },
    }
}

fn pointer_of(result: Result<*mut c_void, c_int>) -> *mut c_void {
    result.unwrap_or_else(|error| {
        next::set_errno(error);
        ptr::null_mut()
    })
}

/// # Safety
/// As of `free`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn free(ptr: *mut c_void) {
    if may_be_buffer(ptr)
        && let Some(_inside) = Inside::enter()
    {
        // free(3): it preserves errno.
        let error = next::errno();
        // The lock ends with this statement, because the engine may wait for a load.
        let buffer = regions::lock().take_buffer(ptr.addr());
        if let Some(buffer) = buffer {
            engine::free(&buffer);
            return next::set_errno(error);
        }
    }
    // SAFETY: the caller's promise.
    unsafe { next::free(ptr) }
}

/// # Safety
/// As of `realloc`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn realloc(ptr: *mut c_void, size: size_t) -> *mut c_void {
    let Some(old) = size_of_buffer(ptr) else {
        // SAFETY: the caller's promise.
        return unsafe { next::realloc(ptr, size) };
    };
    if size == 0 {
        // SAFETY: a buffer of the engine.
        unsafe { free(ptr) };
        return ptr::null_mut();
    }
    let new = match allocate(PAGE, size) {
        Some(result) => pointer_of(result),
        // SAFETY: a size.
        None => unsafe { libc::malloc(size) },
    };
    if !new.is_null() {
        // SAFETY: both are allocated, with at least so many bytes.
        unsafe { ptr::copy_nonoverlapping(ptr.cast::<u8>(), new.cast::<u8>(), old.min(size)) };
        // SAFETY: a buffer of the engine.
        unsafe { free(ptr) };
    }
    new
}

/// # Safety
/// As of `reallocarray`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn reallocarray(ptr: *mut c_void, n: size_t, size: size_t) -> *mut c_void {
    if size_of_buffer(ptr).is_none() {
        // SAFETY: the caller's promise.
        return unsafe { next::reallocarray(ptr, n, size) };
    }
    let Some(size) = n.checked_mul(size) else {
        return pointer_of(Err(libc::ENOMEM));
    };
    // SAFETY: the caller's promise.
    unsafe { realloc(ptr, size) }
}

/// # Safety
/// As of `malloc_usable_size`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn malloc_usable_size(ptr: *mut c_void) -> size_t {
    match size_of_buffer(ptr) {
        Some(size) => size,
        // SAFETY: the caller's promise.
        None => unsafe { next::malloc_usable_size(ptr) },
    }
}
