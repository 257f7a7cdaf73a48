//! `hugepages pool reserve`, `release` and `restore`.

use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

use hugepages::kernel::{HugePageSize, Root};
use hugepages::pool::{Counter, Counts, PoolError, Undone, Wish, enough_memory};
use hugepages::size::ByteSize;

use super::arguments::{AmountOrAll, Release, Reserve, Restore};
use super::lock::lock_pools;
use super::undone::{one_left, one_undone, say_reaped};
use crate::cli::output::{self, Format};

const SCHEMA: u32 = 1;

/// A change in the output of `--format json`.
#[derive(Serialize)]
struct Change {
    page_bytes: u64,
    node: Option<u32>,
    dry_run: bool,
    /// Growth of the pool, in pages.
    added: i64,
    before: Counts,
    after: Counts,
}

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
        return print(&counter, format, true, before, before, pages.cast_signed());
    }
    // Before the state directory is created, so that the error names the pool and not the directory.
    counter.writable()?;
    let mut pools = lock_pools(root)?;
    say_reaped(&pools.reap()?);
    let pages = args.pages(&counter)?;
    if args.hvo && pools.hvo()? {
        note("set vm.hugetlb_optimize_vmemmap to 1")?;
    }
    let reserved = pools.reserve(&counter, &wish(args, pages))?;
    let added = reserved.added.cast_signed();
    if reserved.added < pages {
        note(&format!(
            "the kernel allocated {} of {pages} pages",
            reserved.added
        ))?;
    }
    print(
        &counter,
        format,
        false,
        reserved.before,
        reserved.after,
        added,
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

pub fn release(root: &Root, args: &Release, format: Format) -> Result<()> {
    let counter = args.which.counter(root)?;
    let pages = match args.amount {
        AmountOrAll::All => None,
        AmountOrAll::Amount(amount) => Some(amount.pages(counter.size)),
    };
    counter.writable()?;
    let mut pools = lock_pools(root)?;
    let before = counter.read()?;
    if args.dry_run {
        let pages = pools.releasable(&counter, pages, args.force)?;
        return print(&counter, format, true, before, before, -pages.cast_signed());
    }
    let given = pools.release(&counter, pages, args.force)?;
    let after = counter.read()?;
    print(&counter, format, false, before, after, -given.cast_signed())
}

pub fn restore(root: &Root, args: &Restore, format: Format) -> Result<()> {
    #[derive(Serialize)]
    struct Restored {
        dry_run: bool,
        undone: Vec<Undone>,
        held: usize,
    }
    let mut pools = lock_pools(root)?;
    let (undone, held) = if args.dry_run {
        pools.restorable()
    } else {
        pools.restore()?
    };
    let left: Vec<_> = undone
        .iter()
        .filter(|one| one.left != 0)
        .map(one_left)
        .collect();
    if format == Format::Json {
        output::json(
            SCHEMA,
            &Restored {
                dry_run: args.dry_run,
                undone,
                held,
            },
        )?;
    } else {
        let mut out = io::stdout().lock();
        if undone.is_empty() {
            writeln!(out, "nothing to undo")?;
        }
        for one in &undone {
            writeln!(out, "{}", one_undone(one, args.dry_run))?;
        }
        if held > 0 {
            writeln!(out, "kept {held} leases, because their processes still run")?;
        }
    }
    if !left.is_empty() && !args.dry_run {
        return Err(PoolError::Remains(left.join(", ")).into());
    }
    Ok(())
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

fn print(
    counter: &Counter,
    format: Format,
    dry_run: bool,
    before: Counts,
    after: Counts,
    added: i64,
) -> Result<()> {
    if format == Format::Json {
        let change = Change {
            page_bytes: counter.size.bytes(),
            node: counter.node,
            dry_run,
            added,
            before,
            after,
        };
        output::json(SCHEMA, &change)?;
        return Ok(());
    }
    let pages = added.unsigned_abs();
    let bytes = ByteSize::new(pages.saturating_mul(counter.size.bytes()));
    let verb = match (dry_run, added >= 0) {
        (false, true) => "added",
        (false, false) => "returned",
        (true, true) => "would add",
        (true, false) => "would return",
    };
    let total = if dry_run {
        before.total.saturating_add_signed(added)
    } else {
        after.total
    };
    let can = if dry_run {
        String::new()
    } else {
        format!(", {} usable", after.idle())
    };
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{verb} {pages} pages of {} ({bytes}): nr_hugepages {} -> {total}{can}",
        counter.name(),
        before.total
    )?;
    Ok(())
}
