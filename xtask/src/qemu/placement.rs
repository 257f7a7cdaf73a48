//! The huge pages of a case on each node, counted from the kernel's mappings.

use std::collections::BTreeMap;

use super::cases::SMALL_KB;
use super::report::{Mapping, Seen, Table};

/// The kernel's name of the engine's mappings, without the kind.
pub const OURS: &str = "/memfd:llama-";
pub const WEIGHTS: &str = "/memfd:llama-weights";
pub const REPACKED: &str = "/memfd:llama-repacked";
pub const BUFFERS: [&str; 2] = ["/memfd:llama-kv", "/memfd:llama-compute"];

/// Huge pages by size in KiB and node.
pub type Pages = BTreeMap<(u64, u32), u64>;

/// The huge pages of the mappings whose file begins with `file`.
pub fn pages(seen: &Seen, file: &str) -> Pages {
    count(&seen.mappings, file)
}

/// The same for any list of mappings.
pub fn count(mappings: &[Mapping], file: &str) -> Pages {
    let mut found = Pages::new();
    for mapping in mappings {
        if mapping.page_kb >= SMALL_KB && mapping.file.starts_with(file) {
            for (node, pages) in &mapping.pages {
                *found.entry((mapping.page_kb, *node)).or_default() += pages;
            }
        }
    }
    found
}

/// The huge pages on each node, in a few words.
pub fn summary(seen: &Seen) -> String {
    let parts: Vec<_> = pages(seen, "")
        .iter()
        .map(|((page_kb, node), pages)| format!("{pages} of {page_kb} kB on node {node}"))
        .collect();
    if parts.is_empty() {
        "no huge pages".to_owned()
    } else {
        parts.join(", ")
    }
}

/// The table that the log must contain, from the kernel's mappings: MiB of huge pages by kind and node.
pub fn table(seen: &Seen) -> Table {
    let mut table = Table::new();
    for mapping in seen.mappings.iter().filter(|one| one.page_kb >= SMALL_KB) {
        if let Some(kind) = mapping.file.strip_prefix(OURS) {
            // A page that several buffers share counts for the first of them.
            let kind = if kind == "buffers" { "kv" } else { kind };
            for (node, pages) in &mapping.pages {
                *table.entry((kind.to_owned(), *node)).or_default() +=
                    (mapping.page_kb >> 10) * pages;
            }
        }
    }
    table
}

/// Pages on other nodes than the wanted one.
pub fn elsewhere(pages: &Pages, wanted: u32) -> Vec<String> {
    pages
        .iter()
        .filter(|((_, node), _)| *node != wanted)
        .map(|((page_kb, node), pages)| {
            format!("{pages} pages of {page_kb} kB are on node {node}, not on node {wanted}")
        })
        .collect()
}
