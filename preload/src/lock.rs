//! A mutex that a fork handler can take in one function and release in another, also in the child.

use std::cell::{Cell, UnsafeCell};
use std::ffi::c_int;
use std::ops::{Deref, DerefMut};

use crate::ffi;

/// A mutex of the C library.
pub struct Lock<T> {
    raw: UnsafeCell<libc::pthread_mutex_t>,
    data: UnsafeCell<T>,
}

// SAFETY: the mutex admits one thread at a time to the data.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    pub const fn new(data: T) -> Self {
        Self {
            raw: UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER),
            data: UnsafeCell::new(data),
        }
    }

    pub fn lock(&self) -> Guard<'_, T> {
        self.acquire();
        Guard(self)
    }

    /// Locks without a guard, for a fork handler.
    pub fn acquire(&self) {
        // SAFETY: initialized, and never moved because it is static.
        unsafe { libc::pthread_mutex_lock(self.raw.get()) };
    }

    /// The data.
    ///
    /// # Safety
    /// Between [`Lock::acquire`] and [`Lock::release`] only, and once at a time.
    #[expect(clippy::mut_from_ref, reason = "the caller holds the mutex")]
    pub unsafe fn data_while_acquired(&self) -> &mut T {
        // SAFETY: the caller holds the mutex.
        unsafe { &mut *self.data.get() }
    }

    /// Releases what [`Lock::acquire`] locked on this thread.
    pub fn release(&self) {
        // SAFETY: initialized, and locked by this thread, or by the thread of which it is the copy in a child.
        unsafe { libc::pthread_mutex_unlock(self.raw.get()) };
    }
}

pub struct Guard<'a, T>(&'a Lock<T>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this guard holds the mutex.
        unsafe { &*self.0.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard holds the mutex.
        unsafe { &mut *self.0.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.0.release();
    }
}

thread_local! {
    /// Whether this thread runs code of this library or of the engine, whose calls go to the next library unchanged.
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}
const PTHREAD_CANCEL_DISABLE: c_int = 1;

/// Marks the code of this library on one thread. `pthread_cancel` waits for its end: none of the interposed functions is a cancellation
/// point, but functions that the code calls are.
pub struct Inside {
    cancel_state: c_int,
}

impl Inside {
    /// `None` if the thread is already inside, or a thread of the engine, which works for a thread that holds the locks.
    pub fn enter() -> Option<Self> {
        // SAFETY: reads a variable of this thread.
        if unsafe { ffi::ggml_hugepages_is_own_thread() } || IS_INSIDE.replace(true) {
            return None;
        }
        let mut cancel_state = 0;
        // SAFETY: room for the old state.
        unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &raw mut cancel_state) };
        Some(Self { cancel_state })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // SAFETY: the state from before; the old one is not wanted.
        unsafe { pthread_setcancelstate(self.cancel_state, std::ptr::null_mut()) };
        IS_INSIDE.set(false);
    }
}
