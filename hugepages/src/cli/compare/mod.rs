//! `hugepages compare`: the arguments, their meaning, and the order of the cases.
//! Not here: measuring, which is `hugepages::compare`.

mod models;
mod pages;
mod print;
mod session;

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;

use hugepages::compare::{CASES, Machine, Program, Programs, Report, Runner};
use hugepages::kernel::Root;

use super::output::{self, Format};
use super::{Exit, pool, programs, signals};
use session::Session;

const SCHEMA: u32 = 1;

/// Cases that do not fit into the table of cases.
const PRESSURE: &str = "pressure";
const SERVERS: &str = "servers";
const PERPLEXITY: &str = "perplexity";
const OTHERS: [(&str, &str); 3] = [
    (PERPLEXITY, "perplexity of a text, equal to the last digit"),
    (
        PRESSURE,
        "tokens/s of both servers with too little memory; needs root",
    ),
    (SERVERS, "memory of several servers on one model"),
];
const ALL: &str = "all";

/// Compare this llama-server with stock llama.cpp on the same model
///
/// Each case starts both servers as whole processes, in the order A B B A. The first run of each server does not count. Before
/// the comparison measures a time, both servers must give the same tokens with the same probabilities. A ratio is the geometric
/// mean over the pairs with its 95 % interval. If the interval contains 1, no difference was measured.
///
/// The comparison adds missing huge pages to the pool before it measures a case. It returns these pages afterwards, even after
/// SIGKILL. It skips a case that cannot run here, for example without root or memory, and prints the reason.
#[derive(Debug, clap::Args)]
#[command(after_long_help = cases_help())]
pub struct Args {
    /// Model for both servers; for a model in shards, the first file
    #[arg(short, long, required_unless_present = "demo")]
    model: Option<PathBuf>,

    /// Make a model with random weights and remove it afterwards; can be repeated
    #[arg(long, value_name = "SIZE,TYPE", conflicts_with_all = ["model", "shards"])]
    demo: Vec<models::Demo>,

    /// First shard of the same model, for the case `shards`
    #[arg(long, value_name = "FILE")]
    shards: Option<PathBuf>,

    /// llama-server to compare with [default: the build of `cargo xtask stock`]
    #[arg(long, value_name = "PROGRAM")]
    baseline: Option<PathBuf>,

    /// Cases to run; --help lists them
    #[arg(
        long,
        value_name = "CASE",
        value_delimiter = ',',
        default_value = "cold,warm,off",
        hide_possible_values = true,
        value_parser = PossibleValuesParser::new(names())
    )]
    cases: Vec<String>,

    /// Number of pairs of runs that count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..))]
    pairs: u16,

    /// Tokens of each answer that must be equal before the measurement starts
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    tokens: u32,

    /// Tokens to generate for the measurement of speed; 0 skips it
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(0..=4096))]
    speed_tokens: u32,

    /// Servers of each side in the case `servers`
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=16))]
    servers: u16,

    /// hugetlbfs directory for the cases with a store; the image stays there [default: a temporary mount]
    #[arg(long, value_name = "DIR")]
    store: Option<String>,

    /// Time limit for a server to become ready, and for each answer
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..))]
    patience: u64,

    /// Add no pages to the pool: use only free pages
    #[arg(long)]
    no_reserve: bool,

    /// Fail if a count of memory, pages or faults is out of its bounds
    #[arg(long)]
    gate: bool,

    /// Write report.json with all runs, report.md and report.svg to this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    output: output::Args,

    /// More arguments for all servers
    #[arg(last = true)]
    server_arguments: Vec<String>,
}

fn names() -> impl Iterator<Item = &'static str> {
    let rows = CASES.iter().map(|row| row.name);
    rows.chain(OTHERS.map(|(name, _)| name)).chain([ALL])
}

fn cases_help() -> String {
    let rows = CASES.iter().map(|row| (row.name, row.about));
    let lines = rows.chain(OTHERS).chain([(ALL, "all cases above")]);
    let lines = lines.map(|(name, about)| format!("  {name:<11} {about}\n"));
    format!(
        "Cases, the baseline first. If the name of a case ends in -cold, the page cache holds nothing of the model at the start:\n{}",
        lines.collect::<String>()
    )
}

pub fn run(args: &Args) -> Result<Exit> {
    let stop = signals::stop()?;
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
        if wanted(PRESSURE) {
            session.pressure(model)?;
        }
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
        bail!("a count of memory, pages or faults is out of its bounds");
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
        args: args.server_arguments.clone(),
    })
}
