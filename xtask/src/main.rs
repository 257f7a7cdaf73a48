//! `cargo xtask …` maintains this repository: the pin, the patch series, upstream's own programs and tests, two nodes.
//!
//! It shares `build/` with `build.rs` and does not depend on the crate itself. So it compiles in seconds, and works even if
//! the crate does not build.

mod backends;
mod bindings;
#[expect(dead_code, reason = "build.rs uses the rest")]
#[path = "../../build/mod.rs"]
mod build;
mod command_line;
mod git;
mod group;
mod hint;
mod image;
mod licences;
mod model;
mod other_programs;
mod package;
mod patches;
mod programs;
mod qemu;
mod release;
mod repo;
mod run;
mod sbom;
mod signals;
mod upstream_tests;
mod vendor;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;

use bindings::sys_crate::Copied;
use build::patch::place::Placed;
use command_line::{Cli, Command, Patches, Vendor};
use patches::attempt::{Attempt, attempt};
use patches::check::check;
use patches::export::{Written, export};
use patches::import::import;
use patches::refresh::{Refreshed, refresh};
use patches::work_tree::WorkTree;
use programs::Kind;
use repo::Repo;

/// Exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Done = 0,
    /// A check found a difference.
    No = 1,
    /// Failure. (clap exits with 2 for invalid arguments.)
    Failed = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let exit = run(&cli).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        Exit::Failed
    });
    exit.into()
}

fn run(cli: &Cli) -> Result<Exit> {
    let repo = Repo::new(cli.root.clone());
    match &cli.command {
        Command::Vendor(command) => run_vendor(&repo, command),
        Command::Patches(command) => run_patches(&repo, command),
        Command::Ui => {
            let page = build::ui::build(&repo.source()?.dir, &repo.pages())?;
            println!("{}", page.display());
            Ok(Exit::Done)
        }
        Command::Model => {
            println!("{}", model::fetch(&repo)?.display());
            Ok(Exit::Done)
        }
        Command::Stock => run_build(&repo, Kind::Stock),
        Command::Tools => run_build(&repo, Kind::Tools),
        Command::Instrumented => {
            for kind in programs::INSTRUMENTED {
                run_build(&repo, kind)?;
            }
            Ok(Exit::Done)
        }
        Command::Backends { if_possible } => run_backends(&repo, *if_possible),
        Command::OtherPrograms { if_possible } => run_other_programs(&repo, *if_possible),
        Command::PythonWheel => {
            println!("{}", bindings::wheel::build(&repo)?.display());
            Ok(Exit::Done)
        }
        Command::SysCrate { version } => run_sys_crate(&repo, version.as_deref()),
        Command::Image { programs, base } => {
            let id = image::build(&repo, &programs.dir(&repo), base.as_deref())?;
            println!("{id}");
            Ok(Exit::Done)
        }
        Command::Dist(packages) => {
            let path = package::tarball::build(
                &repo,
                &packages.programs.dir(&repo),
                &packages.out(&repo),
            )?;
            println!("{}", path.display());
            Ok(Exit::Done)
        }
        Command::Deb { packages, revision } => {
            let (programs, out) = (packages.programs.dir(&repo), packages.out(&repo));
            println!(
                "{}",
                package::deb::build(&repo, &programs, &out, *revision)?.display()
            );
            Ok(Exit::Done)
        }
        Command::Sbom => {
            println!("{}", sbom::write(&repo)?.display());
            Ok(Exit::Done)
        }
        Command::UpstreamTests {
            filters,
            all,
            servers,
            if_possible,
        } => {
            let options = upstream_tests::Options {
                filters: filters.clone(),
                all: *all,
                servers: servers.clone(),
                if_possible: *if_possible,
            };
            Ok(if upstream_tests::run(&repo, &options)? {
                Exit::Done
            } else {
                Exit::No
            })
        }
        Command::QemuTest {
            cases,
            kernel,
            all,
            if_possible,
        } => run_qemu_test(&repo, cases, kernel.as_deref(), *all, *if_possible),
    }
}

fn run_vendor(repo: &Repo, command: &Vendor) -> Result<Exit> {
    match command {
        Vendor::Fetch => {
            let (dir, is_new) = vendor::fetch(repo)?;
            println!(
                "{}{}",
                dir.display(),
                if is_new { "" } else { " (already unpacked)" }
            );
        }
        Vendor::Verify => {
            let verified = vendor::verify(repo)?;
            verified.good.iter().for_each(|line| println!("{line}"));
            verified.bad.iter().for_each(|line| println!("{line}"));
            if !verified.bad.is_empty() {
                eprintln!("hint: delete vendor/cache/ and run \"cargo xtask vendor fetch\"");
                return Ok(Exit::No);
            }
        }
        Vendor::Bump {
            version,
            package,
            registry,
            commit,
        } => {
            let bumped = vendor::bump(
                repo,
                *registry,
                package.as_deref(),
                version,
                commit.as_deref(),
            )?;
            return Ok(report_bump(&bumped));
        }
    }
    Ok(Exit::Done)
}

fn report_bump(bumped: &vendor::Bumped) -> Exit {
    for warning in &bumped.warnings {
        eprintln!("warning: {warning}");
    }
    let (before, after) = (&bumped.before, &bumped.after);
    println!(
        "{} {} → {} {}",
        before.package, before.version, after.package, after.version
    );
    println!(
        "upstream {} → {} of {}",
        before.commit, after.commit, after.date
    );
    if report(&bumped.attempt) == Exit::No {
        eprintln!(
            "hint: run \"cargo xtask patches refresh\"; it stops at the first patch that conflicts, so that you can resolve it"
        );
        return Exit::No;
    }
    if bumped.is_stale {
        eprintln!("hint: write the series for the new source with \"cargo xtask patches refresh\"");
    }
    eprintln!(
        "hint: read \"Upstream internals that the series relies on\" in docs/patching.md before you commit the new pin"
    );
    Exit::Done
}

fn run_patches(repo: &Repo, command: &Patches) -> Result<Exit> {
    let folder = repo.patches();
    match command {
        Patches::Import(place) => {
            let dir = place.dir(repo);
            let tree = import(&folder, &repo.source()?.dir, &dir, place.force)?;
            println!("{}", tree.git.dir().display());
            eprintln!(
                "{} patches on branch `series`, upstream at tag `upstream`",
                folder.series()?.len()
            );
        }
        Patches::Export(place) => {
            let dir = place.dir(repo);
            let tree = WorkTree::open(&dir)?;
            ensure!(
                tree.is_some(),
                "no work tree in `{}`\nhint: run \"cargo xtask patches import\"",
                dir.display()
            );
            if let Some(tree) = tree {
                print_written(&export(&tree, &folder, place.force)?);
            }
        }
        Patches::Check => {
            let findings = check(&folder, &repo.source()?.dir)?;
            findings.lines.iter().for_each(|line| println!("{line}"));
            findings
                .hints
                .iter()
                .for_each(|hint| eprintln!("hint: {hint}"));
            if !findings.lines.is_empty() {
                return Ok(Exit::No);
            }
            eprintln!(
                "{} patches and {} files match an export",
                folder.series()?.len(),
                folder.own_files()?.len()
            );
        }
        Patches::Refresh(place) => {
            let dir = place.dir(repo);
            return Ok(
                match refresh(
                    &folder,
                    &repo.source()?.dir,
                    &repo.sources()?,
                    &dir,
                    place.force,
                )? {
                    Refreshed::Done(written) => {
                        print_written(&written);
                        Exit::Done
                    }
                    Refreshed::Conflict {
                        files,
                        subject,
                        left,
                    } => {
                        println!("`{subject}` does not apply: {}", files.join(", "));
                        eprintln!("patches after it: {left}");
                        eprintln!(
                            "hint: cd {}; resolve the conflicts, \"git add\" the files, \"git am --continue\"; then \"cargo xtask patches export\"",
                            dir.display()
                        );
                        Exit::No
                    }
                },
            );
        }
        Patches::Try { source } => {
            let source = match source {
                Some(source) => source.clone(),
                None => repo.source()?.dir,
            };
            return Ok(report(&attempt(repo, &source)?));
        }
    }
    Ok(Exit::Done)
}

fn run_build(repo: &Repo, kind: Kind) -> Result<Exit> {
    for program in programs::build(repo, kind)? {
        println!("{}", program.display());
    }
    Ok(Exit::Done)
}

fn run_backends(repo: &Repo, if_possible: bool) -> Result<Exit> {
    match build::vulkan::check() {
        Err(missing) if if_possible => eprintln!("backends: skipped, {missing:#}"),
        checked => {
            checked?;
            for server in backends::build(repo)? {
                println!("{}", server.display());
            }
        }
    }
    Ok(Exit::Done)
}

fn run_other_programs(repo: &Repo, if_possible: bool) -> Result<Exit> {
    match other_programs::install(repo) {
        Err(missing) if if_possible => eprintln!("other-programs: incomplete, {missing:#}"),
        folders => {
            for folder in folders? {
                println!("{}", folder.display());
            }
        }
    }
    Ok(Exit::Done)
}

fn run_sys_crate(repo: &Repo, version: Option<&str>) -> Result<Exit> {
    let Copied {
        dir,
        attempt,
        omitted,
    } = bindings::sys_crate::copy(repo, version)?;
    let Some(dir) = dir else {
        attempt
            .lines_if(Placed::fails)
            .for_each(|line| println!("{line}"));
        eprintln!("{}", attempt.summary());
        eprintln!(
            "hint: use an older version of the crate, or move the pin to the crate's llama.cpp: docs/patching.md"
        );
        return Ok(Exit::No);
    };
    for line in attempt.lines_if(|it| matches!(it, Placed::Merges | Placed::Present)) {
        eprintln!("warning: {line}");
    }
    eprintln!("{}", attempt.summary());
    let omitted: Vec<_> = omitted.iter().map(|it| it.display().to_string()).collect();
    eprintln!("the crate omits {}", omitted.join(", "));
    println!("{}", dir.display());
    Ok(Exit::Done)
}

fn run_qemu_test(
    repo: &Repo,
    cases: &[String],
    kernel: Option<&Path>,
    all: bool,
    if_possible: bool,
) -> Result<Exit> {
    let needs = match qemu::Needs::look(repo, kernel) {
        Err(missing) if if_possible => {
            eprintln!("qemu-test: skipped, {missing:#}");
            return Ok(Exit::Done);
        }
        needs => needs?,
    };
    Ok(if qemu::run(repo, &needs, &qemu::select(cases)?, all)? {
        Exit::Done
    } else {
        Exit::No
    })
}

fn print_written(written: &Written) {
    written
        .changed
        .iter()
        .for_each(|name| println!("wrote patches/{name}"));
    written
        .removed
        .iter()
        .for_each(|name| println!("removed patches/{name}"));
    let is_same = written.changed.is_empty() && written.removed.is_empty();
    let news = if is_same { ", nothing changed" } else { "" };
    eprintln!("{} patches, {} files{news}", written.patches, written.files);
}

/// Prints one line for each hunk, and the counts.
fn report(attempt: &Attempt) -> Exit {
    attempt.lines().for_each(|line| println!("{line}"));
    eprintln!("{}", attempt.summary());
    if attempt.fails() {
        Exit::No
    } else {
        Exit::Done
    }
}
