//! Pages of the pool, and free memory to add pages.

use super::Finding;
use super::host::Host;
use crate::kernel::buddyinfo::FreePieces;
use crate::kernel::{HvoState, Root};
use crate::size::ByteSize;
use crate::store;

pub fn plan(host: &Host) -> Vec<Finding> {
    let refused = host.refused.iter().map(|why| {
        Finding::problem(
            why.clone(),
            "llama-server refuses these arguments before it takes huge pages",
        )
    });
    let short = host.short.iter();
    let short = short.map(|(why, hint)| Finding::problem(why.clone(), hint.clone()));
    refused.chain(short).collect()
}

pub fn pool(host: &Host) -> Vec<Finding> {
    let pools = &host.status.pools;
    let usable: u64 = pools
        .iter()
        .map(|pool| pool.usable * pool.page_size.bytes())
        .sum();
    if pools.is_empty() {
        return Vec::new();
    }
    let found = format!("{} of huge pages usable", ByteSize::new(usable));
    match host.need {
        Some(need) if usable < need => vec![
            Finding::problem(
                found,
                format!(
                    "a load with these arguments takes {}; with `require` it fails before it reads",
                    ByteSize::new(need)
                ),
            )
            .command(format!(
                "sudo hugepages pool reserve --for -- {}",
                host.arguments
            )),
        ],
        None if usable == 0 => vec![
            Finding::problem(
                found,
                "the pool is empty or fully used; with `require` a load fails before it reads",
            )
            .command("sudo hugepages pool reserve --for -- -m model.gguf"),
        ],
        _ => vec![Finding::ok(found)],
    }
}

/// Takes a page and returns it, because no file shows system call filters or limits above this cgroup namespace.
pub fn probe(host: &Host) -> Vec<Finding> {
    if host.root != Root::system() {
        return Vec::new();
    }
    let pools = host.status.pools.iter();
    pools
        .filter_map(|pool| match store::probe(pool.page_size) {
            // Without a free page the probe tried only the system calls.
            Ok(()) if pool.usable == 0 => None,
            Ok(()) => Some(Finding::ok(format!(
                "took and returned a page of {}",
                pool.page_size
            ))),
            Err(why) => Some(Finding::problem(why.message, why.hint.unwrap_or_default())),
        })
        .collect()
}

pub fn fragmentation(host: &Host) -> Vec<Finding> {
    let pieces = FreePieces::read(&host.root);
    let pools = host.status.pools.iter();
    pools
        .filter_map(|pool| {
            let free = pieces.pages(pool.page_size)?;
            let size = pool.page_size;
            Some(if free > 0 {
                Finding::ok(format!(
                    "{free} more pages of {size} can be added without compaction"
                ))
            } else {
                Finding::note(
                    format!("no free piece of {size}"),
                    "the pool can grow only after the kernel compacts memory",
                )
                .command("echo 1 | sudo tee /proc/sys/vm/compact_memory")
            })
        })
        .collect()
}

pub fn hvo(host: &Host) -> Vec<Finding> {
    if host.status.pools.is_empty() {
        return Vec::new();
    }
    let hvo = &host.status.hvo;
    let possible = ByteSize::new(hvo.possible_bytes);
    vec![match hvo.state {
        HvoState::On => Finding::ok("HVO is on for added pages"),
        HvoState::Unsupported => Finding::note("no HVO", "the kernel keeps `struct page` memory for the pool: about 1.4 % of its size"),
        HvoState::Off => Finding::note(
            "HVO is off",
            format!("added pages keep their `struct page` memory; HVO could free {possible} for the current pool"),
        )
        .command("sudo sysctl vm.hugetlb_optimize_vmemmap=1"),
    }]
}
