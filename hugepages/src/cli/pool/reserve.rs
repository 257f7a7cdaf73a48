//! `hugepages pool reserve`, without `--lease`.

use std::io::{self, Write};

use anyhow::Result;

use hugepages::kernel::{HugePageSize, Root};
use hugepages::pool::{Wish, enough_memory};
use hugepages::size::ByteSize;

use super::arguments::Reserve;
use super::lock::lock_pools;
use super::print_change::{Pages, print_change};
use super::undone::say_reaped;
use crate::cli::output::Format;

pub fn reserve(root: &Root, args: &Reserve, format: Format) -> Result<()> {
    let counter = args.which.counter(root)?;
    say_rounding(args, counter.size);
    if args.dry_run {
        let pages = args.pages(&counter)?;
        if !args.force {
            enough_memory(root, counter.size, pages)?;
        }
        if args.hvo {
            note("would set vm.hugetlb_optimize_vmemmap to 1")?;
        }
        let before = counter.read()?;
        return print_change(&counter, format, true, before, before, Pages::Added(pages));
    }
    // Before the state directory is created, so that the error names the pool and not the directory.
    counter.writable()?;
    let mut pools = lock_pools(root)?;
    say_reaped(&pools.reap()?);
    let pages = args.pages(&counter)?;
    if args.hvo && pools.switch_on_hvo()? {
        note("set vm.hugetlb_optimize_vmemmap to 1")?;
    }
    let reserved = pools.reserve(&counter, &wish(args, pages))?;
    if reserved.added < pages {
        note(&format!(
            "the kernel allocated {} of {pages} pages",
            reserved.added
        ))?;
    }
    print_change(
        &counter,
        format,
        false,
        reserved.before,
        reserved.after,
        Pages::Added(reserved.added),
    )
}

pub fn wish(args: &Reserve, pages: u64) -> Wish {
    Wish {
        pages,
        at_least: args.at_least,
        try_hard: args.try_hard,
        demote: args.demote,
        force: args.force,
        holder: None,
    }
}

pub fn say_rounding(args: &Reserve, size: HugePageSize) {
    let more = args.amount.map_or(0, |amount| amount.rounded_up(size));
    if more > 0 {
        eprintln!(
            "rounded up to {} pages of {size}: {} more than requested, because a pool has only whole pages",
            args.wanted(size),
            ByteSize::new(more)
        );
    }
}

fn note(text: &str) -> io::Result<()> {
    writeln!(io::stderr().lock(), "{text}")
}
