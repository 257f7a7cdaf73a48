//! What the weights of this process lie on.

use std::fmt;
use std::mem::MaybeUninit;

use crate::pool::HugePageSize;
use crate::{Error, ffi};

/// What the weights that were asked to lie on huge pages lie on, in bytes, over all models of this process that are
/// loaded now with [`HugePages::Require`](crate::HugePages) or `Prefer`.
///
/// Source: `/proc/self/smaps`, not what was planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Report {
    /// Bytes of weights that the CPU reads from the mapped files.
    pub wanted: u64,
    /// Of these, on huge pages.
    pub on_huge: u64,
    /// Of these, in the page cache of the file.
    pub on_file: u64,
    /// Huge pages in use: more than `on_huge` needs, since weights rarely begin and end at the border of a page.
    pub huge_pages: u64,
    /// Size of these pages. `None` where the kernel has no huge pages.
    pub page_size: Option<HugePageSize>,
}

/// Reads the [`Report`] of this process.
///
/// # Errors
/// [`Error::NoReport`] where the kernel does not tell.
///
/// ```
/// let report = llama_hugepages::report()?;
/// assert_eq!(report.wanted, 0); // no model is loaded
/// println!("{report}");
/// # Ok::<(), llama_hugepages::Error>(())
/// ```
pub fn report() -> Result<Report, Error> {
    let mut raw = MaybeUninit::<ffi::ggml_hugepages_report>::zeroed();
    // SAFETY: room for one report, which outlives the call.
    let told = unsafe { ffi::ggml_hugepages_get_report(raw.as_mut_ptr()) };
    // SAFETY: numbers only, zeroed above, and written by the call.
    let raw = unsafe { raw.assume_init() };
    if !told {
        return Err(Error::NoReport);
    }
    Ok(Report {
        wanted: raw.wanted,
        on_huge: raw.on_huge,
        on_file: raw.on_file,
        huge_pages: raw.huge_pages,
        page_size: HugePageSize::new(raw.page_size),
    })
}

impl fmt::Display for Report {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        if self.wanted == 0 {
            return f.write_str("no weights were asked to lie on huge pages");
        }
        write!(
            f,
            "{:.2} MiB of weights: {:.2} MiB on huge pages",
            mib(self.wanted),
            mib(self.on_huge)
        )?;
        if let Some(size) = self.page_size.filter(|_| self.huge_pages > 0) {
            write!(f, " ({} pages of {size})", self.huge_pages)?;
        }
        write!(f, ", {:.2} MiB on the file mapping", mib(self.on_file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_line() {
        let report = Report {
            wanted: 3 << 20,
            on_huge: 2 << 20,
            on_file: 1 << 20,
            huge_pages: 2,
            page_size: HugePageSize::new(2 << 20),
        };
        assert_eq!(
            report.to_string(),
            "3.00 MiB of weights: 2.00 MiB on huge pages (2 pages of 2 MiB), 1.00 MiB on the file mapping"
        );
        let nothing = Report {
            huge_pages: 0,
            on_huge: 0,
            on_file: 3 << 20,
            ..report
        };
        assert_eq!(
            nothing.to_string(),
            "3.00 MiB of weights: 0.00 MiB on huge pages, 3.00 MiB on the file mapping"
        );
        assert_eq!(
            Report::default().to_string(),
            "no weights were asked to lie on huge pages"
        );
    }
}
