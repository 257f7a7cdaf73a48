//! State of ordinary memory: available memory, swap, and stalls.

use serde::Serialize;

use super::{Root, files, meminfo};

/// Ordinary memory. Available memory does not include the pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Memory {
    /// `MemTotal`, pool included.
    pub total_bytes: Option<u64>,
    /// `MemAvailable`: memory that is usable without swapping.
    pub available_bytes: Option<u64>,
    /// Size of the swap.
    pub swap_bytes: Option<u64>,
    /// Swap in use.
    pub swap_used_bytes: Option<u64>,
    /// Memory of page tables.
    pub page_table_bytes: Option<u64>,
    /// `/proc/pressure/memory`. Absent if the kernel does not measure it.
    pub stalls: Option<Stalls>,
}

/// Time that tasks lost to a lack of memory.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stalls {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks waited.
    pub full: Stall,
}

/// Share of the time, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stall {
    /// Of the last 10 seconds.
    pub avg10: f64,
    /// Of the last minute.
    pub avg60: f64,
    /// Of the last five minutes.
    pub avg300: f64,
}

/// Reads the state of ordinary memory.
pub fn read(root: &Root) -> Memory {
    let meminfo = meminfo::read(root).unwrap_or_default();
    let bytes = |name| meminfo.bytes(name);
    let pressure = files::text(root, "/proc/pressure/memory").unwrap_or_default();
    Memory {
        total_bytes: bytes("MemTotal"),
        available_bytes: bytes("MemAvailable"),
        swap_bytes: bytes("SwapTotal"),
        swap_used_bytes: bytes("SwapTotal")
            .zip(bytes("SwapFree"))
            .map(|(total, free)| total.saturating_sub(free)),
        page_table_bytes: bytes("PageTables"),
        stalls: stall(&pressure, "some ")
            .zip(stall(&pressure, "full "))
            .map(|(some, full)| Stalls { some, full }),
    }
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`
fn stall(text: &str, kind: &str) -> Option<Stall> {
    let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
    let value = |name: &str| {
        let mut words = line.split(' ');
        words
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?
            .parse()
            .ok()
    };
    Some(Stall {
        avg10: value("avg10")?,
        avg60: value("avg60")?,
        avg300: value("avg300")?,
    })
}
