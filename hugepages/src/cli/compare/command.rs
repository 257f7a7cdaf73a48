//! The order of the cases, and the exit code.
//! Not here: measuring, which is `hugepages::compare`.

use std::env;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use hugepages::compare::{CASES, Machine, Pause, Program, Programs, Report, Runner};
use hugepages::kernel::Root;
use hugepages::serve::LIBRARY;

use super::arguments::{ALL, Args, PERPLEXITY, PRESSURE, SCHEMA, SERVERS, SWITCH, TRAFFIC};
use super::session::Session;
use super::{models, pages, print};
use crate::cli::output::{self, Format};
use crate::cli::{Exit, pool, programs, signals};

pub fn run(args: &Args) -> Result<Exit> {
    let stop = signals::stop()?;
    models::check(args)?;
    let programs = programs_of(args)?;
    let models = models::all(args, &stop)?;
    let place = models.first().map_or(Path::new("/"), |model| &model.path);
    if !args.no_reserve {
        pool::reap(&Root::system());
    }
    let report = Report::new(
        Machine::read(place),
        env::args().collect(),
        vec![programs.baseline.clone(), programs.ours.clone()],
    );
    let mut session = Session {
        args,
        programs,
        runner: Runner {
            pairs: args.pairs.into(),
            tokens: args.tokens,
            speed_tokens: args.speed_tokens,
            patience: Duration::from_secs(args.patience),
            cancelled: &stop,
        },
        pages: pages::Pages::new(args.no_reserve, &stop),
        report,
        hung: Vec::new(),
    };
    let wanted = |name: &str| args.cases.iter().any(|case| case == name || case == ALL);
    for model in &models {
        session.begin(model)?;
        for row in CASES.iter().filter(|row| wanted(row.name)) {
            session.row(row, model)?;
        }
        if wanted(PERPLEXITY) {
            session.perplexity(model)?;
        }
        if wanted(SERVERS) {
            session.servers(model)?;
        }
        for pause in [Pause::Restart, Pause::Sleep] {
            if wanted(pause.name()) {
                session.restart(pause, model)?;
            }
        }
        if wanted(PRESSURE) {
            session.pressure(model)?;
        }
    }
    if wanted(SWITCH) {
        session.switch(&models)?;
    }
    if wanted(TRAFFIC) {
        session.traffic(&models)?;
    }
    let report = session.end();
    print::files(args, &report)?;
    match args.output.format {
        Format::Json => output::json(SCHEMA, &report)?,
        Format::Human => print::end(&report)?,
    }
    exit(args, &report)
}

fn exit(args: &Args, report: &Report) -> Result<Exit> {
    if report.failed.iter().any(|failed| failed.unequal) {
        return Ok(Exit::Unequal);
    }
    if args.gate && report.broken().next().is_some() {
        bail!("a count of memory, pages, faults or tokens is out of its bounds");
    }
    if !report.failed.is_empty() {
        return Ok(Exit::Failure);
    }
    if report.is_empty() {
        bail!("no case could run on this machine");
    }
    Ok(Exit::Success)
}

fn programs_of(args: &Args) -> Result<Programs> {
    let ours = programs::beside("llama-server")?;
    let baseline = match &args.baseline {
        Some(path) => path.clone(),
        None => programs::beside("../stock/build/bin/llama-server")?,
    };
    for (program, hint) in [
        (&ours, "cargo build --release"),
        (&baseline, "--baseline PROGRAM, or cargo xtask stock"),
    ] {
        if !program.exists() {
            bail!("program `{}` not found\nhint: {hint}", program.display());
        }
    }
    Ok(Programs {
        baseline: Program::ask(&baseline)?,
        ours: Program::ask(&ours)?,
        shards: args.shards.clone(),
        store: args.store.clone().unwrap_or_default(),
        slots: String::new(),
        preload: programs::beside(LIBRARY)?,
        args: args.server_arguments.clone(),
    })
}
