//! `hugepages store`: models that stay on huge pages when no process has them.
//! Lives here: the arguments, and what they mean. Not here: what a store is, which is `llama_hugepages::store`.

pub mod fill;
mod list;
mod load;
mod mount;
mod remove;
mod verify;

use std::ffi::OsString;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Subcommand;

use llama_hugepages::store::{Store, StoreError};

use super::{Exit, output};

const SCHEMA: u32 = 1;

const ABOUT: &str = "\
A store is a hugetlbfs directory. `llama-server --hugepages --hugepage-store DIR` keeps a model there, and every further \
process attaches to the same memory. What is loaded here is found by a server with the same arguments; to switch models, drop one \
and load the other.";

#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: output::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load models into a store, and serve nothing
    Load(load::Load),
    /// Show what a store holds
    List(list::List),
    /// Compare images with their checksums
    Verify(verify::Verify),
    /// Remove models from a store
    Drop(remove::Drop),
    /// Remove what nobody can use any more, or what was not used for long
    Gc(remove::Gc),
    /// Mount hugetlbfs for a store; the mount stays
    Mount(mount::Mount),
    /// Unmount a store, and remove its directory
    Unmount(mount::Unmount),
}

#[derive(Clone, Debug, clap::Args)]
struct Which {
    /// The store's directory, or `auto`: what `hugepages store mount` made, else any hugetlbfs that this user may write to
    #[arg(
        long,
        value_name = "DIR",
        default_value = Store::AUTO,
        env = "LLAMA_ARG_HUGEPAGE_STORE"
    )]
    store: OsString,
}

impl Which {
    fn open(&self) -> Result<Store, StoreError> {
        Store::open(&self.store)
    }
}

pub fn run(args: &Args) -> Result<Exit> {
    let format = args.output.format;
    match &args.command {
        Command::Load(args) => load::run(args, format)?,
        Command::List(args) => list::run(args, format)?,
        Command::Verify(args) => return verify::run(args, format),
        Command::Drop(args) => remove::drop(args, format)?,
        Command::Gc(args) => return remove::gc(args, format),
        Command::Mount(args) => mount::mount(args, format)?,
        Command::Unmount(args) => mount::unmount(args, format)?,
    }
    Ok(Exit::Success)
}

/// Seconds since 1970.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

/// `1 image`, `2 images`
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
