//! The backing of this process' memory.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::mem::MaybeUninit;
use std::time::Duration;

use crate::page_size::HugePageSize;
use crate::{Error, ffi};

/// The purpose of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Weights in the layout of the file.
    Weights,
    /// Weights in a layout for this CPU.
    Repacked,
    /// KV cache and recurrent state.
    Kv,
    /// Compute buffers.
    Compute,
    /// Adapters, projectors, buffers of remote clients.
    Other,
}

/// The backing of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Backing {
    /// Huge pages of a pool.
    Huge(HugePageSize),
    /// Transparent huge pages.
    Thp,
    /// Ordinary anonymous memory.
    Base,
    /// The page cache of the model file.
    File,
}

/// Memory of one kind on one backing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Purpose.
    pub kind: Kind,
    /// Backing.
    pub backing: Backing,
    /// Bytes of tensors.
    pub bytes: u64,
    /// Huge pages in use: more than `bytes` need, because tensors rarely begin and end at the border of a page.
    pub pages: u64,
    /// Resident bytes on each NUMA node, whole pages. Empty if the kernel does not report it.
    pub node_bytes: Vec<u64>,
    /// Bytes of weight matrices on the node of the threads that read them. Zero, like `remote_bytes`, if the weights are not placed by
    /// rows (`--numa distribute`), or if the kernel does not report the node of each page.
    pub local_bytes: u64,
    /// Bytes of weight matrices on other nodes.
    pub remote_bytes: u64,
}

/// Bytes and times of the last load: of this model, or of any model of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Load {
    /// Bytes read with `O_DIRECT`, past the page cache.
    pub bytes_direct: u64,
    /// Bytes copied from the page cache.
    pub bytes_cached: u64,
    /// Bytes read through the page cache.
    pub bytes_buffered: u64,
    /// Bytes that were already in resident images.
    pub bytes_attached: u64,
    /// Wall time.
    pub total: Duration,
    /// Populating pages, summed over the threads.
    pub populate: Duration,
    /// Reading, summed over the threads.
    pub read: Duration,
    /// Copying and repacking, summed over the threads.
    pub place: Duration,
    /// Threads that read.
    pub threads: u32,
}

/// The backing of one model and its contexts, or of all of this process, loaded with [`HugePages::Require`](crate::HugePages) or
/// `Prefer`. Models without huge pages are not in it.
///
/// Source: `/proc/self/smaps` and `/proc/self/numa_maps`, not the plan.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Report {
    /// One usage for each kind and backing.
    pub usages: Vec<Usage>,
    /// Bytes that buffers gained after the start on ordinary memory.
    pub late: u64,
    /// The last load.
    pub load: Load,
    raw: ffi::ggml_hugepages_report,
}

impl Report {
    /// Bytes of all tensors.
    pub fn wanted(&self) -> u64 {
        self.usages.iter().map(|usage| usage.bytes).sum()
    }

    /// Bytes of tensors on huge pages of a pool.
    pub fn on_huge(&self) -> u64 {
        self.huge().map(|usage| usage.bytes).sum()
    }

    /// Bytes of tensors in the page cache of a file.
    pub fn on_file(&self) -> u64 {
        let on_file = |usage: &&Usage| usage.backing == Backing::File;
        self.usages
            .iter()
            .filter(on_file)
            .map(|usage| usage.bytes)
            .sum()
    }

    /// Huge pages in use, of all sizes.
    pub fn huge_pages(&self) -> u64 {
        self.huge().map(|usage| usage.pages).sum()
    }

    /// Bytes of tensors of one kind, on any backing.
    pub fn bytes(&self, kind: Kind) -> u64 {
        let of_kind = |usage: &&Usage| usage.kind == kind;
        self.usages
            .iter()
            .filter(of_kind)
            .map(|usage| usage.bytes)
            .sum()
    }

    fn huge(&self) -> impl Iterator<Item = &Usage> {
        self.usages
            .iter()
            .filter(|usage| matches!(usage.backing, Backing::Huge(_)))
    }

    fn new(raw: &ffi::ggml_hugepages_report) -> Self {
        let nodes = raw.n_nodes as usize;
        let usages = raw.usages.iter().take(raw.n_usages as usize);
        let us = Duration::from_micros;
        Self {
            usages: usages
                .filter_map(|usage| Usage::new(usage, nodes))
                .collect(),
            late: raw.late,
            load: Load {
                bytes_direct: raw.load.bytes_direct,
                bytes_cached: raw.load.bytes_cached,
                bytes_buffered: raw.load.bytes_buffered,
                bytes_attached: raw.load.bytes_attached,
                total: us(raw.load.us_total),
                populate: us(raw.load.us_populate),
                read: us(raw.load.us_read),
                place: us(raw.load.us_place),
                threads: raw.load.n_threads,
            },
            raw: *raw,
        }
    }
}

impl Usage {
    /// `None` for a value that this library does not know.
    fn new(raw: &ffi::ggml_hugepages_usage, nodes: usize) -> Option<Self> {
        Some(Self {
            kind: match raw.kind {
                ffi::GGML_HUGEPAGES_KIND_WEIGHTS => Kind::Weights,
                ffi::GGML_HUGEPAGES_KIND_REPACKED => Kind::Repacked,
                ffi::GGML_HUGEPAGES_KIND_KV => Kind::Kv,
                ffi::GGML_HUGEPAGES_KIND_COMPUTE => Kind::Compute,
                ffi::GGML_HUGEPAGES_KIND_OTHER => Kind::Other,
                _ => return None,
            },
            backing: match raw.backing {
                ffi::GGML_HUGEPAGES_BACKING_HUGE => {
                    Backing::Huge(HugePageSize::new(raw.page_size as u64)?)
                }
                ffi::GGML_HUGEPAGES_BACKING_THP => Backing::Thp,
                ffi::GGML_HUGEPAGES_BACKING_BASE => Backing::Base,
                ffi::GGML_HUGEPAGES_BACKING_FILE => Backing::File,
                _ => return None,
            },
            bytes: raw.bytes,
            pages: raw.pages,
            node_bytes: raw.node_bytes.iter().take(nodes).copied().collect(),
            local_bytes: raw.local_bytes,
            remote_bytes: raw.remote_bytes,
        })
    }
}

/// Reads the [`Report`] of this process.
///
/// # Errors
/// [`Error::NoReport`] if the kernel does not report the backing.
///
/// ```
/// let report = llama_hugepages::report()?;
/// assert_eq!(report.wanted(), 0); // no model is loaded
/// println!("{report}");
/// # Ok::<(), llama_hugepages::Error>(())
/// ```
pub fn report() -> Result<Report, Error> {
    of(0)
}

/// The report of one model; 0: of all.
pub(crate) fn of(model_id: u32) -> Result<Report, Error> {
    let mut raw = MaybeUninit::<ffi::ggml_hugepages_report>::zeroed();
    // SAFETY: room for one report, which outlives the call.
    let told = unsafe { ffi::ggml_hugepages_get_report(model_id, raw.as_mut_ptr()) };
    // SAFETY: numbers only, zeroed above, and written by the call.
    let raw = unsafe { raw.assume_init() };
    if told {
        Ok(Report::new(&raw))
    } else {
        Err(Error::NoReport)
    }
}

impl fmt::Display for Report {
    /// The table that `llama-server` logs: several lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0 as c_char; 4096];
        // SAFETY: reads the report of `self`, and writes at most `text.len()` bytes with a zero at the end.
        unsafe {
            ffi::ggml_hugepages_report_to_str(&raw const self.raw, text.as_mut_ptr(), text.len());
        }
        // SAFETY: written above, with a zero within `text`.
        let text = unsafe { CStr::from_ptr(text.as_ptr()) };
        f.write_str(&text.to_string_lossy())
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report")
            .field("usages", &self.usages)
            .field("late", &self.late)
            .field("load", &self.load)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_table_with_the_sum_below() {
        // SAFETY: numbers only.
        let mut raw = unsafe { MaybeUninit::<ffi::ggml_hugepages_report>::zeroed().assume_init() };
        raw.n_usages = 2;
        raw.n_nodes = 1;
        raw.usages[0].kind = ffi::GGML_HUGEPAGES_KIND_WEIGHTS;
        raw.usages[0].backing = ffi::GGML_HUGEPAGES_BACKING_HUGE;
        raw.usages[0].page_size = 2 << 20;
        raw.usages[0].bytes = 3 << 20;
        raw.usages[0].pages = 2;
        raw.usages[0].node_bytes[0] = 4 << 20;
        raw.usages[1].kind = ffi::GGML_HUGEPAGES_KIND_KV;
        raw.usages[1].backing = ffi::GGML_HUGEPAGES_BACKING_BASE;
        raw.usages[1].bytes = 1 << 20;
        raw.late = 1 << 20;
        let report = Report::new(&raw);
        assert_eq!(
            (report.wanted(), report.on_huge(), report.on_file()),
            (4 << 20, 3 << 20, 0)
        );
        assert_eq!(report.bytes(Kind::Kv), 1 << 20);
        assert_eq!(
            report.to_string(),
            "kind       on                MiB    pages     node 0 MiB\n\
             weights    2M               3.00        2           4.00\n\
             kv         base             1.00        0           0.00\n\
             3.00 of 4.00 MiB on huge pages (75.0 %), 1.00 MiB of later growth in ordinary memory"
        );
    }
}
