//! `hugepages pool`: changes the huge page pools, and undoes these changes.
//! Lives here: the arguments and their meaning. Not here: the changes themselves, which are in `hugepages::pool`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Subcommand;

use hugepages::kernel::{HugePageSize, Root, sizes};
use hugepages::plan::Plan;
use hugepages::pool::{Amount, ChangeError, Changer, Counter, State};

use super::{change, lease, persist};
use crate::cli::{Exit, output, programs};

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

#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Which {
    /// Page size, for example 2M or 1G [default: the smallest size of at least 2 MiB]
    #[arg(long)]
    pub size: Option<HugePageSize>,
    /// Change only the pool of this NUMA node
    #[arg(long, value_name = "N")]
    pub node: Option<u32>,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line, and all combinations are valid"
)]
#[derive(Clone, Debug, clap::Args)]
pub struct Reserve {
    /// Pages or bytes to add
    #[arg(allow_hyphen_values = true, required_unless_present = "for_model")]
    pub amount: Option<Amount>,
    /// Add the pages that a model lacks: `--for -- -m model.gguf --ctx-size 8192`
    #[arg(long = "for", requires = "server_arguments", conflicts_with_all = ["amount", "size", "node"])]
    pub for_model: bool,
    /// Arguments of llama-server, for --for
    #[arg(last = true, requires = "for_model")]
    pub server_arguments: Vec<String>,
    #[command(flatten)]
    pub which: Which,
    /// Add only the missing pages, so that AMOUNT is usable
    #[arg(long)]
    pub usable: bool,
    /// Accept at least this many pages [default: all pages]
    #[arg(long, value_name = "PAGES")]
    pub at_least: Option<u64>,
    /// Drop caches, compact memory and try again, as long as this adds pages
    #[arg(long)]
    pub try_hard: bool,
    /// Split idle pages of the next larger size if pages are still missing
    #[arg(long)]
    pub demote: bool,
    /// Switch on HVO first: the kernel frees most of the `struct page` memory of added pages
    #[arg(long)]
    pub hvo: bool,
    /// Add pages even if less than 1 GiB of memory, or less than 5 %, stays available
    #[arg(long)]
    pub force: bool,
    /// Print the change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// For scripts: print one line, keep the pages until the end of standard input, then return them
    #[arg(long, conflicts_with = "dry_run", long_help = lease::HELP)]
    pub lease: bool,
}

#[derive(Debug, clap::Args)]
pub struct Release {
    /// Pages or bytes to return; `all` returns all pages that this tool added
    #[arg(default_value = "all", allow_hyphen_values = true)]
    pub amount: AmountOrAll,
    #[command(flatten)]
    pub which: Which,
    /// Also return idle pages that others added
    #[arg(long)]
    pub force: bool,
    /// Print the change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub struct Restore {
    /// Print the changes to undo, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum AmountOrAll {
    All,
    Amount(Amount),
}

impl std::str::FromStr for AmountOrAll {
    type Err = hugepages::pool::ParseAmountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            _ => text.parse().map(Self::Amount),
        }
    }
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
                return lease::run(&root, &args);
            }
            change::reserve(&root, &args, format)?;
        }
        Command::Release(args) => change::release(&root, args, format)?,
        Command::Persist(args) => return persist::persist(&root, args),
        Command::Unpersist(args) => return persist::unpersist(&root, args),
        Command::Restore(args) => change::restore(&root, args, format)?,
    }
    Ok(Exit::Success)
}

/// The hint for an error, with the command of this process.
pub fn hint(error: &ChangeError) -> Option<String> {
    error.hint(&programs::own_command())
}

impl Which {
    pub fn counter(self, root: &Root) -> Result<Counter, ChangeError> {
        let default = || sizes::of_images(root);
        let size = self.size.or_else(default).ok_or(ChangeError::NoPools)?;
        Counter::new(root, size, self.node)
    }
}

impl Reserve {
    /// Replaces `--for` by an amount.
    pub fn resolved(&self) -> Result<Self> {
        if !self.for_model {
            return Ok(self.clone());
        }
        let plan = Plan::ask(&programs::beside("llama-server")?, &self.server_arguments)?;
        // The plan uses larger pages only if they are usable, so only the first size can be short.
        let Some((size, pages)) = plan.pages().into_iter().next() else {
            bail!("the model needs no huge pages from a pool");
        };
        Ok(Self {
            amount: Some(Amount::Pages(pages)),
            which: Which {
                size: Some(size),
                node: None,
            },
            usable: true,
            ..self.clone()
        })
    }

    /// The requested amount, in pages.
    pub fn wanted(&self, size: HugePageSize) -> u64 {
        self.amount.map_or(0, |amount| amount.pages(size))
    }

    /// Pages to add.
    pub fn pages(&self, counter: &Counter) -> Result<u64, ChangeError> {
        let pages = self.wanted(counter.size);
        if self.usable {
            return Ok(pages.saturating_sub(counter.read()?.idle()));
        }
        Ok(pages)
    }
}

/// Returns pages that a killed command left in the pool. Otherwise the next reservation would return them, and a caller that
/// compares the pool before and after its work would see a smaller pool.
pub fn reap(root: &Root) {
    let reaped = changer(root).and_then(|mut changer| changer.reap());
    // No error, because a user who cannot change the pool can still use its free pages.
    change::say_reaped(&reaped.unwrap_or_default());
}

/// Opens the journal and takes the lock. Prints a message if it must wait for the lock.
pub fn changer(root: &Root) -> Result<Changer, ChangeError> {
    let waiting = || eprintln!("waiting for the lock: another command is changing the pool");
    Changer::open(root, &State::open(root)?, waiting)
}
