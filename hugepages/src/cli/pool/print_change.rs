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

pub fn print_change(
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
