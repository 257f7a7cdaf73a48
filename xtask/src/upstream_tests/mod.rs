//! `cargo xtask upstream-tests`: runs upstream's own tests of llama-server against stock and against ours.
//!
//! pytest runs an unchanged copy of upstream's files with a plugin (`plugin.py`), which serves small random models
//! (`models.py`) instead of a hub. Many tests expect words of the original models and fail on each server. So only
//! differences count: a test must end in the same way on all servers.

mod bench;
mod lease;
mod pytest;
mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::ValueEnum;

use crate::hint::Hint as _;
use crate::repo::Repo;
use crate::signals;
use bench::Bench;
use lease::Lease;
use pytest::{Outcome, Run};
use report::{Difference, differences, print_differences, print_table};

/// A server, by its name on the command line and in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Server {
    /// Upstream's source, unpatched
    Stock,
    /// Ours, with the option off
    Off,
    /// Ours, with model memory on huge pages
    On,
    /// Ours, with model memory on transparent huge pages; needs no pool
    Thp,
}

impl Server {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Off => "off",
            Self::On => "on",
            Self::Thp => "thp",
        }
    }

    fn program(self, repo: &Repo) -> Result<PathBuf> {
        let (path, hint) = match self {
            Self::Stock => ("stock/build/bin/llama-server", "run \"cargo xtask stock\""),
            Self::Off | Self::On | Self::Thp => ("release/llama-server", BUILD),
        };
        built(&repo.target().join(path), hint)
    }

    /// `prefer`, so that a missing page fails no test. `Run::huge_share` shows whether the server got pages.
    fn options(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Stock | Self::Off => &[],
            Self::On => &[
                ("LLAMA_ARG_HUGEPAGES", "1"),
                ("LLAMA_ARG_HUGEPAGE_POLICY", "prefer"),
            ],
            Self::Thp => &[
                ("LLAMA_ARG_HUGEPAGES", "1"),
                ("LLAMA_ARG_HUGEPAGE_POLICY", "prefer"),
                ("LLAMA_ARG_HUGEPAGE_SIZE", "thp"),
            ],
        }
    }
}

const BUILD: &str = "run \"cargo build --release\"";

fn built(path: &Path, hint: &str) -> Result<PathBuf> {
    if path.is_file() {
        return std::path::absolute(path).context("no working directory");
    }
    Err(anyhow!("`{}` is missing", path.display())).hint(hint)
}

pub struct Options {
    pub filters: Vec<String>,
    pub all: bool,
    pub servers: Vec<Server>,
    pub if_possible: bool,
}

/// The tests of a run without a filter: the parts of the server that model memory could change. They take a minute for each
/// server. The router, speculative decoding and resumed streams take two more minutes. Templates and tools use no model memory.
const PART: &[&str] = &[
    "test_basic.py",
    "test_completion.py",
    "test_ctx_shift.py",
    "test_embedding.py",
    "test_infill.py",
    "test_kv_keep_only_active.py",
    "test_lora.py",
    "test_metrics.py",
    "test_rerank.py",
    "test_slot_save.py",
    "test_sleep.py",
    "test_tokenize.py",
    "test_vision_api.py",
];

/// Huge pages for the largest test, with a margin: the router holds three models at once, of 20 MiB each.
const POOL: &str = "256M";

const WITHOUT_PAGES: &str = "without a pool: cargo xtask upstream-tests --servers stock,off,thp";

/// Number of repeats of a test that differs, because some of upstream's tests depend on time and fail on a busy machine.
const REPEATS: usize = 2;

/// Runs the tests. Returns whether each test ends in the same way on all servers.
pub fn run(repo: &Repo, options: &Options) -> Result<bool> {
    let interrupted = signals::catch()?;
    let mut servers = options.servers.clone();
    servers.sort();
    servers.dedup();
    // A missing program is an error before any other work.
    for server in &servers {
        server.program(repo)?;
    }
    let bench = Bench::new(repo)?;
    match bench.make_venv() {
        Err(why) if options.if_possible => {
            eprintln!("upstream-tests: skipped, {why:#}");
            return Ok(true);
        }
        made => made?,
    }
    bench.make_hub()?;
    let mut lease = None;
    if servers.contains(&Server::On) {
        match pages(repo) {
            Err(why) if options.if_possible => {
                eprintln!(
                    "upstream-tests: THP replaces huge pages, because of this error: {why:#}"
                );
                servers.retain(|&server| server != Server::On);
                servers.push(Server::Thp);
                servers.dedup();
            }
            taken => lease = Some(taken.hint(WITHOUT_PAGES)?),
        }
    }
    ensure!(
        servers.len() > 1,
        "one server cannot be compared: name at least two with --servers"
    );

    let tests = selection(&bench, options);
    let mut runs = run_all(repo, &bench, &servers, &tests, &interrupted)?;
    judge_set_up(&runs, options.filters.is_empty())?;
    print_table(&runs);
    let different = differences(&runs);
    let (steady, unsteady) = repeat(repo, &bench, &servers, different, &mut runs, &interrupted)?;
    drop(lease);

    if !unsteady.is_empty() {
        println!("\nended differently at first, and in the same way when repeated:");
        print_differences(&unsteady);
    }
    if !steady.is_empty() {
        println!("\nended differently each time:");
        print_differences(&steady);
    }
    let count = runs.first().map_or(0, |run| run.outcomes.len());
    println!(
        "\n{count} tests, {} end differently",
        if steady.is_empty() {
            "none".to_owned()
        } else {
            steady.len().to_string()
        }
    );
    Ok(steady.is_empty())
}

fn pages(repo: &Repo) -> Result<Lease> {
    let tool = built(&repo.target().join("release/hugepages"), BUILD)?;
    Lease::take(&tool, POOL)
}

/// pytest's arguments that select the tests.
fn selection(bench: &Bench, options: &Options) -> Vec<String> {
    let file = |name: &str| format!("unit/{name}");
    if options.all && options.filters.is_empty() {
        return vec!["unit".to_owned()];
    }
    if options.filters.is_empty() {
        return PART.iter().map(|name| file(name)).collect();
    }
    let (files, words): (Vec<&String>, Vec<&String>) = options.filters.iter().partition(|filter| {
        let name = filter.split("::").next().unwrap_or_default();
        bench.tests().join(file(name)).is_file()
    });
    let mut tests: Vec<String> = files.into_iter().map(|name| file(name)).collect();
    if !words.is_empty() {
        let any_of: Vec<&str> = words.into_iter().map(String::as_str).collect();
        tests.extend(["-k".to_owned(), any_of.join(" or ")]);
    }
    tests
}

fn run_all(
    repo: &Repo,
    bench: &Bench,
    servers: &[Server],
    tests: &[String],
    interrupted: &Arc<AtomicBool>,
) -> Result<Vec<Run>> {
    servers
        .iter()
        .map(|&server| {
            let run = bench.run(server, &server.program(repo)?, tests, interrupted)?;
            eprintln!(
                "{}: {} tests, {:.0} s",
                server.name(),
                run.outcomes.len(),
                run.seconds
            );
            Ok(run)
        })
        .collect()
}

/// Detects a broken set-up, which would fail each test in the same way on all servers.
/// `must_load`: whether the tests load a model, because some tests load none.
fn judge_set_up(runs: &[Run], must_load: bool) -> Result<()> {
    let Some(first) = runs.first() else {
        bail!("no server ran");
    };
    if let Some((test, found)) = first
        .outcomes
        .iter()
        .find(|(_, found)| found.outcome == Outcome::Error)
    {
        bail!("the set-up of {test} failed: {}", found.said);
    }
    ensure!(
        first.count(Outcome::Passed) > 0,
        "no test passed with the {} server",
        first.server.name()
    );
    for run in runs.iter().filter(|run| run.server == Server::On) {
        let share = run.huge_share();
        ensure!(
            share.is_some() || !must_load,
            "no test logged a load on huge pages"
        );
        ensure!(
            share.is_none_or(|share| share > 0.5),
            "only {:.0} % of the model memory was on huge pages",
            share.unwrap_or_default() * 100.0
        );
    }
    Ok(())
}

/// Repeats the tests that differ; returns those that differed each time, and the others.
fn repeat(
    repo: &Repo,
    bench: &Bench,
    servers: &[Server],
    mut different: Vec<Difference>,
    runs: &mut [Run],
    interrupted: &Arc<AtomicBool>,
) -> Result<(Vec<Difference>, Vec<Difference>)> {
    let mut unsteady = Vec::new();
    for _ in 0..REPEATS {
        if different.is_empty() {
            break;
        }
        eprintln!("repeating {} tests", different.len());
        let tests: Vec<String> = different.iter().map(|one| one.test.clone()).collect();
        let again = run_all(repo, bench, servers, &tests, interrupted)?;
        let still = differences(&again);
        for one in different {
            if !still.iter().any(|other| other.test == one.test) {
                unsteady.push(one);
            }
        }
        for (run, again) in runs.iter_mut().zip(&again) {
            run.seconds += again.seconds;
        }
        different = still;
    }
    Ok((different, unsteady))
}
