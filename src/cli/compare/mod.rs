//! `hugepages compare`: what is asked for, and in which order it is done.
//! Lives here: arguments and their meaning. Not here: measuring, which is `llama_hugepages::compare`.

mod models;
mod pages;
mod print;
mod session;

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;

use llama_hugepages::compare::{CASES, Machine, Program, Programs, Report, Runner};
use llama_hugepages::pool::Root;

use super::output::{self, Format};
use super::{Exit, pool, programs, signals};
use session::Session;

const SCHEMA: u32 = 1;

/// What is no row of the table.
const PRESSURE: &str = "pressure";
const SERVERS: &str = "servers";
const PERPLEXITY: &str = "perplexity";
const OTHERS: [(&str, &str); 3] = [
    (PERPLEXITY, "of a text, equal to the last digit"),
    (
        PRESSURE,
        "tokens a second with too little memory; needs root",
    ),
    (SERVERS, "what some servers on one model take together"),
];
const ALL: &str = "all";

/// Compare with stock llama.cpp: whole processes, in turn, on the same model
///
/// Each case runs both sides in the order A B B A after one run each that does not count. Before anything is timed, both have to
/// give the same tokens with the same probabilities. A ratio is the geometric mean over the pairs with its 95 % interval; where
/// that contains 1, no difference was measured.
///
/// Huge pages that are missing are added to the pool before a case is timed, and given back after it, however this ends. What
/// cannot be run here, without root or without memory, is left out with the reason.
#[derive(Debug, clap::Args)]
#[command(after_long_help = cases_help())]
pub struct Args {
    /// The model; the first file of a split one
    #[arg(short, long, required_unless_present = "demo")]
    model: Option<PathBuf>,

    /// Make a model with random weights, and remove it afterwards; may be given more than once
    #[arg(long, value_name = "SIZE,TYPE", conflicts_with_all = ["model", "shards"])]
    demo: Vec<models::Demo>,

    /// The same model as shards, for the case `shards`
    #[arg(long, value_name = "FILE")]
    shards: Option<PathBuf>,

    /// The llama-server to compare with [default: the one that `cargo xtask stock` built]
    #[arg(long, value_name = "PROGRAM")]
    baseline: Option<PathBuf>,

    /// What to compare; --help lists the cases
    #[arg(
        long,
        value_name = "CASE",
        value_delimiter = ',',
        default_value = "cold,warm,off",
        hide_possible_values = true,
        value_parser = PossibleValuesParser::new(names())
    )]
    cases: Vec<String>,

    /// How many pairs of runs count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..))]
    pairs: u16,

    /// Tokens of each answer that have to be equal before anything is timed
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    tokens: u32,

    /// Tokens that are generated to time them; 0 times none
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(0..=4096))]
    speed_tokens: u32,

    /// Servers in the case `servers`
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=16))]
    servers: u16,

    /// A hugetlbfs folder for the case `store`, where the image stays [default: one that is mounted for it, and unmounted]
    #[arg(long, value_name = "DIR")]
    store: Option<String>,

    /// How long a server may take to become ready, and to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..))]
    patience: u64,

    /// Change no pool: use the pages that are there
    #[arg(long)]
    no_reserve: bool,

    /// Fail where something that can be counted is out of its bounds: memory, pages, faults
    #[arg(long)]
    gate: bool,

    /// Write report.json with every run there, report.md and report.svg
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    output: output::Args,

    /// Further arguments for all servers
    #[arg(last = true)]
    server_arguments: Vec<String>,
}

fn names() -> impl Iterator<Item = &'static str> {
    let rows = CASES.iter().map(|row| row.name);
    rows.chain(OTHERS.map(|(name, _)| name)).chain([ALL])
}

fn cases_help() -> String {
    let rows = CASES.iter().map(|row| (row.name, row.about));
    let lines = rows.chain(OTHERS).chain([(ALL, "all of these")]);
    let lines = lines.map(|(name, about)| format!("  {name:<11} {about}\n"));
    format!(
        "Cases, with the baseline first; those in -cold begin with nothing of the model in the page cache:\n{}",
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
        bail!("something that was counted is out of its bounds");
    }
    if !report.failed.is_empty() {
        return Ok(Exit::Failure);
    }
    if report.is_empty() {
        bail!("nothing could be compared here");
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
            bail!("there is no `{}`\nhint: {hint}", program.display());
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
