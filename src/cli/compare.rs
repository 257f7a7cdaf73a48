//! `hugepages compare`.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use llama_hugepages::compare::{
    Cache, Case, CaseResult, DirectRead, Load, Machine, Ratio, Runner, Sample, Side,
};
use llama_hugepages::stats::Summary;

use super::output::{self, Format, Screen};
use super::{programs, signals};

const SCHEMA: u32 = 1;

/// Compare with stock llama.cpp: process start to first token, in turn, on the same model
///
/// Each case runs both sides in the order A B B A after one run each that does not count. Before anything is timed, both have to
/// give the same tokens with the same probabilities. A ratio is the geometric mean over the pairs with its 95 % interval; where
/// that contains 1, no difference was measured.
///
/// The huge pages have to be there: what is timed is not how the pool grows.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model; the first file of a split one
    #[arg(short, long)]
    model: PathBuf,

    /// The same model as shards, for the case `shards`
    #[arg(long, value_name = "FILE")]
    shards: Option<PathBuf>,

    /// The llama-server to compare with [default: the one that `cargo xtask stock` built]
    #[arg(long, value_name = "PROGRAM")]
    baseline: Option<PathBuf>,

    /// What to compare
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "cold,warm,off"
    )]
    cases: Vec<CaseName>,

    /// How many pairs of runs count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..))]
    pairs: u16,

    /// Tokens that have to be equal before anything is timed
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    tokens: u32,

    /// Write report.json with every run there
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    output: output::Args,

    /// Further arguments for both servers
    #[arg(last = true)]
    server_arguments: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CaseName {
    /// Nothing of the model in the page cache; stock against huge pages
    Cold,
    /// All of it in the page cache; stock against huge pages
    Warm,
    /// The same; stock against ours without the option
    Off,
    /// The same; one file against shards, both on huge pages
    Shards,
    /// The same; stock against itself: how far noise goes
    Same,
}

#[derive(Serialize)]
struct Report {
    machine: Machine,
    commands: Vec<String>,
    cases: Vec<CaseResult>,
}

pub fn run(args: &Args) -> Result<()> {
    let cases = cases(args)?;
    let stop = signals::stop()?;
    let runner = Runner {
        pairs: args.pairs.into(),
        tokens: args.tokens,
        cancelled: &stop,
    };
    let machine = Machine::read(&args.model);
    let mut results = Vec::new();
    for case in cases {
        let result = runner.run(&case, |what| eprintln!("compare: {what}"))?;
        if args.output.format == Format::Human {
            let mut stdout = io::stdout().lock();
            writeln!(stdout, "{}\n", table(Screen::stdout(), &result))?;
        }
        results.push(result);
    }
    let report = Report {
        machine,
        commands: env::args().collect(),
        cases: results,
    };
    if let Some(dir) = &args.out {
        let path = dir.join("report.json");
        let written = fs::create_dir_all(dir)
            .and_then(|()| fs::File::create(&path))
            .and_then(|file| output::write_json(file, SCHEMA, &report));
        written.with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    match args.output.format {
        Format::Json => output::json(SCHEMA, &report)?,
        Format::Human => {
            let m = &report.machine;
            writeln!(
                io::stdout(),
                "kernel {}, {} ({} cores{}, {} NUMA nodes), governor {}, THP {}, {} with read_ahead_kb {}, load {} at the start",
                m.kernel,
                m.cpu,
                m.cores,
                if m.virtual_machine { ", virtual" } else { "" },
                m.nodes,
                or_unknown(&m.governor),
                or_unknown(&m.thp),
                or_unknown(&m.file_system),
                or_unknown(&m.read_ahead_kb),
                m.load_average
            )?;
        }
    }
    Ok(())
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

fn cases(args: &Args) -> Result<Vec<Case>> {
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
    let side = |name: &str, program: &Path, model: &Path, more: &[&str]| {
        let fixed = ["--parallel", "1", "--ctx-size", "4096", "--no-webui"];
        let more = fixed.iter().chain(more).map(|text| (*text).to_owned());
        Side {
            name: name.to_owned(),
            program: program.to_owned(),
            model: model.to_owned(),
            args: more.chain(args.server_arguments.iter().cloned()).collect(),
        }
    };
    let stock = || side("stock", &baseline, &args.model, &[]);
    let huge = |name: &str, model: &Path| {
        side(
            name,
            &ours,
            model,
            &["--hugepages", "--hugepage-policy", "require"],
        )
    };
    args.cases
        .iter()
        .map(|case| {
            let (name, cache, a, b) = match case {
                CaseName::Cold => ("cold", Cache::Cold, stock(), huge("hugepages", &args.model)),
                CaseName::Warm => ("warm", Cache::Warm, stock(), huge("hugepages", &args.model)),
                CaseName::Off => (
                    "off",
                    Cache::Warm,
                    stock(),
                    side("off", &ours, &args.model, &[]),
                ),
                CaseName::Same => (
                    "same",
                    Cache::Warm,
                    stock(),
                    side("stock again", &baseline, &args.model, &[]),
                ),
                CaseName::Shards => {
                    let Some(shards) = &args.shards else {
                        bail!("the case `shards` needs --shards FILE");
                    };
                    (
                        "shards",
                        Cache::Warm,
                        huge("one file", &args.model),
                        huge("shards", shards),
                    )
                }
            };
            Ok(Case {
                name: name.to_owned(),
                cache,
                a,
                b,
                direct_read: cache == Cache::Cold,
            })
        })
        .collect()
}

type Measure = (&'static str, fn(&Sample) -> f64, usize);

const MIB: f64 = 1024.0 * 1024.0;
const MEASURES: [Measure; 10] = [
    ("to first token, s", |sample| sample.seconds_to_token, 2),
    ("to /health ok, s", |sample| sample.seconds_to_health, 2),
    ("CPU, s", Sample::cpu_seconds, 2),
    ("  of it user, s", |sample| sample.user_seconds, 2),
    ("minor faults", |sample| sample.minor_faults as f64, 0),
    ("major faults", |sample| sample.major_faults as f64, 0),
    (
        "peak of own memory, MiB",
        |sample| sample.peak_own_bytes as f64 / MIB,
        0,
    ),
    (
        "peak of mapped files, MiB",
        |sample| sample.peak_file_bytes as f64 / MIB,
        0,
    ),
    (
        "in the page cache, MiB",
        |sample| sample.residue_bytes as f64 / MIB,
        0,
    ),
    (
        "read and placed, GB/s",
        |sample| sample.load.as_ref().map_or(0.0, Load::bytes_per_second) / 1e9,
        2,
    ),
];

fn table(screen: Screen, result: &CaseResult) -> String {
    let case = &result.case;
    let spread = |spread: Summary, digits: usize| {
        format!(
            "{:.digits$} ({:.digits$} to {:.digits$})",
            spread.median, spread.min, spread.max
        )
    };
    let rows = MEASURES.iter().filter_map(|(name, measure, digits)| {
        let (a, b) = result.summaries(measure)?;
        (a.max > 0.0 || b.max > 0.0).then(|| {
            vec![
                (*name).to_owned(),
                spread(a, *digits),
                spread(b, *digits),
                result.ratio(measure).map_or_else(|| "-".to_owned(), ratio),
            ]
        })
    });
    let head = [
        &case.name,
        case.a.name.as_str(),
        case.b.name.as_str(),
        "ratio",
    ];
    let mut text = output::table(screen, &head, rows);
    if case.direct_read {
        text += "\n";
        text += &result.of_direct_read().map_or_else(
            || "fio is not installed: nothing to compare the reading with".to_owned(),
            |ratio| {
                let rate = |read: &DirectRead| read.bytes_per_second / 1e9;
                let rates: Vec<_> = result.direct_reads.iter().map(rate).collect();
                let fio = Summary::of(&rates);
                format!(
                    "read and placed, over what fio reads with O_DIRECT ({} GB/s): {}",
                    fio.map_or_else(String::new, |fio| spread(fio, 2)),
                    self::ratio(ratio)
                )
            },
        );
    }
    text
}

/// Never a difference that the spread does not carry.
fn ratio(ratio: Ratio) -> String {
    let Ratio { mean, low, high, n } = ratio;
    let verdict = if ratio.is_different() {
        ""
    } else {
        ", no difference measured"
    };
    format!("{mean:.3} ({low:.3} to {high:.3}, n={n}{verdict})")
}
