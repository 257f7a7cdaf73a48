//! Pages of the pool, and free memory to add pages.

use super::Finding;
use super::host::Host;
use crate::kernel::HvoState;
use crate::kernel::files;
use crate::kernel::{HugePageSize, Root};
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

/// Source: `/proc/buddyinfo`, free pieces of 1, 2, 4, … base pages per zone.
pub fn fragmentation(host: &Host) -> Vec<Finding> {
    let text = files::text(&host.root, "/proc/buddyinfo").unwrap_or_default();
    let base_page = rustix::param::page_size() as u64;
    let pools = host.status.pools.iter();
    pools
        .filter_map(|pool| {
            let free = free_pieces(&text, pool.page_size, base_page)?;
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

/// Number of pages of this size in free pieces. `None` for sizes above the largest piece that the kernel counts.
fn free_pieces(buddyinfo: &str, size: HugePageSize, base_page: u64) -> Option<u64> {
    let order = (size.bytes() / base_page).checked_ilog2()? as usize;
    let mut sum = None;
    for line in buddyinfo.lines() {
        // Node 0, zone   Normal   12  3 …
        let counts: Vec<u64> = line
            .split_whitespace()
            .skip(4)
            .filter_map(|count| count.parse().ok())
            .collect();
        if order < counts.len() {
            let above = counts[order..].iter().enumerate();
            *sum.get_or_insert(0) += above.map(|(more, count)| count << more).sum::<u64>();
        }
    }
    sum
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_pieces_count_as_often_as_a_page_fits() {
        let text = "Node 0, zone   Normal  9 9 9 9 9 9 9 9 9 3 2\nNode 1, zone   Normal  0 0 0 0 0 0 0 0 0 1 0\n";
        assert_eq!(
            free_pieces(text, "2M".parse().unwrap(), 4096),
            Some(3 + 2 * 2 + 1)
        );
        assert_eq!(free_pieces(text, "1G".parse().unwrap(), 4096), None);
    }
}
