//! The need of a model, and its sums.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::kernel::HugePageSize;

/// The huge pages that all loads of a server would take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Plan {
    /// First file of the model.
    pub model: PathBuf,
    /// `--hugepage-size`: `auto`, `thp`, `2M`, …
    pub size: String,
    /// Whether enough pages are usable now: pool, nodes and cgroups.
    pub fits: bool,
    /// The server's message about missing pages; empty if none is missing.
    pub message: String,
    /// The server's hint.
    pub hint: String,
    /// The context that the server chose to fit the pools; `None` if the arguments or the model decide it.
    #[serde(default)]
    pub context: Option<Context>,
    /// Memory outside the pools. Of a router: its own, and that of the models that it may load at once.
    #[serde(default)]
    pub memory: Option<Memory>,
    /// One need for each kind, file and page size. Of a router: the needs of the models that together need most, as many as it may
    /// load at once.
    pub needs: Vec<Need>,
    /// What RPC workers (`--rpc`) hold, on their own machines. The other figures do not contain it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workers: Vec<WorkerNeed>,
    /// The models of a router; empty for a server with a model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub router: Vec<RouterModel>,
}

/// A context that the server chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Context {
    /// Its size.
    pub tokens: u64,
    /// Size of the context for which the model was trained, or of the largest that this machine's memory can hold.
    pub full_tokens: u64,
    /// Bytes of all huge pages with that context.
    pub full_bytes: u64,
}

/// Ordinary memory of the server, in bytes. Context checkpoints (`--ctx-checkpoints`) are not counted: their size depends on the prompts. The
/// server drops the oldest ones when memory is short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Memory {
    /// Of the process at its start, without the buffers: measured while it planned.
    pub process: u64,
    /// Buffers without a huge page, with `--hugepage-policy prefer`.
    pub buffers: u64,
    /// The most that the prompt cache may add later; `None` without a limit.
    pub prompt_cache: Option<u64>,
    /// What the process can allocate after its huge pages: `MemAvailable`, or less in a memory cgroup; 0 if unknown.
    pub available: u64,
}

/// A model of a router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RouterModel {
    /// Its name in requests.
    pub name: String,
    /// Bytes of its huge pages; `None` if it cannot be planned.
    pub bytes: Option<u64>,
    /// Whether it fits alone.
    pub fits: bool,
    /// Why not; empty if it fits.
    pub message: String,
}

/// The need of one kind of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Need {
    /// File of the part: the model, its draft, an adapter or a projector.
    #[serde(default)]
    pub model: PathBuf,
    /// `weights`, `repacked`, `kv`, `compute`, or `other` for adapters and projectors.
    pub kind: String,
    /// Index of the mapped file, from 0; `None` for a buffer.
    pub file: Option<usize>,
    /// Page size in bytes; 0 for ordinary memory.
    pub page_size: u64,
    /// Number of pages. A page that several kinds share counts for the first of them.
    pub pages: u64,
    /// Bytes of tensors. KV caches and output buffers count in whole units of 2 MiB.
    pub bytes: u64,
    /// Pages on each node, of weights that `--numa distribute` places by rows; empty for other memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_pages: Vec<u64>,
    /// Bytes of matrices on the node of the threads that read them, of weights that `--numa distribute` places by rows.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub local_bytes: u64,
    /// Bytes of matrices on other nodes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub remote_bytes: u64,
}

/// The need of one kind of memory on one RPC worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerNeed {
    /// File of the model, or of its draft.
    pub model: PathBuf,
    /// Address of the worker, as in `--rpc`.
    pub worker: String,
    /// Name of the device in the server: `RPC0`, `RPC1`, …
    pub device: String,
    /// `weights`, `kv` or `compute`.
    pub kind: String,
    /// Page size in bytes. The plan counts pages of 2 MiB, because a worker does not report its page sizes.
    pub page_size: u64,
    /// Pages that a worker with `--hugepages` needs. Each buffer needs whole pages.
    pub pages: u64,
    /// Bytes of the buffers. KV caches count in whole pages.
    pub bytes: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Need {
    /// Whether a store keeps it: weights, except a buffer smaller than a page.
    pub fn is_for_store(&self) -> bool {
        self.is_weight() && (self.file.is_some() || self.bytes >= self.page_size)
    }

    pub(super) fn is_weight(&self) -> bool {
        matches!(self.kind.as_str(), "weights" | "repacked")
    }
}

impl Plan {
    /// Pages of each size.
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use hugepages::plan::Plan;
    ///
    /// let plan = Plan::ask(Path::new("target/release/llama-server"), ["-m", "model.gguf", "-c", "8192"])?;
    /// for (size, pages) in plan.pages() {
    ///     println!("{pages} pages of {size}");
    /// }
    /// # Ok::<(), hugepages::plan::PlanError>(())
    /// ```
    pub fn pages(&self) -> BTreeMap<HugePageSize, u64> {
        let mut pages = BTreeMap::new();
        for need in &self.needs {
            if let Some(size) = HugePageSize::new(need.page_size).filter(|_| self.size != "thp") {
                *pages.entry(size).or_default() += need.pages;
            }
        }
        pages
    }

    /// Pages of what a store keeps: neither KV cache nor compute buffers.
    pub fn pages_of_weights(mut self) -> BTreeMap<HugePageSize, u64> {
        self.needs.retain(Need::is_for_store);
        self.pages()
    }

    /// The pages that the pools may lack. The plan uses larger pages only if they are usable, so only the smallest size can be short.
    pub fn pages_that_may_be_missing(&self) -> Option<(HugePageSize, u64)> {
        self.pages().into_iter().next()
    }

    /// Bytes of all these pages.
    pub fn page_bytes(&self) -> u64 {
        let bytes = |(size, pages): (HugePageSize, u64)| size.bytes() * pages;
        self.pages().into_iter().map(bytes).sum()
    }

    /// Pages of one size on each node, of weights that are placed by rows.
    pub fn node_pages(&self, size: HugePageSize) -> Vec<u64> {
        let mut sums = Vec::new();
        for need in &self.needs {
            if need.page_size == size.bytes() {
                sums.resize(sums.len().max(need.node_pages.len()), 0);
                for (sum, pages) in sums.iter_mut().zip(&need.node_pages) {
                    *sum += pages;
                }
            }
        }
        sums
    }

    /// Bytes of matrices on the nodes that read them, and of all matrices; `None` if no weights are placed by rows.
    pub fn local_bytes(&self) -> Option<(u64, u64)> {
        let local: u64 = self.needs.iter().map(|need| need.local_bytes).sum();
        let remote: u64 = self.needs.iter().map(|need| need.remote_bytes).sum();
        (local + remote > 0).then_some((local, local + remote))
    }

    /// Bytes of weights that the server repacks for the CPU.
    pub fn repacked_bytes(&self) -> u64 {
        let repacked = self.needs.iter().filter(|need| need.kind == "repacked");
        repacked.map(|need| need.bytes).sum()
    }

    /// The pages of each RPC worker, by its address.
    pub fn worker_pages(&self) -> BTreeMap<&str, u64> {
        let mut pages = BTreeMap::new();
        for need in &self.workers {
            *pages.entry(need.worker.as_str()).or_default() += need.pages;
        }
        pages
    }

    /// Bytes of all tensors that the CPU reads.
    pub fn bytes(&self) -> u64 {
        self.needs.iter().map(|need| need.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(needs: &[(&str, u64, u64)]) -> Plan {
        Plan {
            model: "m.gguf".into(),
            size: "auto".into(),
            fits: true,
            message: String::new(),
            hint: String::new(),
            context: None,
            memory: None,
            workers: Vec::new(),
            router: Vec::new(),
            needs: needs
                .iter()
                .map(|(kind, page_size, pages)| Need {
                    model: "m.gguf".into(),
                    kind: (*kind).to_owned(),
                    file: None,
                    page_size: *page_size,
                    pages: *pages,
                    bytes: 1,
                    node_pages: Vec::new(),
                    local_bytes: 0,
                    remote_bytes: 0,
                })
                .collect(),
        }
    }

    #[test]
    fn pages_are_summed_by_size_and_what_takes_none_is_left_out() {
        let plan = plan(&[
            ("weights", 2 << 20, 3),
            ("kv", 2 << 20, 4),
            ("kv", 1 << 30, 1),
            ("weights", 0, 0),
        ]);
        let sizes: Vec<_> = plan
            .pages()
            .into_iter()
            .map(|(size, pages)| (size.to_string(), pages))
            .collect();
        assert_eq!(sizes, [("2 MiB".to_owned(), 7), ("1 GiB".to_owned(), 1)]);
    }

    #[test]
    fn pages_of_workers_are_counted_for_each_worker_and_not_for_this_machine() {
        let need = |worker: &str, kind: &str, pages: u64| WorkerNeed {
            model: "m.gguf".into(),
            worker: worker.to_owned(),
            device: "RPC0".to_owned(),
            kind: kind.to_owned(),
            page_size: 2 << 20,
            pages,
            bytes: pages << 21,
        };
        let plan = Plan {
            workers: vec![
                need("b:50052", "weights", 5),
                need("a:50052", "weights", 3),
                need("b:50052", "kv", 1),
            ],
            ..plan(&[("weights", 2 << 20, 3)])
        };
        let pages: Vec<_> = plan.worker_pages().into_iter().collect();
        assert_eq!(pages, [("a:50052", 3), ("b:50052", 6)]);
        assert_eq!(plan.page_bytes(), 3 << 21);
    }

    #[test]
    fn thp_takes_no_page_of_a_pool() {
        let plan = Plan {
            size: "thp".into(),
            ..plan(&[("weights", 2 << 20, 3)])
        };
        assert!(plan.pages().is_empty());
    }
}
