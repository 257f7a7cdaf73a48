//! The order of the steps: plan, add pages, run the server, and again if other processes took the pages.

use std::ffi::OsString;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use hugepages::kernel::{self, Root};
use hugepages::plan::Plan;
use hugepages::server_arguments::{STORE, STORE_VARIABLE, chooses_policy, names_model, value};

use super::address::Address;
use super::invoker::Invoker;
use super::server::{Ended, Signals, Start, say};
use crate::cli::lease::{self, Answer, Lease};
use crate::cli::store::fill;
use crate::cli::{Exit, programs};

/// Serve a model on huge pages
///
/// Computes the pages that the model needs, adds exactly the missing ones to the pool, runs `llama-server --hugepages`, and
/// returns the pages when the server ends, however it ends. If this user may not change the pool, it prints the command for an
/// administrator, and the server uses the free pages.
///
/// Under sudo, it changes the pool as root and runs the server as the user who called sudo.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Put the options of `serve` before the options of llama-server:
  hugepages serve -m model.gguf --port 8081
  hugepages serve --keep -m model.gguf

The exit code is llama-server's: 3 if too few pages are usable under `--hugepage-policy require`.")]
pub struct Args {
    /// Keep the weights on huge pages after the end, in a store, so that the next start attaches to them
    #[arg(long)]
    keep: bool,

    /// llama-server to run [default: in the directory of this program]
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,

    /// Arguments of llama-server, such as -m model.gguf
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "SERVER ARGUMENTS"
    )]
    arguments: Vec<OsString>,
}

/// Maximum number of starts, because other processes may take the pages first.
const ATTEMPTS: usize = 5;
/// Pause before the next start: another starting server takes its pages within this time.
const PAUSE: Duration = Duration::from_millis(500);

pub fn run(args: &Args) -> Result<Exit> {
    let signals = Signals::new()?;
    let program = match &args.server {
        Some(path) => path.clone(),
        None => programs::beside("llama-server")?,
    };
    if !program.is_file() {
        bail!(
            "`{}` is missing\nhint: pass the path of llama-server with --server",
            program.display()
        );
    }
    if !names_model(&args.arguments) {
        bail!("the arguments name no model\nhint: hugepages serve -m model.gguf");
    }
    let address = Address::of(&args.arguments);
    if address.is_taken() {
        bail!(
            "{address} is in use\nhint: choose another port: --port {}",
            address.port().wrapping_add(1)
        );
    }

    let invoker = Invoker::of_sudo()?;
    let wrapper = invoker.as_ref().map(Invoker::wrapper).unwrap_or_default();
    let mut arguments: Vec<OsString> = vec!["--hugepages".into()];
    if args.keep {
        let wanted = value(&args.arguments, STORE, STORE_VARIABLE);
        let is_chosen = wanted.is_some();
        let store = fill(
            &program,
            &args.arguments,
            wrapper.clone(),
            wanted,
            signals.flag(),
        )?;
        if !is_chosen {
            arguments.extend([STORE.into(), store.into_os_string()]);
        }
    }
    // Last, so that the user's arguments override ours.
    arguments.extend(args.arguments.iter().cloned());

    let mut leases = Vec::new();
    for attempt in 1..=ATTEMPTS {
        let plan = Plan::ask_through(&wrapper, &program, &arguments)?;
        let is_complete = lend(&plan, &signals, &mut leases)?;
        if signals.stopped() {
            return Ok(Exit::Interrupted);
        }
        let policy = (!is_complete && !chooses_policy(&arguments)).then_some("prefer");
        let start = Start {
            program: &program,
            arguments: &arguments,
            policy,
            wrapper: &wrapper,
            address: &address,
            bytes: plan.page_bytes(),
        };
        match start.run(&signals)? {
            Ended::Served(code) => return Ok(Exit::Server(code)),
            // A process that starts at the same time may take the pages before the server reserves them.
            Ended::Short if attempt < ATTEMPTS && is_complete && !signals.stopped() => {
                say("other processes took pages in the meantime; adding more pages");
                thread::sleep(PAUSE);
            }
            Ended::Short => break,
        }
    }
    Ok(Exit::Short)
}

/// Adds the pages that the plan lacks. Returns `false`, and prints the reason, if some of them stay missing.
fn lend(plan: &Plan, signals: &Signals, leases: &mut Vec<Lease>) -> Result<bool> {
    let mut is_complete = true;
    for (size, pages) in plan.pages() {
        let usable = kernel::usable(&Root::system(), size);
        if usable >= pages {
            continue;
        }
        let asked = Lease::ask(size, pages, &["--at-least", "0"], signals.flag())?;
        let Some((lease, answer)) = asked else {
            return Ok(false);
        };
        leases.push(lease);
        is_complete &= answer == Answer::Complete;
        match answer {
            Answer::Complete => {}
            Answer::Short { usable } => {
                say(&format!(
                    "{usable} of {pages} huge pages are usable; the rest of the model uses ordinary memory"
                ));
                say(
                    "hint: the kernel finds most pages right after boot, before memory is fragmented",
                );
            }
            Answer::Memory {
                available,
                needed,
                keep,
            } => say(&format!(
                "adding pages takes {needed} MiB of memory, but {available} MiB are available and {keep} MiB must stay free; \
                 {usable} of {pages} huge pages are usable; the rest of the model uses ordinary memory"
            )),
            Answer::Refused => {
                say(&format!(
                    "{usable} of {pages} huge pages of {size} are usable, and this user cannot change the pool; \
                     the rest of the model uses ordinary memory"
                ));
                say(&format!("hint: {}", lease::command(size, pages)));
            }
        }
    }
    Ok(is_complete)
}
