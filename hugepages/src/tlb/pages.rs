//! The kinds of pages, and why a kind is unavailable.

use std::fmt;
use std::str::FromStr;

use rustix::io::Errno;
use serde::Serialize;

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

pub const RESERVE: &str = "cannot reserve address space";
pub const MAP: &str = "cannot map memory";
pub const ADVISE_HUGE: &str = "cannot request THP";
pub const ADVISE_BASE: &str = "cannot request base pages";
pub const POPULATE: &str = "cannot populate a page";

pub fn refused(what: &'static str) -> impl Fn(Errno) -> Unavailable {
    move |why| Unavailable::Refused { what, why }
}

/// Checks that the pool has enough free pages. Overcommit does not count, because it would grow the pool.
pub fn check_pool(root: &Root, pages: Pages, bytes: u64) -> Result<(), Unavailable> {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

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
}
