//! The steps of `hugepages exec`: check, plan, run, report.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

use anyhow::Result;

use hugepages::kernel::HugePageSize;
use hugepages::plan::Plan;
use hugepages::serve::{
    Event, ForwardedSignals, LIBRARY, Options, Outcome, Preloaded, Progress, pages_of_program,
};

use super::arguments::Args;
use crate::cli::{Exit, events, programs};

pub fn run(args: &Args) -> Result<Exit> {
    let signals = ForwardedSignals::new()?;
    let library = match &args.library {
        Some(path) => std::path::absolute(path)?,
        None => programs::beside(LIBRARY)?,
    };
    let options = Options {
        policy: args.policy.clone(),
        size: args.size.clone(),
    };
    let program = Preloaded::new(&args.words, library, options)?;
    let pages = pages(args, &program)?;
    if io::stdin().is_terminal() {
        signals.share_terminal();
    }
    let (outcome, reports) = program.run(&pages, &signals, &Sentences)?;
    for report in &reports {
        let _ = write!(
            io::stderr(),
            "exec: huge pages of the program\n{}\n",
            report.trim_end()
        );
    }
    if reports.is_empty() && matches!(outcome, Outcome::Served(_)) {
        events::say(
            "exec",
            "no report arrived: the program used no model of at least HUGEPAGES_PRELOAD_MIN bytes, or it ran as another user or in \
             another namespace",
        );
    }
    Ok(match outcome {
        Outcome::Served(code) => Exit::Server(code),
        Outcome::Short => Exit::Short,
        Outcome::Interrupted => Exit::Interrupted,
    })
}

/// The pages that the program needs, if `--plan-from` names its model.
fn pages(args: &Args, program: &Preloaded) -> Result<BTreeMap<HugePageSize, u64>> {
    let Some(model) = &args.plan_from else {
        return Ok(BTreeMap::new());
    };
    let server = programs::beside("llama-server")?;
    let mut words: Vec<OsString> = vec!["--hugepages".into()];
    words.extend_from_slice(program.server_arguments());
    words.extend(["--model".into(), model.into()]);
    if let Some(size) = &args.size {
        words.extend(["--hugepage-size".into(), size.into()]);
    }
    let plan = Plan::ask_through(program.wrapper(), &server, &words)?;
    Ok(pages_of_program(&plan))
}

/// Sentences only: the program has the terminal.
struct Sentences;

impl Progress for Sentences {
    fn begin(&self, _bytes: u64) {}

    fn is_shown(&self) -> bool {
        false
    }

    fn loaded(&self, _bytes: u64) {}

    fn log(&self, _line: &[u8]) {}

    fn end(&self) {}

    fn tell(&self, event: &Event<'_>) {
        events::tell("exec", event);
    }
}
