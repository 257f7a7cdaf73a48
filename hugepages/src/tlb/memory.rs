//! Memory on pages of one kind.
//!
//! A [`Mapping`] is address space. A [`Memory`] has all its pages, so that reads cause no page fault.

use std::ffi::c_void;
use std::io;
use std::ptr;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::pages::{ADVISE_BASE, ADVISE_HUGE, MAP, POPULATE, RESERVE, base_page, refused};
use super::stop::go_on;
use super::{Backing, Pages, Stopped, Unavailable};
use crate::kernel::{Root, thp};

/// Address space for pages of one kind, without pages. Unmapped when dropped.
///
/// ```text
/// outer  |..........|=========== inner ===========|....|      . = PROT_NONE, so that no other mapping joins it
///                   ^ aligned to the largest possible page
/// ```
pub struct Mapping {
    outer: *mut c_void,
    outer_len: usize,
    inner: *mut c_void,
    inner_len: usize,
    pages: Pages,
    bytes: usize,
}

impl Mapping {
    /// Maps `bytes`. This reserves the `HugeTLB` pages, so a shortage of pages is an error of this call.
    pub fn new(pages: Pages, bytes: u64) -> Result<Self, Unavailable> {
        let size = match pages {
            Pages::Huge(size) => size.bytes() as usize,
            // Base pages get the alignment of THP, so that only the page size differs.
            Pages::Base | Pages::Thp => thp_bytes(),
        };
        let too_large = Unavailable::Refused {
            what: RESERVE,
            why: Errno::NOMEM,
        };
        let inner_len = pages.mapped(bytes) as usize;
        let outer_len = inner_len.checked_add(2 * size).ok_or(too_large)?;
        let nothing = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice overlaps nothing.
        let outer =
            unsafe { mmap_anonymous(ptr::null_mut(), outer_len, ProtFlags::empty(), nothing) }
                .map_err(refused(RESERVE))?;
        let start = (outer as usize + base_page() as usize).next_multiple_of(size);
        let mut mapping = Self {
            outer,
            outer_len,
            inner: outer.wrapping_byte_add(start - outer as usize),
            inner_len,
            pages,
            bytes: bytes as usize,
        };
        mapping.fill()?;
        Ok(mapping)
    }

    fn fill(&mut self) -> Result<(), Unavailable> {
        let mut flags = MapFlags::PRIVATE | MapFlags::FIXED;
        if let Pages::Huge(size) = self.pages {
            // mmap(2): log2 of the page size in the six bits from MAP_HUGE_SHIFT on.
            let log2 = size.bytes().trailing_zeros();
            flags |= MapFlags::HUGETLB
                | MapFlags::from_bits_retain(log2 << libc::MAP_HUGE_SHIFT.cast_unsigned());
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: `inner..inner + inner_len` is in the address space that `self` reserved and nobody else uses.
        unsafe { mmap_anonymous(self.inner, self.inner_len, access, flags) }
            .map_err(refused(MAP))?;
        self.advise(0..self.inner_len, Advice::LinuxDontDump)
            .map_err(refused(MAP))?;
        match self.pages {
            Pages::Base => match self.advise(0..self.inner_len, Advice::LinuxNoHugepage) {
                // A kernel without THP does not know the advice and needs none.
                Ok(()) | Err(Errno::INVAL) => Ok(()),
                Err(why) => Err(refused(ADVISE_BASE)(why)),
            },
            Pages::Thp => self
                .advise(0..self.inner_len, Advice::LinuxHugepage)
                .map_err(refused(ADVISE_HUGE)),
            Pages::Huge(_) => Ok(()),
        }
    }

    fn advise(&mut self, range: std::ops::Range<usize>, advice: Advice) -> Result<(), Errno> {
        // SAFETY: the range is in our own mapping, and no caller passes an advice that discards data.
        unsafe {
            madvise(
                self.inner.wrapping_byte_add(range.start),
                range.len(),
                advice,
            )
        }
    }

    /// Touches every page, one after the other, and measures the time.
    ///
    /// For base pages and THP this is a store to each base page, as in a program. For `HugeTLB` pages it is one system call for
    /// each page, because a store ends in SIGBUS if a cgroup limit refuses the page. The kernel zeroes the page in both cases.
    pub fn touch(mut self, stop: &AtomicBool) -> Result<(Memory, Touch), TouchError> {
        let faults = page_faults();
        let start = Instant::now();
        match self.pages {
            Pages::Huge(size) => {
                let size = size.bytes() as usize;
                for at in (0..self.inner_len).step_by(size) {
                    go_on(stop)?;
                    self.advise(at..at + size, Advice::LinuxPopulateWrite)
                        .map_err(refused(POPULATE))?;
                }
            }
            Pages::Base | Pages::Thp => {
                const STEP: usize = 16 << 20;
                for chunk in (0..self.inner_len).step_by(STEP) {
                    go_on(stop)?;
                    let end = self.inner_len.min(chunk + STEP);
                    for at in (chunk..end).step_by(base_page() as usize) {
                        let byte = self.inner.wrapping_byte_add(at).cast::<u8>();
                        // SAFETY: within our own writable mapping, to which no reference exists yet.
                        unsafe { byte.write_volatile(1) };
                    }
                }
            }
        }
        let touch = Touch {
            time: start.elapsed(),
            faults: page_faults() - faults,
            bytes: self.inner_len as u64,
        };
        Ok((Memory(self), touch))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing borrows from it any more. The call fails only for a range that is not mapped.
        let _ = unsafe { munmap(self.outer, self.outer_len) };
    }
}

/// The cost of the first touch.
#[derive(Debug, Clone, Copy)]
pub struct Touch {
    /// Wall time.
    pub time: Duration,
    /// Page faults that the kernel counted for this thread.
    pub faults: u64,
    /// Bytes of all touched pages.
    pub bytes: u64,
}

/// Why the first touch failed.
#[derive(Debug, thiserror::Error)]
pub enum TouchError {
    /// The kernel refused a page.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The user cancelled.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Memory with all its pages.
pub struct Memory(Mapping);

impl Memory {
    /// The whole memory.
    pub fn words(&mut self) -> &mut [u64] {
        let words = self.0.bytes / size_of::<u64>();
        // SAFETY: mapped, writable, aligned, zeroed by the kernel, within the mapping, and borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.0.inner.cast(), words) }
    }

    /// Reads the backing from the kernel.
    pub fn backing(&self) -> io::Result<Backing> {
        let start = self.0.inner as u64;
        Backing::read(start..start + self.0.inner_len as u64)
    }
}

/// Minor and major faults of this thread so far.
fn page_faults() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: room for one struct of numbers, which outlives the call.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    // SAFETY: numbers only, zeroed above.
    let usage = unsafe { usage.assume_init() };
    (usage.ru_minflt + usage.ru_majflt).cast_unsigned()
}

/// Bytes of a THP; 2 MiB if the kernel does not report it, because a larger alignment does no harm.
fn thp_bytes() -> usize {
    thp::page_bytes(&Root::system())
        .filter(|bytes| bytes.is_power_of_two())
        .unwrap_or(2 << 20)
        .max(base_page() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    static GOES_ON: AtomicBool = AtomicBool::new(false);

    #[test]
    fn base_memory_is_all_there_has_no_thp_and_one_fault_a_page() {
        let bytes = 32 << 20;
        let mapping = Mapping::new(Pages::Base, bytes).unwrap();
        let (mut memory, touch) = mapping.touch(&GOES_ON).unwrap();
        assert_eq!(memory.words().len() as u64 * 8, bytes);
        let backing = memory.backing().unwrap();
        assert_eq!(backing.kernel_page_bytes, base_page());
        assert_eq!(backing.resident_bytes, bytes);
        assert_eq!((backing.thp_bytes, backing.hugetlb_bytes), (0, 0));
        // Some kernels map several small pages in one fault, but none needs two faults for one page.
        assert!((1..=bytes / base_page() + 8).contains(&touch.faults));
    }

    #[test]
    fn a_dropped_mapping_is_gone() {
        let mapping = Mapping::new(Pages::Base, 8 << 20).unwrap();
        let (memory, _) = mapping.touch(&GOES_ON).unwrap();
        let start = memory.0.inner as u64;
        let range = start..start + (8 << 20);
        drop(memory);
        // Another thread may use a part of its addresses by now.
        assert!(Backing::read(range).unwrap().resident_bytes < 4 << 20);
    }

    #[test]
    fn who_asks_to_stop_is_heard_before_the_first_page() {
        let mapping = Mapping::new(Pages::Base, 8 << 20).unwrap();
        let error = mapping.touch(&AtomicBool::new(true)).err().unwrap();
        assert!(matches!(error, TouchError::Stopped(_)));
    }
}
