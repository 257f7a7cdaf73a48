//! The command line of `hugepages`: what it understands, one file per command, and the exit codes.

mod compare;
mod demo_model;
mod doctor;
mod lease;
mod man;
mod output;
mod overview;
mod plan;
mod pool;
mod programs;
mod serve;
mod signals;
mod status;
mod store;
mod tlb;

use std::{
    io,
    path::PathBuf,
    process::{ExitCode, Termination},
};

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use llama_hugepages::compare::CompareError;
use llama_hugepages::demo_model::Error as DemoModelError;
use llama_hugepages::plan::PlanError;
use llama_hugepages::pool::ChangeError;
use llama_hugepages::store::StoreError;
use llama_hugepages::tlb::TlbError;

/// Tools around llama.cpp on huge pages.
#[derive(Debug, Parser)]
#[command(name = "hugepages", version, about, after_help = Exit::TABLE, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model on huge pages: plan, add the missing pages, run llama-server, return the pages
    Serve(serve::Args),
    /// Write a model with random weights, for tests, benchmarks and a first try
    DemoModel(demo_model::Args),
    /// Check everything that makes huge pages fail or disappoint
    Doctor(doctor::Args),
    /// Show pools, who uses them, mounts, limits, and what huge pages give back
    Status(status::Args),
    /// Say how many huge pages a model needs, and what is missing
    Plan(plan::Args),
    /// Compare with stock llama.cpp: whole processes, in turn, on the same model
    Compare(compare::Args),
    /// Change the pools of huge pages, and undo it
    Pool(pool::Args),
    /// Keep models on huge pages when no process has them
    Store(store::Args),
    /// Measure what the size of pages changes on this machine
    Tlb(tlb::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell to complete in
        shell: clap_complete::Shell,
    },
    /// Write the man pages of all commands
    Man {
        /// The folder to write them to; it is made if it is not there
        dir: PathBuf,
    },
}

/// What the process tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Success,
    Failure,
    Usage,
    /// What was asked for does not fit, and nothing was changed.
    Short,
    /// What should be the same was not: tokens of two programs, or an image and its checksums.
    Unequal,
    /// As a shell reports a process that Ctrl-C ended.
    Interrupted,
    /// That of the server that was run.
    Server(u8),
}

impl Exit {
    const TABLE: &str = "\
Exit codes:
  0    done (or the reader of the output went away)
  1    failed, with the reason on stderr
  2    arguments that make no sense
  3    too few huge pages, or too little memory
  5    what should be the same is not: tokens with and without huge pages, or a resident image and its checksums
  130  interrupted by Ctrl-C, SIGTERM or SIGHUP; nothing half-done is left";
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Short => 3,
            Self::Unequal => 5,
            Self::Interrupted => 130,
            Self::Server(code) => code,
        })
    }
}

/// Does what the arguments of this process say.
pub fn run() -> Result<Exit> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // `--help` and `--version` are such answers too, on stdout.
            answer.print()?;
            return Ok(if answer.use_stderr() {
                Exit::Usage
            } else {
                Exit::Success
            });
        }
    };
    let Some(command) = cli.command else {
        overview::run()?;
        return Ok(Exit::Success);
    };
    match command {
        Command::Serve(args) => return serve::run(&args),
        Command::DemoModel(args) => demo_model::run(&args)?,
        Command::Doctor(args) => return doctor::run(&args),
        Command::Status(args) => return status::run(&args),
        Command::Plan(args) => return plan::run(&args),
        Command::Compare(args) => return compare::run(&args),
        Command::Pool(args) => return pool::run(&args),
        Command::Store(args) => return store::run(&args),
        Command::Tlb(args) => tlb::run(&args, &*signals::stop()?)?,
        Command::Completions { shell } => {
            // Into memory first: clap_complete panics when it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hugepages", &mut script);
            io::Write::write_all(&mut io::stdout(), &script)?;
        }
        Command::Man { dir } => man::write(Cli::command(), &dir)?,
    }
    Ok(Exit::Success)
}

/// Tells the user what went wrong, and says how the process ends.
pub fn report(error: &anyhow::Error) -> Exit {
    let broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    // `hugepages … | head` is no failure of ours.
    if error.chain().any(broken_pipe) {
        return Exit::Success;
    }
    eprintln!("error: {error:#}");
    let (hint, exit) = advice(error);
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    exit
}

/// What the user can do about it, and how the process ends.
fn advice(error: &anyhow::Error) -> (Option<String>, Exit) {
    if let Some(cause) = error.downcast_ref::<DemoModelError>() {
        let exit = match cause {
            DemoModelError::Cancelled => Exit::Interrupted,
            _ => Exit::Failure,
        };
        return (cause.hint(), exit);
    }
    if let Some(cause) = error.downcast_ref::<ChangeError>() {
        let exit = if cause.is_short() {
            Exit::Short
        } else {
            Exit::Failure
        };
        return (pool::hint(cause), exit);
    }
    if let Some(cause) = error.downcast_ref::<StoreError>() {
        let exit = match cause {
            StoreError::Cancelled => Exit::Interrupted,
            StoreError::Differs { .. } => Exit::Unequal,
            cause if cause.is_short() => Exit::Short,
            _ => Exit::Failure,
        };
        return (cause.hint(&programs::own_command()), exit);
    }
    if let Some(cause) = error.downcast_ref::<CompareError>() {
        let exit = match cause {
            CompareError::Cancelled(_) => Exit::Interrupted,
            cause if cause.is_unequal() => Exit::Unequal,
            _ => Exit::Failure,
        };
        return (cause.hint(), exit);
    }
    if let Some(cause) = error.downcast_ref::<TlbError>() {
        let exit = match cause {
            TlbError::Cancelled(_) => Exit::Interrupted,
            TlbError::NoRoom { .. } => Exit::Short,
            _ => Exit::Failure,
        };
        return (cause.hint(), exit);
    }
    if let Some(cause) = error.downcast_ref::<PlanError>() {
        return (cause.hint().map(str::to_owned), Exit::Failure);
    }
    (None, Exit::Failure)
}
