//! The commands of `hugepages pool`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use hugepages::kernel::Root;

use super::arguments::{Release, Reserve, Restore};
use super::{lease_holder, persist, release, reserve, restore};
use crate::cli::{Exit, output};

const PLACES: &str = "\
AMOUNT is a number of pages (4096, \"15360 pages\") or of bytes. K, M, G, T (or KiB, …) are powers of 1024; kB, MB, GB, TB are \
powers of 1000. Bytes are rounded up to whole pages.

Every change is logged in $LLAMA_HUGEPAGES_STATE (default: /run/llama-hugepages). `hugepages pool restore` undoes all logged \
changes.";

#[derive(Debug, clap::Args)]
#[command(after_help = PLACES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: output::Args,
    /// Directory that contains /sys, /proc, /run and /etc [default: /]
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add pages to the pool: all of them, or none
    #[command(after_help = PLACES)]
    Reserve(Reserve),
    /// Return idle pages that this tool added
    Release(Release),
    /// Undo all changes that this tool made since boot
    Restore(Restore),
    /// Write files that set the pool at every boot
    Persist(persist::Persist),
    /// Remove the files that `persist` wrote
    Unpersist(persist::Unpersist),
}

pub fn run(args: &Args) -> Result<Exit> {
    let root = match &args.root {
        None => Root::system(),
        Some(dir) => Root::at(dir)?,
    };
    let format = args.output.format;
    match &args.command {
        Command::Reserve(args) => {
            let args = args.resolved()?;
            if args.lease {
                return lease_holder::run(&root, &args);
            }
            reserve::reserve(&root, &args, format)?;
        }
        Command::Release(args) => release::release(&root, args, format)?,
        Command::Persist(args) => return persist::persist(&root, args),
        Command::Unpersist(args) => return persist::unpersist(&root, args),
        Command::Restore(args) => restore::restore(&root, args, format)?,
    }
    Ok(Exit::Success)
}
