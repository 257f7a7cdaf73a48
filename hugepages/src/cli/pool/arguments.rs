//! The arguments of `hugepages pool reserve`, `release` and `restore`, and the number of pages that they mean.

use std::ffi::OsString;

use anyhow::{Result, bail};

use hugepages::kernel::HugePageSize;
use hugepages::plan::{GROW, Plan};
use hugepages::pool::{Amount, Counter, PoolError};

use super::which_pool::WhichPool;
use crate::cli::programs;

const LEASE: &str = "\
For scripts: print one line, keep the pages until the end of standard input, then return the added pages.

  ok ADDED               all pages are usable, ADDED of them are new
  short ADDED USABLE     too few pages: ADDED pages are new, USABLE are usable
  memory HAVE WANT KEEP  nothing changed: too little memory, in MiB
  none                   nothing changed: no such pool, or no right to change it

`short`: the lease keeps the new pages if ADDED reaches --at-least. Otherwise it returns them, and the exit code is 3. \
`memory`: adding the pages takes WANT MiB, HAVE MiB are available, and KEEP MiB must stay free.

The lease ends when no process holds the other end of standard input, even if these processes are killed. SIGINT, SIGTERM \
and SIGHUP end the lease too, unless this command inherited them as ignored. If this command itself is killed with SIGKILL, \
the next `hugepages pool reserve` or `hugepages pool restore` returns the pages.";

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
    pub server_arguments: Vec<OsString>,
    #[command(flatten)]
    pub which: WhichPool,
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
    #[arg(long, conflicts_with = "dry_run", long_help = LEASE)]
    pub lease: bool,
}

#[derive(Debug, clap::Args)]
pub struct Release {
    /// Pages or bytes to return; `all` returns all pages that this tool added
    #[arg(default_value = "all", allow_hyphen_values = true)]
    pub amount: AmountOrAll,
    #[command(flatten)]
    pub which: WhichPool,
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

impl Reserve {
    /// Replaces `--for` by an amount.
    pub fn resolved(&self) -> Result<Self> {
        if !self.for_model {
            return Ok(self.clone());
        }
        let arguments = self.server_arguments.iter().map(OsString::as_os_str);
        let server = programs::beside("llama-server")?;
        let plan = Plan::ask(&server, arguments.chain([GROW.as_ref()]))?;
        let Some((size, pages)) = plan.pages_that_may_be_missing() else {
            bail!("the model needs no huge pages from a pool");
        };
        Ok(Self {
            amount: Some(Amount::Pages(pages)),
            which: WhichPool {
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
    pub fn pages(&self, counter: &Counter) -> Result<u64, PoolError> {
        let pages = self.wanted(counter.size);
        if self.usable {
            return Ok(pages.saturating_sub(counter.read()?.idle()));
        }
        Ok(pages)
    }
}
