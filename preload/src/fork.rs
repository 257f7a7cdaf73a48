//! What a child of `fork` gets: the weights, which nobody writes, as the file mapping that the program asked for; and copies of the
//! buffers, because their huge pages are shared memory. The parent waits until the child has its copies.
//!
//! A child of `_Fork` or of a system call gets no copy, because no handler runs: it has no memory at the addresses of the buffers, and
//! returns no page to the pool.

use std::ffi::c_int;
use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use crate::lock::{Inside, Lock};
use crate::{engine, regions};

/// The pipe of the running fork, which the child closes when it has its copies; -1 for none.
static READ: AtomicI32 = AtomicI32::new(-1);
static WRITE: AtomicI32 = AtomicI32::new(-1);

/// The process that the handlers know.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Whether this is the process that loaded the regions, or a child with copies of them.
pub fn is_this_process() -> bool {
    PROCESS.load(Ordering::Relaxed) == process::id()
}

/// Installs the handlers before those of the program. So the last handler before a fork and the first one after it are ours, and those of
/// the program may free buffers.
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        PROCESS.store(process::id(), Ordering::Relaxed);
        // SAFETY: the functions live as long as the process, because nothing unloads this library.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    });
}

extern "C" fn before() {
    engine::raw().into_iter().for_each(Lock::acquire);
    regions::raw().acquire();
    let regions = regions_held();
    regions
        .images
        .iter_mut()
        .for_each(crate::image::Image::share_with_child);
    if regions
        .buffers
        .iter()
        .any(crate::buffer::Buffer::needs_separation)
    {
        let mut ends: [c_int; 2] = [-1; 2];
        // SAFETY: room for two files.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } == 0 {
            READ.store(ends[0], Ordering::Relaxed);
            WRITE.store(ends[1], Ordering::Relaxed);
            // Without the pipe, the parent would not wait, and the child gets no memory at the addresses of the buffers.
            regions
                .buffers
                .iter()
                .for_each(|buffer| buffer.show_to_children(true));
        }
    }
}

extern "C" fn in_parent() {
    let (read, write) = take_pipe();
    if read != -1 {
        close(write);
        let mut byte = 0u8;
        // SAFETY: room for one byte. The read ends when the child closes its end, or dies.
        while unsafe { libc::read(read, (&raw mut byte).cast(), 1) } == -1
            && crate::next::errno() == libc::EINTR
        {}
        close(read);
        regions_held()
            .buffers
            .iter()
            .for_each(|buffer| buffer.show_to_children(false));
    }
    release();
}

extern "C" fn in_child() {
    let inside = Inside::enter();
    PROCESS.store(process::id(), Ordering::Relaxed);
    let (read, write) = take_pipe();
    for buffer in &mut regions_held().buffers {
        if read == -1 {
            buffer.forget();
        } else {
            buffer.separate();
        }
    }
    close(read);
    close(write);
    drop(inside);
    release();
}

fn release() {
    regions::raw().release();
    engine::raw().into_iter().for_each(Lock::release);
}

/// The regions, which the handler before the fork locked.
fn regions_held() -> &'static mut regions::Regions {
    // SAFETY: this thread, or the thread of which it is the copy, holds the lock until the end of the handler.
    unsafe { regions::raw().data_while_acquired() }
}

fn take_pipe() -> (c_int, c_int) {
    (
        READ.swap(-1, Ordering::Relaxed),
        WRITE.swap(-1, Ordering::Relaxed),
    )
}

fn close(file: c_int) {
    if file != -1 {
        // SAFETY: opened by the handler before the fork.
        unsafe { libc::close(file) };
    }
}
