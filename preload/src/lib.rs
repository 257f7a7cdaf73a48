//! `libhugepages_preload.so`: llama.cpp's models on huge pages in programs that do not know about them.
//!
//! `LD_PRELOAD` places this library between a program and the C library. It contains the engine of llama-hugepages, with hidden symbols:
//!
//! ```text
//! program     mmap, munmap, mprotect, madvise, mlock …      posix_memalign, free, realloc …
//!                 |                                              |
//! memory.rs   a model?  regions.rs: one of ours?  heap.rs   large, and the program has a model?
//!                 |no               |no                          |no
//! next.rs     the C library, or another preload library such as jemalloc
//! ```
//!
//! - `image.rs` a mapped model file, `buffer.rs` an allocation; both end the huge pages under calls that the kernel refuses for them
//! - `engine.rs` the calls to the engine, `ffi.rs` their declarations, `gguf.rs` the tensors of a file, `fork.rs` the memory of children, `log.rs` the output
//! - `files.rs`, `kept.rs`, `lock.rs`, `ranges.rs`, `vmas.rs` the tools
//!
//! A call that has nothing to do with a model costs a comparison: of its size, of the alignment of its pointer, or of its addresses with
//! the lowest and the highest address of all regions. It takes no lock, and allocates nothing.

#![cfg_attr(
    test,
    allow(
        dead_code,
        reason = "the test program interposes nothing, so it uses a part"
    )
)]

mod buffer;
mod engine;
mod ffi;
mod files;
mod fork;
mod gguf;
mod heap;
mod image;
mod kept;
mod lock;
mod log;
mod memory;
mod next;
mod ranges;
mod regions;
mod vmas;

/// Runs when the library is loaded, before `main`.
extern "C" fn start() {
    next::find_all();
    memory::read_environment();
}

#[cfg_attr(not(test), used)]
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
static START: extern "C" fn() = start;
