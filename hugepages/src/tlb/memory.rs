//! Memory on pages of one kind, and its backing as the kernel reports it.
//!
//! A [`Mapping`] is address space. A [`Memory`] has all its pages, so that reads cause no page fault.

use std::ffi::c_void;
use std::fmt;
use std::fs;
use std::ptr;
use std::str::FromStr;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use serde::Serialize;

use super::{Stopped, go_on};
use crate::kernel::{HugePageSize, ParseHugePageSizeError, Pool, Root, sizes};
use crate::size::ByteSize;

/// The kind of pages to request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Only base pages: `MADV_NOHUGEPAGE`.
    Base,
    /// THP, as far as the kernel provides them for `MADV_HUGEPAGE`.
    Thp,
    /// `HugeTLB` pages of one pool.
    Huge(HugePageSize),
}

impl Pages {
    /// All kinds of this machine: base pages, THP, and the page size of each pool, in ascending order.
    pub fn all(root: &Root) -> Vec<Self> {
        [Self::Base, Self::Thp]
            .into_iter()
            .chain(sizes::all(root).into_iter().map(Self::Huge))
            .collect()
    }

    /// `bytes` rounded up to whole pages.
    pub fn mapped(self, bytes: u64) -> u64 {
        match self {
            Self::Base | Self::Thp => bytes.next_multiple_of(base_page()),
            Self::Huge(size) => size.pages_for(bytes) * size.bytes(),
        }
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => ByteSize::new(base_page()).fmt(f),
            Self::Thp => f.pad("THP"),
            Self::Huge(size) => f.pad(&size.to_string()),
        }
    }
}

impl Serialize for Pages {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&match self {
            Self::Base => "base".to_owned(),
            Self::Thp => "thp".to_owned(),
            Self::Huge(size) => size.short_name(),
        })
    }
}

impl FromStr for Pages {
    type Err = ParseHugePageSizeError;

    /// `thp`; `base` or the size of the machine's base page, such as `4K`; or the size of a huge page.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("thp") {
            return Ok(Self::Thp);
        }
        if text.eq_ignore_ascii_case("base") {
            return Ok(Self::Base);
        }
        let size: HugePageSize = text.parse()?;
        Ok(if size.bytes() == base_page() {
            Self::Base
        } else {
            Self::Huge(size)
        })
    }
}

/// Bytes of a base page.
pub fn base_page() -> u64 {
    rustix::param::page_size() as u64
}

/// Why memory of one kind is unavailable on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The kernel has no pool of that size.
    #[error("this kernel has no pages of {0}")]
    NoSuchSize(HugePageSize),
    /// Too few pages in the pool.
    #[error("the pool of {size} pages has {usable} free, {needed} needed")]
    PoolShort {
        /// The pool.
        size: HugePageSize,
        /// Pages that the memory takes.
        needed: u64,
        /// Free pages that are not reserved.
        usable: u64,
    },
    /// A system call failed.
    #[error("{what}: {why}")]
    Refused {
        /// What failed.
        what: &'static str,
        /// Its error.
        why: Errno,
    },
    /// The kernel used another page size.
    #[error("the kernel used pages of {got}")]
    OtherPages {
        /// Page size in `smaps`.
        got: ByteSize,
    },
}

impl Unavailable {
    /// The hint for the user.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::PoolShort {
                size,
                needed,
                usable,
            } => Some(format!(
                "hugepages pool reserve {} --size {}",
                needed - usable,
                size.short_name()
            )),
            Self::Refused {
                what: POPULATE,
                why: Errno::FAULT,
            } => Some("a cgroup limit may refuse the page: hugepages doctor".to_owned()),
            Self::Refused {
                what: ADVISE_HUGE,
                why: Errno::INVAL,
            } => Some("this kernel has no THP".to_owned()),
            _ => None,
        }
    }
}

const RESERVE: &str = "cannot reserve address space";
const MAP: &str = "cannot map memory";
const ADVISE_HUGE: &str = "cannot request THP";
const ADVISE_BASE: &str = "cannot request base pages";
const POPULATE: &str = "cannot populate a page";

fn refused(what: &'static str) -> impl Fn(Errno) -> Unavailable {
    move |why| Unavailable::Refused { what, why }
}

/// Checks that the pool has enough free pages. Overcommit does not count, because it would grow the pool.
pub(super) fn check_pool(root: &Root, pages: Pages, bytes: u64) -> Result<(), Unavailable> {
    let Pages::Huge(size) = pages else {
        return Ok(());
    };
    let pool = Pool::read(root, size).ok_or(Unavailable::NoSuchSize(size))?;
    let (needed, usable) = (
        size.pages_for(bytes),
        pool.free.saturating_sub(pool.reserved),
    );
    if usable < needed {
        return Err(Unavailable::PoolShort {
            size,
            needed,
            usable,
        });
    }
    Ok(())
}

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
    pub fn backing(&self) -> std::io::Result<Backing> {
        let start = self.0.inner as u64;
        let smaps = fs::read_to_string("/proc/self/smaps")?;
        let mut backing = Backing::from_smaps(&smaps, start..start + self.0.inner_len as u64);
        // A kernel without NUMA has no such file.
        let numa_maps = fs::read_to_string("/proc/self/numa_maps").unwrap_or_default();
        backing.nodes = nodes(&numa_maps, start);
        Ok(backing)
    }
}

/// The backing of memory, from `/proc/self/smaps` and `numa_maps`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Backing {
    /// `KernelPageSize`
    pub kernel_page_bytes: u64,
    /// `Rss` plus `Private_Hugetlb`, which `Rss` does not include.
    pub resident_bytes: u64,
    /// `AnonHugePages`: of these, on THP.
    pub thp_bytes: u64,
    /// `Private_Hugetlb`: of these, on `HugeTLB` pages.
    pub hugetlb_bytes: u64,
    /// Number of pages on each NUMA node. Empty if the kernel does not report it.
    pub nodes: Vec<(u32, u64)>,
}

impl Backing {
    /// Sums the mappings of a range: an advice may have split it.
    fn from_smaps(smaps: &str, range: std::ops::Range<u64>) -> Self {
        let mut backing = Self::default();
        let mut ours = false;
        for line in smaps.lines() {
            let mut words = line.split_ascii_whitespace();
            let first = words.next().unwrap_or_default();
            let Some(field) = first.strip_suffix(':') else {
                let start = first
                    .split_once('-')
                    .and_then(|(start, _)| u64::from_str_radix(start, 16).ok());
                ours = start.is_some_and(|start| range.contains(&start));
                continue;
            };
            let kib: Option<u64> = words.next().and_then(|number| number.parse().ok());
            let (true, Some(kib)) = (ours, kib) else {
                continue;
            };
            let bytes = kib * 1024;
            match field {
                "KernelPageSize" => backing.kernel_page_bytes = bytes,
                "Rss" => backing.resident_bytes += bytes,
                "AnonHugePages" => backing.thp_bytes += bytes,
                "Private_Hugetlb" => {
                    backing.hugetlb_bytes += bytes;
                    backing.resident_bytes += bytes;
                }
                _ => {}
            }
        }
        backing
    }
}

/// `N0=512 N1=3` of the line that begins with the address.
fn nodes(numa_maps: &str, start: u64) -> Vec<(u32, u64)> {
    let address = format!("{start:08x}");
    let line = numa_maps
        .lines()
        .find(|line| line.split(' ').next() == Some(&address));
    let fields = line.unwrap_or_default().split(' ');
    fields
        .filter_map(|field| {
            let (node, pages) = field.strip_prefix('N')?.split_once('=')?;
            Some((node.parse().ok()?, pages.parse().ok()?))
        })
        .collect()
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
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .filter(|bytes: &usize| bytes.is_power_of_two())
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
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        // Another thread may use a part of its addresses by now.
        assert!(Backing::from_smaps(&smaps, range).resident_bytes < 4 << 20);
    }

    #[test]
    fn who_asks_to_stop_is_heard_before_the_first_page() {
        let mapping = Mapping::new(Pages::Base, 8 << 20).unwrap();
        let error = mapping.touch(&AtomicBool::new(true)).err().unwrap();
        assert!(matches!(error, TouchError::Stopped(_)));
    }

    #[test]
    fn kinds_of_pages_read_as_they_are_typed() {
        assert_eq!("thp".parse(), Ok(Pages::Thp));
        assert_eq!("THP".parse(), Ok(Pages::Thp));
        assert_eq!("base".parse(), Ok(Pages::Base));
        let base = HugePageSize::new(base_page()).unwrap();
        assert_eq!(base.short_name().parse(), Ok(Pages::Base));
        let gigabyte = HugePageSize::new(1 << 30).unwrap();
        assert_eq!("1G".parse(), Ok(Pages::Huge(gigabyte)));
        for text in ["", "-1", "1e99", "3M", "huge"] {
            assert!(text.parse::<Pages>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_pool_of_the_machine_is_listed_in_ascending_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path()).unwrap();
        assert_eq!(Pages::all(&root), [Pages::Base, Pages::Thp]);
        // The page sizes of arm64.
        for kib in [32768, 1_048_576, 64, 2048] {
            let folder = format!("sys/kernel/mm/hugepages/hugepages-{kib}kB");
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let labels: Vec<_> = Pages::all(&root)[2..]
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(labels, ["64 KiB", "2 MiB", "32 MiB", "1 GiB"]);
    }

    #[test]
    fn pages_that_overcommit_would_add_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sys/kernel/mm/hugepages/hugepages-2048kB");
        fs::create_dir_all(&folder).unwrap();
        for (name, value) in [
            ("nr_hugepages", 10),
            ("free_hugepages", 9),
            ("resv_hugepages", 4),
            ("surplus_hugepages", 0),
            ("nr_overcommit_hugepages", 100),
        ] {
            fs::write(folder.join(name), value.to_string()).unwrap();
        }
        let root = Root::at(dir.path()).unwrap();
        let size = HugePageSize::new(2 << 20).unwrap();
        let check = |pages: u64| check_pool(&root, Pages::Huge(size), pages << 21);
        assert_eq!(check(5), Ok(()));
        let short = check(6).unwrap_err();
        assert_eq!(
            short.to_string(),
            "the pool of 2 MiB pages has 5 free, 6 needed"
        );
        assert_eq!(
            short.hint().as_deref(),
            Some("hugepages pool reserve 1 --size 2M")
        );
        let gigabyte = HugePageSize::new(1 << 30).unwrap();
        let missing = check_pool(&root, Pages::Huge(gigabyte), 1).unwrap_err();
        assert_eq!(missing.to_string(), "this kernel has no pages of 1 GiB");
    }

    #[test]
    fn mappings_of_others_and_other_fields_are_not_counted() {
        let smaps = "\
1000-2000 rw-p 00000000 00:00 0
Rss:                 400 kB
10000-20000 rw-p 00000000 00:00 0
KernelPageSize:     2048 kB
Rss:                   0 kB
Private_Hugetlb:    6144 kB
VmFlags: rd wr mr mw me de ht
20000-30000 rw-p 00000000 00:00 0
Rss:                  80 kB
";
        let backing = Backing::from_smaps(smaps, 0x10000..0x20000);
        assert_eq!(backing.kernel_page_bytes, 2 << 20);
        assert_eq!(backing.hugetlb_bytes, 6 << 20);
        assert_eq!(backing.resident_bytes, 6 << 20);
        let numa_maps = "00001000 default anon=1 N0=9\n00010000 default huge anon=3 N0=2 N1=1 kernelpagesize_kB=2048\n";
        assert_eq!(nodes(numa_maps, 0x10000), [(0, 2), (1, 1)]);
        assert_eq!(nodes(numa_maps, 0x20000), []);
    }
}
