//! `hugepages store`: models that stay on huge pages between processes.
//! Lives here: the arguments and their meaning. Not here: the store itself, which is `hugepages::store`.

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

use hugepages::store::{Store, StoreError};

use super::{Exit, output};

const SCHEMA: u32 = 1;

const ABOUT: &str = "\
A store is a hugetlbfs directory. `llama-server --hugepages --hugepage-store DIR` keeps its weights there, and every later \
server attaches to the same memory. A server finds a loaded model only if it runs with the same arguments.

To switch models: load the next model, restart the server with it, then drop the old model. `drop` refuses a model while a \
server is attached to it.";

#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: output::Args,
}

/// `Load` gets its help from the comment of its arguments.
#[derive(Debug, Subcommand)]
enum Command {
    Load(load::Load),
    /// List the models in a store
    List(list::List),
    /// Compare images with their checksums
    Verify(verify::Verify),
    /// Remove models from a store
    Drop(remove::Drop),
    /// Remove images that no process can use, or that no process used for a long time
    Gc(remove::Gc),
    /// Mount hugetlbfs for a store; the mount stays until reboot or `unmount`
    Mount(mount::Mount),
    /// Unmount a store and remove its directory
    Unmount(mount::Unmount),
}

#[derive(Clone, Debug, clap::Args)]
struct Which {
    /// Directory of the store; `auto`: the mount of `hugepages store mount`, or another hugetlbfs that this user can write to
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

/// `1 image`, `2 images`, `2 processes`
fn count(n: usize, what: &str) -> String {
    let ending = match n {
        1 => "",
        _ if what.ends_with('s') => "es",
        _ => "s",
    };
    format!("{n} {what}{ending}")
}
