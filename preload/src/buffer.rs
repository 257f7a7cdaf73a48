//! An allocation of the program on huge pages: repacked weights, KV cache, compute buffers.
//!
//! The engine owns the memory. Calls that the kernel refuses on huge pages turn the pages of the buffer into ordinary memory first.

use std::ffi::c_int;
use std::ptr;

use crate::image::{Errno, is_hint};
use crate::next;
use crate::ranges::{Span, align_up, overlap, pointer};
use crate::vmas::{self, Block};

pub struct Buffer {
    /// Whole pages of the engine.
    pub span: Span,
    /// Bytes that the program asked for.
    pub size: usize,
    blocks: Vec<Block>,
}

/// Blocks of a buffer start at multiples of this, whatever the size of their pages.
const UNIT: usize = 2 << 20;

impl Buffer {
    /// A buffer of the engine at `address`.
    pub fn new(address: usize, size: usize) -> Self {
        let span = address..address + align_up(size, UNIT);
        let blocks = vmas::blocks_in(&span).unwrap_or_default();
        Self { span, size, blocks }
    }

    /// Whether a child gets the pages, which it copies at once: see `fork.rs`.
    pub fn show_to_children(&self, is_shown: bool) {
        let advice = if is_shown {
            libc::MADV_DOFORK
        } else {
            libc::MADV_DONTFORK
        };
        for block in self.blocks.iter().filter(|_| self.is_cut_at_pages()) {
            // SAFETY: a mapping of this buffer, which only gets another flag.
            unsafe { next::madvise(pointer(block.span.start), block.span.len(), advice) };
        }
    }

    /// Forgets the pages, in a child that has no memory at their addresses.
    pub fn forget(&mut self) {
        self.blocks.clear();
    }

    /// Whether no other buffer shares a page with this one.
    fn is_cut_at_pages(&self) -> bool {
        self.blocks
            .iter()
            .all(|block| block.span.start % block.unit == 0 && block.span.end % block.unit == 0)
    }

    /// Replaces the huge pages with ordinary memory that has the same bytes.
    ///
    /// # Errors
    /// As of `mmap`.
    pub fn become_ordinary(&mut self) -> Result<(), Errno> {
        if !self.is_cut_at_pages() {
            return Err(libc::ENOMEM);
        }
        while let Some(block) = self.blocks.last() {
            copy_in_place(&block.span)?;
            self.blocks.pop();
        }
        Ok(())
    }

    /// `mprotect`, `munmap` and other calls that need ordinary memory.
    ///
    /// # Errors
    /// As of the call.
    pub fn pass_on(&mut self, span: &Span, call: &dyn Fn(&Span) -> c_int) -> Result<(), Errno> {
        if self
            .blocks
            .iter()
            .any(|block| !overlap(&block.span, span).is_empty())
        {
            self.become_ordinary()?;
        }
        if call(span) == 0 {
            Ok(())
        } else {
            Err(next::errno())
        }
    }

    /// `madvise` of a part. Hints about huge pages and reading order change nothing.
    ///
    /// # Errors
    /// As of `madvise`.
    pub fn advise(&mut self, span: &Span, advice: c_int) -> Result<(), Errno> {
        let changes_nothing = is_hint(advice)
            || matches!(
                advice,
                libc::MADV_MERGEABLE | libc::MADV_UNMERGEABLE | libc::MADV_POPULATE_WRITE
            );
        if changes_nothing && !self.blocks.is_empty() {
            return Ok(());
        }
        self.pass_on(span, &|part| {
            // SAFETY: the caller of the program's madvise answers for it.
            unsafe { next::madvise(pointer(part.start), part.len(), advice) }
        })
    }

    /// In the child of a fork: private memory, with the bytes that the parent has now. Without memory for it, the child has none there.
    pub fn separate(&mut self) {
        if !self.is_cut_at_pages() || self.become_ordinary().is_ok() {
            return;
        }
        for block in &self.blocks {
            // SAFETY: the child must not write to the memory of its parent.
            unsafe { next::munmap(pointer(block.span.start), block.span.len()) };
        }
        self.blocks.clear();
    }

    /// Whether a child would share memory with its parent.
    pub fn needs_separation(&self) -> bool {
        !self.blocks.is_empty() && self.is_cut_at_pages()
    }
}

/// Moves a copy of the memory over itself.
fn copy_in_place(span: &Span) -> Result<(), Errno> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: new memory.
    let copy = unsafe { next::mmap(ptr::null_mut(), span.len(), prot, flags, -1, 0) };
    if copy == libc::MAP_FAILED {
        return Err(next::errno());
    }
    // SAFETY: both ranges are mapped, and the copy is new.
    unsafe {
        ptr::copy_nonoverlapping(
            pointer(span.start).cast::<u8>(),
            copy.cast::<u8>(),
            span.len(),
        );
    };
    let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the copy belongs to this function, and the target to the buffer.
    let moved = unsafe { next::mremap(copy, span.len(), span.len(), how, pointer(span.start)) };
    if moved == libc::MAP_FAILED {
        let error = next::errno();
        // SAFETY: mapped above.
        unsafe { next::munmap(copy, span.len()) };
        return Err(error);
    }
    Ok(())
}
