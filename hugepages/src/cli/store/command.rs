//! The commands of `hugepages store`.

use anyhow::Result;
use clap::Subcommand;

use super::{list, load, mount, remove, verify};
use crate::cli::{Exit, output};

const ABOUT: &str = "\
A store is a hugetlbfs directory. `llama-server --hugepages --hugepage-store DIR` keeps its weights there, and every later \
server attaches to the same memory. A server finds a loaded model only if the options that place weights are the same.

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
