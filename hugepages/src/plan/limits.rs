//! The limits of containers: huge pages and ordinary memory of a loader that fills a store, of a server that attaches to this store, of a
//! server without a store, and of its RPC workers.
//!
//! A limit must be right on every machine, so [`bounded_arguments`] and [`Containers::of`] refuse a plan that depends on this one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use super::{Memory, Need, Plan};
use crate::kernel::{HugePageSize, Root, sizes};
use crate::server_arguments::{STORE, value_of, without};

const MIB: u64 = 1 << 20;

/// Threads, connections and answers, which a server adds after its plan. The engine counts the same (`GROWTH_AFTER_PLAN`).
const GROWTH: u64 = 32 * MIB;
/// Limit of the buffers from which a load repacks weights (`STAGING_SIZE`).
const STAGING: u64 = 128 * MIB;
/// Upstream's default of `--cache-ram`. The plan contains less if this machine has less memory.
const DEFAULT_CACHE: u64 = 8192 * MIB;
/// Memory that the server leaves free when it limits its prompt cache: upstream's default of `--fit-target`.
const CACHE_MARGIN: u64 = 1024 * MIB;
/// A worker without its buffers and its messages.
const WORKER: u64 = 64 * MIB;
/// Buffers share pages that are larger than this.
const SHARED_UNIT: u64 = 2 * MIB;

const CONTEXT: [&str; 2] = ["-c", "--ctx-size"];
const CONTEXT_VARIABLE: &str = "LLAMA_ARG_CTX_SIZE";
const FIT: [&str; 2] = ["-fit", "--fit"];
const FIT_VARIABLE: &str = "LLAMA_ARG_FIT";
const SIZE: [&str; 1] = ["--hugepage-size"];
const SIZE_VARIABLE: &str = "LLAMA_ARG_HUGEPAGE_SIZE";
const CACHE: [&str; 2] = ["-cram", "--cache-ram"];
const CACHE_VARIABLE: &str = "LLAMA_ARG_CACHE_RAM";

/// The limits of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Huge pages of each size.
    pub pages: BTreeMap<HugePageSize, u64>,
    /// Bytes of ordinary memory, in whole MiB.
    pub memory: u64,
}

/// The limits of each container.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Containers {
    /// Fills a store with the model.
    pub loader: Limits,
    /// Attaches to the store, and has only its KV cache and its other buffers for itself.
    pub server: Limits,
    /// Uses no store.
    pub alone: Limits,
    /// The largest of the RPC workers; `None` without workers.
    pub worker: Option<Limits>,
}

/// Why a plan gives no limits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LimitsError {
    /// Without `-c`.
    #[error("the context depends on the pools of the machine")]
    Context,
    /// `--hugepage-size thp`.
    #[error("transparent huge pages have no limit")]
    Thp,
    /// This kernel has no pool of 2 MiB or more.
    #[error("this kernel has no pool of huge pages")]
    NoPool,
    /// `--cache-ram -1`.
    #[error("the prompt cache has no limit")]
    Cache,
    /// The memory of this machine limits the prompt caches of a router.
    #[error("the prompt caches of the router's models depend on the memory of this machine")]
    RouterCache,
    /// The server printed no figures about ordinary memory.
    #[error("the plan contains no ordinary memory")]
    NoMemory,
    /// The size of a model file is unknown.
    #[error("cannot read the size of `{}`", model.display())]
    Model {
        /// First file of the model.
        model: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
}

impl LimitsError {
    /// The hint for the user.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Context => Some("add -c N to the arguments of llama-server"),
            Self::Thp => Some("use --hugepage-size with the size of a pool, such as 2M"),
            Self::Cache => Some("use --cache-ram with a limit in MiB"),
            Self::RouterCache => Some("add a smaller --cache-ram N, in MiB for each model"),
            Self::NoPool | Self::NoMemory | Self::Model { .. } => None,
        }
    }
}

/// The arguments for a plan that every machine computes in the same way: without a store, under `require`, with pages of one size.
///
/// # Errors
/// [`LimitsError::Context`], [`LimitsError::Thp`], [`LimitsError::NoPool`]
pub fn bounded_arguments(
    root: &Root,
    arguments: &[OsString],
) -> Result<Vec<OsString>, LimitsError> {
    let is_fixed = value_of(arguments, &CONTEXT, CONTEXT_VARIABLE).is_some()
        || value_of(arguments, &FIT, FIT_VARIABLE).is_some_and(|fit| fit == "off");
    if !is_fixed {
        return Err(LimitsError::Context);
    }
    let size = match value_of(arguments, &SIZE, SIZE_VARIABLE) {
        Some(size) if size == "thp" => return Err(LimitsError::Thp),
        Some(size) if size != "auto" => size,
        // With `auto`, the number of pages of each size would depend on the free pages of this machine.
        _ => sizes::of_images(root)
            .ok_or(LimitsError::NoPool)?
            .short_name(),
    };
    let mut bounded = without(arguments, STORE);
    // Last, so that they override the user's arguments.
    bounded.extend(["--hugepages", "--hugepage-policy", "require"].map(OsString::from));
    bounded.extend([SIZE[0].into(), size.into()]);
    Ok(bounded)
}

impl Containers {
    /// The limits for a plan with [`bounded_arguments`]. `bytes_of` returns the size of the file of a need.
    ///
    /// # Errors
    /// [`LimitsError::Cache`], [`LimitsError::RouterCache`], [`LimitsError::NoMemory`], [`LimitsError::Model`]
    pub fn of(
        plan: &Plan,
        arguments: &[OsString],
        bytes_of: impl Fn(&Need) -> io::Result<u64>,
    ) -> Result<Self, LimitsError> {
        let memory = plan.memory.as_ref().ok_or(LimitsError::NoMemory)?;
        let cache = cache(plan, memory, arguments)?;
        let mut loader = BTreeMap::new();
        let mut server = BTreeMap::new();
        let mut small = 0;
        for need in &plan.needs {
            let Some(size) = HugePageSize::new(need.page_size) else {
                continue;
            };
            if !need.is_for_store() {
                *server.entry(size).or_default() += need.pages;
                // A loader puts weights that it cannot store into ordinary memory.
                small += if need.is_weight() { need.bytes } else { 0 };
                continue;
            }
            let pages = if need.file.is_some() {
                let bytes = bytes_of(need).map_err(|source| LimitsError::Model {
                    model: need.model.clone(),
                    source,
                })?;
                need.pages + pages_of_manifest(bytes, size, need.pages)
            } else {
                // The plan counts a shared page for the first buffer on it, so the other buffers may need one more.
                if size.bytes() > SHARED_UNIT {
                    *server.entry(size).or_default() += 1;
                }
                let pages = size.pages_for(need.bytes);
                pages + pages_of_manifest(need.bytes, size, pages)
            };
            *loader.entry(size).or_default() += pages;
        }
        let own = memory.process + memory.buffers + GROWTH;
        let staging = plan.repacked_bytes().min(STAGING);
        let limits = |mut pages: BTreeMap<_, u64>, more: u64| {
            pages.retain(|_, pages| *pages > 0);
            Limits {
                pages,
                memory: (own + more).next_multiple_of(MIB),
            }
        };
        Ok(Self {
            loader: limits(loader, staging + small),
            server: limits(server, cache),
            // The cache grows after the load.
            alone: limits(plan.pages(), cache.max(staging)),
            worker: None,
        })
    }

    /// Adds the limits of the RPC workers of a plan. A worker receives each tensor in one message, so it needs ordinary memory for the
    /// largest one.
    pub fn add_worker(&mut self, plan: &Plan, largest_tensor: u64) {
        let needs = plan.workers.iter();
        let size = needs.map(|need| need.page_size).next();
        let pages = plan.worker_pages().into_values();
        self.worker = size
            .and_then(HugePageSize::new)
            .zip(pages.max())
            .map(|(size, pages)| Limits {
                pages: BTreeMap::from([(size, pages)]),
                memory: (WORKER + largest_tensor).next_multiple_of(MIB),
            });
    }
}

/// The bound of all prompt caches.
fn cache(plan: &Plan, memory: &Memory, arguments: &[OsString]) -> Result<u64, LimitsError> {
    let planned = memory.prompt_cache.ok_or(LimitsError::Cache)?;
    if plan.router.is_empty() {
        let given = value_of(arguments, &CACHE, CACHE_VARIABLE);
        let is_default = given.is_none_or(|mib| mib.parse() == Ok(DEFAULT_CACHE / MIB));
        return Ok(if is_default { DEFAULT_CACHE } else { planned });
    }
    let taken = memory.process + memory.buffers + planned + CACHE_MARGIN;
    if memory.available > 0 && taken + GROWTH >= memory.available {
        return Err(LimitsError::RouterCache);
    }
    Ok(planned)
}

/// Pages of the manifest of an image of `bytes`, beside its `planned` pages. The manifest is behind the bytes, and shares their last page
/// if it fits there. As `ggml_hugepages_geometry_of`.
fn pages_of_manifest(bytes: u64, size: HugePageSize, planned: u64) -> u64 {
    const SEGMENT: u64 = 8 * MIB;
    const GUARD: u64 = 64 << 10;
    const HEADER: u64 = 4096;
    let page = size.bytes();
    let segments = bytes.div_ceil(page.min(SEGMENT));
    let manifest = (8 * segments).next_multiple_of(HEADER) + HEADER;
    let length = (bytes.next_multiple_of(GUARD) + manifest).next_multiple_of(page);
    let begin = (length - manifest) / page * page;
    let own = (length - begin.max(bytes.next_multiple_of(page))) / page;
    // The last page of a file whose other weights are in buffers may be one that only the manifest needs.
    let is_partial = planned < size.pages_for(bytes);
    own.max(u64::from(is_partial))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn size(bytes: u64) -> HugePageSize {
        HugePageSize::new(bytes).unwrap()
    }

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(Into::into).collect()
    }

    /// `kind`, whether it is a file, pages, bytes
    fn plan(page: u64, needs: &[(&str, bool, u64, u64)]) -> Plan {
        let needs: Vec<_> = needs
            .iter()
            .map(|(kind, is_file, pages, bytes)| {
                let file = is_file.then_some(0);
                serde_json::json!({
                    "model": "m.gguf", "kind": kind, "file": file, "page_size": page, "pages": pages, "bytes": bytes
                })
            })
            .collect();
        serde_json::from_value(serde_json::json!({
            "model": "m.gguf", "size": "2M", "fits": false, "message": "", "hint": "", "needs": needs,
            "memory": { "process": 10 * MIB + 1, "buffers": 0, "prompt_cache": 100 * MIB, "available": 20 * GIB },
        }))
        .unwrap()
    }

    fn of(plan: &Plan, arguments: &str, bytes: u64) -> Result<Containers, LimitsError> {
        Containers::of(plan, &words(arguments), |_| Ok(bytes))
    }

    fn pages(limits: &Limits) -> Vec<u64> {
        limits.pages.values().copied().collect()
    }

    #[test]
    fn a_manifest_needs_a_page_only_if_it_does_not_fit_behind_the_weights() {
        let two = size(2 * MIB);
        // 64 KiB of guard, one block of checksums, and the header
        let most = 6 * MIB - (64 << 10) - 8192;
        let of = |bytes: u64| pages_of_manifest(bytes, two, two.pages_for(bytes));
        assert_eq!(of(most), 0);
        assert_eq!(of(6 * MIB - 4096), 1);
        assert_eq!(of(6 * MIB), 1);
        assert_eq!(of(6 * MIB + 1), 0);
        // The checksums of 1 TiB take 4 MiB.
        assert_eq!(of(1 << 40), 3);
        let one = size(GIB);
        assert_eq!(pages_of_manifest(GIB, one, 1), 1);
        assert_eq!(pages_of_manifest(GIB - MIB, one, 1), 0);
        // Planned pages that may not be the last page of the file.
        assert_eq!(pages_of_manifest(most, two, 2), 1);
    }

    #[test]
    fn the_loader_has_the_weights_and_the_server_has_the_rest() {
        let needs = [
            ("weights", true, 3, 6 * MIB),
            ("repacked", false, 2, 3 * MIB),
            ("kv", false, 4, 8 * MIB),
            ("compute", false, 5, 10 * MIB),
        ];
        let limits = of(&plan(2 * MIB, &needs), "--cache-ram 100", 6 * MIB).unwrap();
        assert_eq!(pages(&limits.loader), [3 + 1 + 2]);
        assert_eq!(pages(&limits.server), [9]);
        assert_eq!(pages(&limits.alone), [14]);
        assert_eq!(limits.loader.memory, (11 + 32 + 3) * MIB);
        assert_eq!(limits.server.memory, (11 + 32 + 100) * MIB);
        assert_eq!(limits.alone.memory, limits.server.memory);
    }

    #[test]
    fn buffers_that_share_a_page_with_stored_weights_get_one_of_their_own() {
        let needs = [
            ("repacked", false, 2, GIB + 512 * MIB),
            ("kv", false, 0, 128 * MIB),
            ("compute", false, 0, 64 * MIB),
        ];
        let limits = of(&plan(GIB, &needs), "--cache-ram 100", 0).unwrap();
        assert_eq!(pages(&limits.loader), [2]);
        assert_eq!(pages(&limits.server), [1]);
        assert_eq!(pages(&limits.alone), [2]);
    }

    #[test]
    fn a_buffer_of_weights_that_is_smaller_than_a_page_is_ordinary_memory_of_the_loader() {
        let needs = [
            ("weights", true, 1, 6 * MIB),
            ("weights", false, 1, 300 * MIB),
        ];
        let limits = of(&plan(GIB, &needs), "--cache-ram 100", 6 * MIB).unwrap();
        assert_eq!(limits.loader.memory, (11 + 32 + 300) * MIB);
        assert_eq!(pages(&limits.server), [1]);
    }

    #[test]
    fn workers_have_the_limit_of_the_largest_and_this_machine_does_not_need_their_pages() {
        let mut plan = plan(2 * MIB, &[("kv", false, 4, 8 * MIB)]);
        let need = |worker: &str, kind: &str, pages: u64| {
            serde_json::json!({
                "model": "m.gguf", "worker": worker, "device": "RPC0", "kind": kind, "page_size": 2 * MIB, "pages": pages, "bytes": 1
            })
        };
        let needs = [
            need("a:1", "weights", 7),
            need("b:1", "weights", 6),
            need("b:1", "kv", 3),
        ];
        plan.workers = serde_json::from_value(needs.into()).unwrap();
        let mut limits = of(&plan, "", 0).unwrap();
        assert_eq!(limits.worker, None);
        limits.add_worker(&plan, 5 * MIB + 1);
        let worker = limits.worker.unwrap();
        assert_eq!((pages(&worker), worker.memory), (vec![9], (64 + 6) * MIB));
        assert_eq!(pages(&limits.alone), [4]);
    }

    #[test]
    fn a_page_size_without_a_page_has_no_limit() {
        let limits = of(&plan(2 * MIB, &[("kv", false, 4, 8 * MIB)]), "", 0).unwrap();
        assert!(limits.loader.pages.is_empty());
    }

    #[test]
    fn the_default_prompt_cache_does_not_depend_on_this_machine() {
        let plan = plan(2 * MIB, &[("kv", false, 4, 8 * MIB)]);
        for arguments in ["", "-cram 8192"] {
            let limits = of(&plan, arguments, 0).unwrap();
            assert_eq!(limits.server.memory, (11 + 32 + 8192) * MIB, "{arguments}");
        }
    }

    #[test]
    fn a_prompt_cache_without_a_limit_is_refused() {
        let mut plan = plan(2 * MIB, &[("kv", false, 4, 8 * MIB)]);
        let memory = plan.memory.as_mut().unwrap();
        memory.prompt_cache = None;
        let refused = of(&plan, "--cache-ram -1", 0);
        assert!(matches!(refused, Err(LimitsError::Cache)), "{refused:?}");
    }

    #[test]
    fn prompt_caches_of_a_router_that_fill_this_machine_are_refused() {
        let mut plan = plan(2 * MIB, &[("kv", false, 4, 8 * MIB)]);
        plan.router = serde_json::from_str(
            r#"[{ "name": "m", "bytes": 8388608, "fits": true, "message": "" }]"#,
        )
        .unwrap();
        assert_eq!(
            of(&plan, "", 0).unwrap().server.memory,
            (11 + 32 + 100) * MIB
        );
        plan.memory.as_mut().unwrap().prompt_cache = Some(19 * GIB);
        let refused = of(&plan, "", 0);
        assert!(
            matches!(refused, Err(LimitsError::RouterCache)),
            "{refused:?}"
        );
    }

    #[test]
    fn the_plan_is_asked_for_one_page_size_and_no_store() {
        let root = Root::system();
        let of = |text: &str| bounded_arguments(&root, &words(text));
        let bounded =
            of("-m a -c 512 --hugepage-store auto --hugepage-policy prefer --hugepage-size 1G");
        assert_eq!(
            bounded.unwrap(),
            words(
                "-m a -c 512 --hugepage-policy prefer --hugepage-size 1G --hugepages --hugepage-policy require --hugepage-size 1G"
            )
        );
        assert!(of("-m a -fit off --hugepage-size 2M").is_ok());
        assert!(matches!(of("-m a"), Err(LimitsError::Context)));
        assert!(matches!(
            of("-m a -c 512 --hugepage-size thp"),
            Err(LimitsError::Thp)
        ));
    }
}
