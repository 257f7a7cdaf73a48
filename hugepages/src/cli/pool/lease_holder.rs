//! `hugepages pool reserve --lease`: adds pages and returns them at the end of standard input.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::iterator::Signals;

use hugepages::ending_signals::ending_signals;
use hugepages::kernel::Root;
use hugepages::pool::lease::Answer;
use hugepages::pool::{Counter, Holder, PoolError, Reserved};

use super::arguments::Reserve;
use super::lock::lock_pools;
use super::reserve::{say_rounding, wish};
use super::undone::say_reaped;
use crate::cli::Exit;

/// How long the lease waits for pages that are still in use.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn run(root: &Root, args: &Reserve) -> Result<Exit> {
    let (sender, ended) = channel();
    // Before the pages are added, so that a signal in between does not lose them.
    watch_signals(&sender)?;
    let lent = lend(root, args);
    let (counter, reserved) = match lent {
        Ok(lent) => lent,
        Err(error) => {
            answer(Answer::refusal(&error));
            return Err(error.into());
        }
    };
    let wanted = args.wanted(counter.size);
    let usable = reserved.after.idle();
    if reserved.added > 0 {
        say(&format!(
            "nr_hugepages is {}, {usable} pages are usable",
            reserved.after.total
        ));
    }
    let missing = reserved.id.is_some() && usable < wanted && args.usable;
    if missing || (!args.usable && reserved.added < wanted) {
        answer(Answer::Short {
            added: reserved.added,
            usable,
        });
    } else {
        answer(Answer::Complete {
            added: reserved.added,
        });
    }

    watch_input(sender);
    let signalled = ended.recv().unwrap_or(false);
    if let Some(id) = reserved.id {
        give_back(root, &counter, id, reserved.added)?;
    }
    Ok(if signalled {
        Exit::Interrupted
    } else {
        Exit::Success
    })
}

fn lend(root: &Root, args: &Reserve) -> Result<(Counter, Reserved), PoolError> {
    let counter = args.which.counter(root)?;
    say_rounding(args, counter.size);
    counter.writable()?;
    let mut pools = lock_pools(root)?;
    say_reaped(&pools.reap()?);
    let pages = args.pages(&counter)?;
    let before = counter.read()?;
    let size = counter.size.bytes() / 1024;
    let wanted = args.wanted(counter.size);
    let needs = format!(
        "{wanted} pages of {size} kB are needed, {} are free",
        before.idle()
    );
    if pages == 0 {
        say(&format!("{needs}: nothing to do"));
    } else {
        let goal = before.total.saturating_add(pages);
        say(&format!("{needs}: nr_hugepages {} -> {goal}", before.total));
    }
    if args.hvo {
        pools.switch_on_hvo()?;
    }
    let mut wish = wish(args, pages);
    wish.holder = Some(Holder::own());
    let reserved = pools.reserve(&counter, &wish)?;
    Ok((counter, reserved))
}

fn give_back(root: &Root, counter: &Counter, id: u64, added: u64) -> Result<()> {
    // A dying process needs a moment to return its pages. Pages still in use leave the pool later, when their users release them.
    let start = Instant::now();
    while counter.read()?.idle() < added && start.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(20));
    }
    let undone = lock_pools(root)?.give_back(id)?;
    let now = counter.read()?;
    let surplus = match now.surplus {
        0 => String::new(),
        surplus => format!(", of which {surplus} are surplus pages that other processes still use"),
    };
    say(&format!(
        "returned {} pages: nr_hugepages is {}{surplus}",
        undone.pages, now.total
    ));
    if undone.left > 0 {
        let left = format!("{} pages are still in the pool", undone.left);
        return Err(PoolError::Remains(left).into());
    }
    Ok(())
}

/// Sends `true` at the first signal.
fn watch_signals(sender: &Sender<bool>) -> Result<()> {
    let mut signals = Signals::new(ending_signals()).context("cannot install a signal handler")?;
    let sender = sender.clone();
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = sender.send(true);
        }
    });
    Ok(())
}

/// Sends `false` at the end of standard input.
fn watch_input(sender: Sender<bool>) {
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        let mut bytes = [0; 256];
        loop {
            match input.read(&mut bytes) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
                _ => {}
            }
        }
        let _ = sender.send(false);
    });
}

/// Ignores a closed stderr, because the lease must return the pages in any case.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "pool: {text}");
}

fn answer(answer: Answer) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{answer}");
    let _ = out.flush();
}
