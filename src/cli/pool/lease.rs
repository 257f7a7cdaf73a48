//! `hugepages pool reserve --lease`: pages for as long as somebody holds the other end of standard input.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use llama_hugepages::pool::{ChangeError, Counter, Holder, Reserved, Root};
use llama_hugepages::size::ByteSize;

use super::{Reserve, changer};
use crate::cli::Exit;
use crate::cli::pool::change::{say_reaped, say_rounding, wish};
use crate::cli::signals::is_ignored;

pub const HELP: &str = "\
For scripts: print one line, keep the pages until standard input ends, then give back what was added.

  ok ADDED               the pages are there, ADDED of them are on loan
  short ADDED USABLE     fewer, as --at-least allows; or none were kept, with exit code 3
  memory HAVE WANT KEEP  nothing was done: HAVE MiB are available, WANT are needed and KEEP have to stay
  none                   nothing was done: there is no such pool, or no right to change it

Whoever holds the other end of that input keeps the pages, so they come back however the holders end. SIGINT, SIGTERM
and SIGHUP end it too, unless they were ignored when it was started. After a SIGKILL of its own the next
`hugepages pool reserve` or `restore` gives the pages back.";

/// How long pages may still be in use after the end.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn run(root: &Root, args: &Reserve) -> Result<Exit> {
    let (sender, ended) = channel();
    // From before the pages are there: a signal in between must not lose them.
    watch_signals(&sender)?;
    let lent = lend(root, args);
    let (counter, reserved) = match lent {
        Ok(lent) => lent,
        Err(error) => {
            answer(&refusal(&error));
            return Err(error.into());
        }
    };
    let wanted = args.wanted(counter.size);
    let usable = reserved.after.idle();
    if reserved.added > 0 {
        say(&format!(
            "nr_hugepages is {}, {usable} pages can be used",
            reserved.after.total
        ));
    }
    let missing = reserved.id.is_some() && usable < wanted && args.usable;
    if missing || (!args.usable && reserved.added < wanted) {
        answer(&format!("short {} {usable}", reserved.added));
    } else {
        answer(&format!("ok {}", reserved.added));
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

fn lend(root: &Root, args: &Reserve) -> Result<(Counter, Reserved), ChangeError> {
    let counter = args.which.counter(root)?;
    say_rounding(args, counter.size);
    counter.writable()?;
    let mut changer = changer(root)?;
    say_reaped(&changer.reap()?);
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
        changer.hvo()?;
    }
    let mut wish = wish(args, pages);
    wish.holder = Some(Holder::own());
    let reserved = changer.reserve(&counter, &wish)?;
    Ok((counter, reserved))
}

/// The line that a script reads.
fn refusal(error: &ChangeError) -> String {
    let mib = |bytes: &ByteSize| bytes.bytes().div_ceil(1 << 20);
    match error {
        ChangeError::Memory {
            need,
            available,
            keep,
            ..
        } => {
            format!(
                "memory {} {} {}",
                available.bytes() >> 20,
                mib(need),
                mib(keep)
            )
        }
        ChangeError::Short { usable, .. } => format!("short 0 {usable}"),
        _ => "none".to_owned(),
    }
}

fn give_back(root: &Root, counter: &Counter, id: u64, added: u64) -> Result<()> {
    // A process gives its pages back while it dies, which takes a moment. Those that are still in use after that leave the
    // pool when their users release them.
    let start = Instant::now();
    while counter.read()?.idle() < added && start.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(20));
    }
    let undone = changer(root)?.give_back(id)?;
    let now = counter.read()?;
    let surplus = match now.surplus {
        0 => String::new(),
        surplus => format!(", {surplus} of them in use by others until they release them"),
    };
    say(&format!(
        "gave back {} pages: nr_hugepages is {}{surplus}",
        undone.pages, now.total
    ));
    if undone.left > 0 {
        let left = format!("{} pages are still in the pool", undone.left);
        return Err(ChangeError::Remains(left).into());
    }
    Ok(())
}

/// `true` when one comes.
fn watch_signals(sender: &Sender<bool>) -> Result<()> {
    let heeded = [SIGINT, SIGTERM, SIGHUP];
    let mut signals = Signals::new(heeded.iter().filter(|signal| !is_ignored(**signal)))
        .context("cannot install a signal handler")?;
    let sender = sender.clone();
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = sender.send(true);
        }
    });
    Ok(())
}

/// `false` when it ends.
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

/// Nobody may be left to hear it, and the pages have to come back all the same.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "pool: {text}");
}

fn answer(line: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
