//! Plays another process that takes the unreserved pages.

use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::pool::{Counts, PAGE};

/// Pages that the kernel has reserved for this process.
pub struct Taken {
    address: usize,
    length: usize,
}

impl Taken {
    /// Takes all usable pages; `None` if none is left, or if another process was faster.
    pub fn all() -> Option<Self> {
        let length = (Counts::read().usable() * PAGE) as usize;
        if length == 0 {
            return None;
        }
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        // SAFETY: a new mapping, whose address nobody else knows.
        let address =
            unsafe { mmap_anonymous(ptr::null_mut(), length, ProtFlags::READ, flags) }.ok()?;
        Some(Self {
            address: address as usize,
            length,
        })
    }

    pub fn pages(&self) -> u64 {
        self.length as u64 / PAGE
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // SAFETY: mapped above, and nobody else has the address.
        unsafe { munmap(self.address as *mut _, self.length) }.expect("the pages are mapped");
    }
}
