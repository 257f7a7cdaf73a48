//! A mutex that a fork handler can take in one function and release in another, also in the child.

use std::cell::{Cell, UnsafeCell};
use std::ops::{Deref, DerefMut};

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

/// Marks the code of this library on one thread.
pub struct Inside(());

impl Inside {
    /// `None` if the thread is already inside.
    pub fn enter() -> Option<Self> {
        (!IS_INSIDE.replace(true)).then_some(Self(()))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        IS_INSIDE.set(false);
    }
}
