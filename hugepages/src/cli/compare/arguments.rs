//! The arguments of `hugepages compare`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::PossibleValuesParser;

use hugepages::compare::{CASES, Pause};
use hugepages::demo_model::WEIGHT_TYPES;
use hugepages::size::ByteSize;
use llama_hugepages::gguf::TensorType;

use crate::cli::output;

pub const SCHEMA: u32 = 1;

/// Cases that do not fit into the table of cases.
pub const PRESSURE: &str = "pressure";
pub const SERVERS: &str = "servers";
pub const PERPLEXITY: &str = "perplexity";
pub const SWITCH: &str = "switch";
pub const TRAFFIC: &str = "traffic";
const OTHERS: [(&str, &str); 7] = [
    (PERPLEXITY, "perplexity of a text, equal to the last digit"),
    (
        PRESSURE,
        "tokens/s of both servers with too little memory; needs root",
    ),
    (
        Pause::Restart.name(),
        "first token after a restart: stock, stock with a saved slot, a context kept in a store",
    ),
    (SERVERS, "memory of several servers on one model"),
    (
        Pause::Sleep.name(),
        "first token after a sleep, as in restart",
    ),
    (
        SWITCH,
        "first token after a switch between two or more models behind a router: stock, a context kept in a store",
    ),
    (
        TRAFFIC,
        "many messages to two or more models behind a router: stock, contexts kept in a store",
    ),
];
pub const ALL: &str = "all";

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
    /// Model for both servers, for a model in shards the first file; can be repeated
    #[arg(short, long, required_unless_present = "demo")]
    pub model: Vec<PathBuf>,

    /// Make a model with random weights and remove it afterwards; can be repeated, each time with other weights
    #[arg(long, value_name = "SIZE,TYPE", conflicts_with_all = ["model", "shards"])]
    pub demo: Vec<Demo>,

    /// First shard of the same model, for the case `shards`
    #[arg(long, value_name = "FILE")]
    pub shards: Option<PathBuf>,

    /// llama-server to compare with [default: the build of `cargo xtask stock`]
    #[arg(long, value_name = "PROGRAM")]
    pub baseline: Option<PathBuf>,

    /// Cases to run; --help lists them
    #[arg(
        long,
        value_name = "CASE",
        value_delimiter = ',',
        default_value = "cold,warm,off",
        hide_possible_values = true,
        value_parser = PossibleValuesParser::new(names())
    )]
    pub cases: Vec<String>,

    /// Number of pairs of runs that count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..))]
    pub pairs: u16,

    /// Tokens of each answer that must be equal before the measurement starts
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub tokens: u32,

    /// Tokens to generate for the measurement of speed; 0 skips it
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(0..=4096))]
    pub speed_tokens: u32,

    /// Servers of each side in the case `servers`
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=16))]
    pub servers: u16,

    /// Tokens of the conversation in the cases `restart` and `sleep`; fewer if the context is smaller
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub restart_tokens: u32,

    /// Tokens of the conversations in the case `switch`; fewer if a context is smaller
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "0,2048",
        value_parser = clap::value_parser!(u32).range(0..=1 << 24)
    )]
    pub switch_tokens: Vec<u32>,

    /// Messages to each side in the case `traffic`; a few more if the number of pairs does not divide them
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub messages: u32,

    /// Tokens at which a conversation begins anew in the case `traffic`; fewer if a context is smaller
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(22..=1 << 24))]
    pub traffic_tokens: u32,

    /// hugetlbfs directory for the cases with a store; the image stays there [default: a temporary mount]
    #[arg(long, value_name = "DIR")]
    pub store: Option<String>,

    /// Time limit for a server to become ready, and for each answer
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..))]
    pub patience: u64,

    /// Add no pages to the pool: use only free pages
    #[arg(long)]
    pub no_reserve: bool,

    /// Fail if a count of memory, pages, faults or tokens is out of its bounds
    #[arg(long)]
    pub gate: bool,

    /// Write report.json with all runs, report.md and diagrams to this directory
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    #[command(flatten)]
    pub output: output::Args,

    /// More arguments for all servers
    #[arg(last = true)]
    pub server_arguments: Vec<String>,
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
        "Cases, the baseline first. In cold, pressure and every case whose name ends in -cold, the page cache holds nothing of the model at the start:\n{}",
        lines.collect::<String>()
    )
}

/// `300M,Q8_0`
#[derive(Clone, Copy, Debug)]
pub struct Demo {
    pub size: ByteSize,
    pub weights: TensorType,
}

impl FromStr for Demo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let split = text.split_once(',');
        let (size, kind) = split.ok_or("expected a size and a type, such as `300M,Q8_0`")?;
        let is_it = |weights: &TensorType| weights.to_string().eq_ignore_ascii_case(kind);
        let weights = WEIGHT_TYPES.into_iter().find(is_it);
        Ok(Self {
            size: size.parse().map_err(|error| format!("{error}"))?,
            weights: weights.ok_or_else(|| format!("unknown type of weights `{kind}`"))?,
        })
    }
}
