//! Prints a change: a sentence for people, JSON for programs.

use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

use hugepages::pool::{Counter, Counts};
use hugepages::size::ByteSize;

use crate::cli::output::{self, Format};

pub const SCHEMA: u32 = 1;

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

/// Pages that a command added or returned, or would with `--dry-run`.
#[derive(Clone, Copy)]
pub enum Pages {
    Added(u64),
    Returned(u64),
}

pub fn print_change(
    counter: &Counter,
    format: Format,
    dry_run: bool,
    before: Counts,
    after: Counts,
    change: Pages,
) -> Result<()> {
    let (verb, pages, added) = match change {
        Pages::Added(pages) if dry_run => ("would add", pages, pages.cast_signed()),
        Pages::Added(pages) => ("added", pages, pages.cast_signed()),
        Pages::Returned(pages) if dry_run => ("would return", pages, -pages.cast_signed()),
        Pages::Returned(pages) => ("returned", pages, -pages.cast_signed()),
    };
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
    let bytes = ByteSize::new(pages.saturating_mul(counter.size.bytes()));
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
