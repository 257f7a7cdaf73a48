//! `hugepages pool`: changes the pools of huge pages, and undoes it.
//! Lives here: the arguments, and what they mean. Not here: how a pool is changed, which is `llama_hugepages::pool`.

mod change;
mod lease;
mod persist;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Subcommand;

use llama_hugepages::plan::Plan;
use llama_hugepages::pool::{Amount, ChangeError, Changer, Counter, HugePageSize, Root, State};

use super::{Exit, output, programs};

const PLACES: &str = "\
AMOUNT is a number of pages (4096, \"15360 pages\") or of bytes: K, M, G, T (or KiB …) count in powers of 1024,
kB, MB, GB, TB in powers of 1000. Bytes are rounded up to whole pages.

Every change is written down in $LLAMA_HUGEPAGES_STATE (default: /run/llama-hugepages) before and after it is made;
`hugepages pool restore` undoes all of them.";

#[derive(Debug, clap::Args)]
#[command(after_help = PLACES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: output::Args,
    /// Where /sys, /proc, /run and /etc are looked for
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add pages to what is there, all of them or none
    #[command(after_help = PLACES)]
    Reserve(Reserve),
    /// Give back idle pages that were added
    Release(Release),
    /// Undo every change that was made with this tool since boot
    Restore(Restore),
    /// Write files that set the pool at every boot
    Persist(persist::Persist),
    /// Remove the files that `persist` wrote
    Unpersist(persist::Unpersist),
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Which {
    /// Page size, such as 2M or 1G [default: the smallest of at least 2 MiB]
    #[arg(long)]
    size: Option<HugePageSize>,
    /// Only on this NUMA node
    #[arg(long, value_name = "N")]
    node: Option<u32>,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line, and any of them go together"
)]
#[derive(Clone, Debug, clap::Args)]
struct Reserve {
    /// How much: pages or bytes
    #[arg(allow_hyphen_values = true, required_unless_present = "for_model")]
    amount: Option<Amount>,
    /// As many as a model lacks: `--for -- -m model.gguf --ctx-size 8192`, with llama-server's arguments
    #[arg(long = "for", requires = "server_arguments", conflicts_with_all = ["amount", "size", "node"])]
    for_model: bool,
    /// Arguments of llama-server
    #[arg(last = true, requires = "for_model")]
    server_arguments: Vec<String>,
    #[command(flatten)]
    which: Which,
    /// See to it that AMOUNT can be had: add only what is missing
    #[arg(long)]
    usable: bool,
    /// Be content with so many pages
    #[arg(long, value_name = "PAGES")]
    at_least: Option<u64>,
    /// Drop caches, compact memory and try again, as long as that helps
    #[arg(long)]
    try_hard: bool,
    /// Then split idle pages of the next larger size
    #[arg(long)]
    demote: bool,
    /// First switch on that the kernel frees most page structs of huge pages (HVO)
    #[arg(long)]
    hvo: bool,
    /// Also when less than 1 GiB of memory, or 5 %, stays available
    #[arg(long)]
    force: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// For scripts: print one line, keep the pages until standard input ends, then give them back
    #[arg(long, conflicts_with = "dry_run", long_help = lease::HELP)]
    lease: bool,
}

#[derive(Debug, clap::Args)]
struct Release {
    /// Pages, bytes, or `all` that was added with this tool
    #[arg(default_value = "all", allow_hyphen_values = true)]
    amount: AmountOrAll,
    #[command(flatten)]
    which: Which,
    /// Also idle pages that somebody else added
    #[arg(long)]
    force: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
struct Restore {
    /// Say what would be undone, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug)]
enum AmountOrAll {
    All,
    Amount(Amount),
}

impl std::str::FromStr for AmountOrAll {
    type Err = llama_hugepages::pool::ParseAmountError;

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

/// What the user can do about an error, with the command that was run.
pub fn hint(error: &ChangeError) -> Option<String> {
    error.hint(&programs::own_command())
}

impl Which {
    fn counter(self, root: &Root) -> Result<Counter, ChangeError> {
        let default = || HugePageSize::of_images(root);
        let size = self.size.or_else(default).ok_or(ChangeError::NoPools)?;
        Counter::new(root, size, self.node)
    }
}

impl Reserve {
    /// With what `--for` asks for as an amount.
    fn resolved(&self) -> Result<Self> {
        if !self.for_model {
            return Ok(self.clone());
        }
        let plan = Plan::ask(&programs::beside("llama-server")?, &self.server_arguments)?;
        // Larger pages are planned where they are, and are never short.
        let Some((size, pages)) = plan.pages().into_iter().next() else {
            bail!("this needs no page of a pool");
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

    /// What was asked for, in pages.
    fn wanted(&self, size: HugePageSize) -> u64 {
        self.amount.map_or(0, |amount| amount.pages(size))
    }

    /// Pages to add.
    fn pages(&self, counter: &Counter) -> Result<u64, ChangeError> {
        let pages = self.wanted(counter.size);
        if self.usable {
            return Ok(pages.saturating_sub(counter.read()?.idle()));
        }
        Ok(pages)
    }
}

/// Returns pages that a killed command left in the pool. The next reservation would do so, and a caller that compares the pool
/// before and after its work would find fewer pages than at its start.
pub fn reap(root: &Root) {
    let reaped = changer(root).and_then(|mut changer| changer.reap());
    // A user who may not change the pool uses the pages that are free.
    change::say_reaped(&reaped.unwrap_or_default());
}

/// The journal and the lock. Says so when somebody else holds it.
pub fn changer(root: &Root) -> Result<Changer, ChangeError> {
    let waiting = || eprintln!("waiting for another command that changes the pool");
    Changer::open(root, &State::open(root)?, waiting)
}
