//! `hugepages` alone: the machine's state in five lines, and the command to run next.

use std::io::{self, Write};

use anyhow::Result;

use hugepages::doctor::{Severity, examine};
use hugepages::kernel::PoolState;
use hugepages::kernel::Root;
use hugepages::size::ByteSize;
use hugepages::status::{Asking, Status};
use hugepages::store::Store;

use super::output::{count, printable};

/// The finding of `hugepages doctor` about a pool with too few pages.
const EMPTY_POOL: &str = "pool";

pub fn run() -> Result<()> {
    let root = Root::system();
    let status = Status::read(&root, Asking::Never);
    let diagnosis = examine(&root, &[], None);
    let problems = diagnosis.findings.iter();
    let problems = problems.filter(|finding| finding.severity >= Severity::Problem);
    // `hugepages serve` fills an empty pool.
    let problems = problems.filter(|finding| finding.id != EMPTY_POOL);
    let (health, next) = match problems.count() {
        0 => (
            "no problem found".to_owned(),
            "hugepages serve -m MODEL.gguf",
        ),
        n => (format!("{n} found"), "hugepages doctor"),
    };
    let lines = [
        ("memory", memory(&status)),
        ("pools", pools(&status)),
        ("used by", users(&status)),
        ("store", store()),
        ("problems", health),
    ];
    let mut out = io::stdout().lock();
    for (name, text) in lines {
        writeln!(out, "{name:<9} {}", printable(&text))?;
    }
    writeln!(out, "\nnext: {next}   (all commands: hugepages --help)")?;
    Ok(())
}

fn memory(status: &Status) -> String {
    let memory = &status.memory;
    format!(
        "{}, of which {} are available",
        ByteSize::new(memory.total_bytes.unwrap_or(0)),
        ByteSize::new(memory.available_bytes.unwrap_or(0))
    )
}

fn pools(status: &Status) -> String {
    let pool = |pool: &PoolState| {
        format!(
            "{} pages of {}, {} usable",
            pool.total, pool.page_size, pool.usable
        )
    };
    let filled = status.pools.iter().filter(|pool| pool.total > 0);
    let filled: Vec<_> = filled.map(pool).collect();
    if filled.is_empty() {
        "empty; `hugepages serve` adds the pages of a model".to_owned()
    } else {
        filled.join("; ")
    }
}

fn users(status: &Status) -> String {
    let of = |user: &hugepages::status::User| {
        format!(
            "{} ({}) with {}",
            user.name,
            user.pid,
            ByteSize::new(user.bytes)
        )
    };
    let users: Vec<_> = status.users.iter().map(of).collect();
    if users.is_empty() {
        "no process".to_owned()
    } else {
        users.join(", ")
    }
}

fn store() -> String {
    let Ok(store) = Store::open(Store::AUTO) else {
        return "none; `hugepages serve --keep` keeps a model for the next start".to_owned();
    };
    let Ok(entries) = store.entries() else {
        return format!("{}, which cannot be read", store.path().display());
    };
    let bytes: u64 = entries.images.iter().map(|image| image.bytes).sum();
    format!(
        "{} with {}, {}",
        store.path().display(),
        count(entries.images.len(), "image"),
        ByteSize::new(bytes)
    )
}
