//! `hugepages pool restore`

use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

use hugepages::kernel::Root;
use hugepages::pool::{PoolError, Undone};

use super::arguments::Restore;
use super::lock::lock_pools;
use super::print_change::SCHEMA;
use super::undone::{one_left, one_undone};
use crate::cli::output::{self, Format};

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
