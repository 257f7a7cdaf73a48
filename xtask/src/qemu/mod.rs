//! `cargo xtask qemu-test`: huge pages on emulated machines with two and with four NUMA nodes.
//!
//! The guest only starts servers and reports the data of its kernel (`guest.sh`). The host checks the data, so the checks
//! can be tested without a machine.

mod cases;
mod image;
mod judge;
mod machine;
mod placement;
pub mod recorder;
mod report;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::build::cmake;
use crate::hint::Hint as _;
use crate::programs::{self, Kind};
use crate::repo::Repo;
use crate::signals;
use cases::{CASES, Case, FOUR_NODES, MODELS, Model, TWO_NODES};
use image::Image;
use judge::Judge;
use machine::Machine;
use report::{Event, Reader, Seen};

const SETUP: &str = "scripts/setup --test";
/// Number of log lines that a failure prints, because CI may not keep the log itself.
const TAIL: usize = 20;

/// How long a server with placed rows answers before the nodes of its pages are read again.
const LONG_LOAD: Duration = Duration::from_secs(60);

/// Programs of this machine that a run needs.
#[derive(Debug)]
pub struct Needs {
    kernel: PathBuf,
    busybox: PathBuf,
}

impl Needs {
    /// Finds the programs. Uses the given kernel, or the one that `scripts/setup --test` put into `target/qemu/kernel`.
    pub fn look(repo: &Repo, kernel: Option<&Path>) -> Result<Self> {
        ensure!(
            cfg!(target_arch = "x86_64"),
            "the emulated machine is x86-64, so this machine must be x86-64 too"
        );
        let find = |program: &str| {
            cmake::find(program.as_ref())
                .with_context(|| format!("program `{program}` not found"))
                .hint(SETUP)
        };
        for program in [machine::QEMU, "ldd", "setpriv"] {
            find(program)?;
        }
        let kernel = match kernel {
            Some(kernel) => kernel.to_owned(),
            None => fetched_kernel(&folder(repo).join("kernel"))
                .context("no kernel for the guest found")
                .hint(SETUP)?,
        };
        Ok(Self {
            kernel,
            busybox: find("busybox")?,
        })
    }
}

fn folder(repo: &Repo) -> PathBuf {
    repo.target().join("qemu")
}

fn fetched_kernel(folder: &Path) -> Option<PathBuf> {
    let mut kernels: Vec<_> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz-"))
        })
        .collect();
    kernels.sort();
    kernels.pop()
}

/// The cases whose names begin with one of `names`, and the plain cases that they are compared with. All cases if there are no names.
pub fn select(names: &[String]) -> Result<Vec<&'static Case>> {
    let is_named = |case: &Case| {
        names.is_empty()
            || names
                .iter()
                .any(|name| case.name.starts_with(name.as_str()))
    };
    for name in names {
        let is_of_name = |case: &Case| case.name.starts_with(name.as_str());
        ensure!(
            CASES.iter().any(is_of_name),
            "no case `{name}`, one of: {}",
            CASES
                .iter()
                .map(|case| case.name)
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    let is_needed = |plain: &Case| {
        CASES
            .iter()
            .any(|case| is_named(case) && case.is_compared_with(plain))
    };
    Ok(CASES
        .iter()
        .filter(|case| is_named(case) || is_needed(case))
        .collect())
}

/// Builds, boots and checks. Returns whether all cases passed.
///
/// `all`: each server with placed rows answers for [`LONG_LOAD`].
pub fn run(repo: &Repo, needs: &Needs, selected: &[&Case], all: bool) -> Result<bool> {
    let programs = programs::build(repo, Kind::Qemu)?;
    let folder = folder(repo);
    // Before the first temporary file, so that an interrupted run also removes its files.
    let interrupted = signals::catch()?;
    let scratch = tempfile::Builder::new()
        .prefix(".run-")
        .tempdir_in(&folder)
        .with_context(|| format!("cannot write `{}`", folder.display()))?;
    let mut sizes = BTreeMap::new();
    for model in MODELS
        .iter()
        .filter(|model| selected.iter().any(|case| case.model == **model))
    {
        let path = scratch.path().join(model.name);
        write_model(repo, model, &path)?;
        sizes.insert(*model, fs::metadata(&path)?.len());
    }

    let load = if all { LONG_LOAD } else { Duration::ZERO };
    let start = Instant::now();
    let mut judge = Judge::new(sizes);
    let mut good = 0;
    for layout in [TWO_NODES, FOUR_NODES] {
        let cases: Vec<_> = selected
            .iter()
            .copied()
            .filter(|case| case.machine == layout)
            .collect();
        if cases.is_empty() {
            continue;
        }
        let initramfs = scratch.path().join("initramfs");
        write_initramfs(
            &initramfs,
            &needs.busybox,
            &programs,
            scratch.path(),
            &cases,
            load,
        )?;
        let file = |name: &str| folder.join(format!("{name}-{}.log", layout.nodes));
        let (console, log) = (file("console"), file("guest"));
        let machine = Machine::start(
            layout,
            &needs.kernel,
            &initramfs,
            &console,
            Arc::clone(&interrupted),
        )?;
        let passed = watch(&machine, &log, &cases, &mut judge);
        if !matches!(passed, Ok(passed) if passed == cases.len()) {
            eprintln!("the guest's report: {}", log.display());
            eprintln!("messages of the guest's kernel: {}", console.display());
        }
        good += passed?;
    }
    println!(
        "{good} of {} cases passed, {:.0} s",
        selected.len(),
        start.elapsed().as_secs_f64()
    );
    Ok(good == selected.len())
}

/// Prints one line when a case ends; returns the number of passed cases.
fn watch(machine: &Machine, log: &Path, cases: &[&Case], judge: &mut Judge) -> Result<usize> {
    let mut log = File::create(log).with_context(|| format!("cannot write `{}`", log.display()))?;
    let mut reader = Reader::default();
    let mut left = cases.iter();
    let mut good = 0;
    while let Some(line) = machine.line()? {
        log.write_all(line.as_bytes())?;
        match reader.line(&line)? {
            None => {}
            Some(Event::Done) => break,
            Some(Event::Case(name, seen)) => {
                let case = left
                    .next()
                    .filter(|case| case.name == name)
                    .with_context(|| {
                        format!("the guest reported `{name}`, which is not the next case")
                    })?;
                good += usize::from(tell(case, &seen, &judge.findings(case, &seen)));
            }
        }
    }
    for case in left {
        println!("FAIL {}: did not end within the time limit", case.name);
    }
    Ok(good)
}

fn tell(case: &Case, seen: &Seen, findings: &[String]) -> bool {
    let (local, all) = report::locality(&seen.log);
    let local = match seen.reads {
        Some(reads) if all > 0.0 && reads.all() > 0 => format!(
            "; local: {:.1} %, and {:.1} % of {} MiB of recorded reads",
            100.0 * local / all,
            100.0 * reads.local as f64 / reads.all() as f64,
            reads.all() >> 20
        ),
        _ => String::new(),
    };
    if findings.is_empty() {
        println!("ok   {}: {}{local}", case.name, placement::summary(seen));
        return true;
    }
    println!("FAIL {}: {}{local}", case.name, placement::summary(seen));
    for finding in findings {
        println!("     {finding}");
    }
    let lines: Vec<_> = seen.log.lines().collect();
    for line in &lines[lines.len().saturating_sub(TAIL)..] {
        println!("     | {line}");
    }
    false
}

/// Writes a model with our own tool, which `cargo build` built.
fn write_model(repo: &Repo, model: &Model, path: &Path) -> Result<()> {
    let tool = repo.target().join("release/hugepages");
    ensure!(
        tool.is_file(),
        "program `{}` not found\nhint: cargo build --release",
        tool.display()
    );
    let status = Command::new(&tool)
        .arg("demo-model")
        .arg(path)
        .args(model.arguments.split_whitespace())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .with_context(|| format!("cannot run `{}`", tool.display()))?;
    ensure!(status.success(), "`{} demo-model` failed", tool.display());
    Ok(())
}

/// With the models of the cases, from the folder `models`.
fn write_initramfs(
    path: &Path,
    busybox: &Path,
    programs: &[PathBuf],
    models: &Path,
    cases: &[&Case],
    load: Duration,
) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot write `{}`", path.display()))?;
    let mut image = Image::new(BufWriter::new(file));
    image.file("init", include_bytes!("guest.sh"))?;
    let mut commands = format!("seconds_of_load={}\n", load.as_secs());
    commands.extend(cases.iter().map(|case| case.command()));
    image.file("cases", commands.as_bytes())?;
    image.program("bin/busybox", busybox)?;
    for program in programs {
        let name = program.file_name().context("a program without a name")?;
        image.program(Path::new("bin").join(name), program)?;
    }
    for case in cases {
        let model = case.model;
        image.file(model.path(), &fs::read(models.join(model.name))?)?;
    }
    image.finish()
}
