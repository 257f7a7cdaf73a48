//! The command line of `hugepages`: one file per command, and the exit codes.

use std::{
    io,
    path::PathBuf,
    process::{ExitCode, Termination},
};

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use hugepages::compare::CompareError;
use hugepages::demo_model::Error as DemoModelError;
use hugepages::plan::PlanError;
use hugepages::pool::ChangeError;
use hugepages::store::StoreError;
use hugepages::tlb::TlbError;

use super::{
    compare, demo_model, doctor, man, overview, plan, pool, programs, serve, signals, status,
    store, tlb,
};

/// Manage Linux huge pages for llama.cpp
#[derive(Debug, Parser)]
#[command(name = "hugepages", version, after_help = Exit::TABLE, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

/// A variant without a comment gets its help from the comment of its arguments, which has more than one sentence.
#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    DemoModel(demo_model::Args),
    Doctor(doctor::Args),
    Status(status::Args),
    Plan(plan::Args),
    Compare(compare::Args),
    /// Change the huge page pools, and undo these changes
    Pool(pool::Args),
    /// Keep models on huge pages between processes
    Store(store::Args),
    Tlb(tlb::Args),
    /// Print a completion script for a shell
    Completions {
        /// Shell that reads the script
        shell: clap_complete::Shell,
    },
    /// Write the man pages of all commands
    Man {
        /// Directory for the pages; created if it does not exist
        dir: PathBuf,
    },
}

/// Exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Success,
    Failure,
    Usage,
    /// Too few huge pages or too little memory. Nothing was changed.
    Short,
    /// A comparison found a difference: tokens of two programs, or an image and its checksums.
    Unequal,
    /// The code with which a shell reports a process that Ctrl-C ended.
    Interrupted,
    /// The exit code of the server that this process ran.
    Server(u8),
}

impl Exit {
    const TABLE: &str = "\
Exit codes:
  0    success, or the reader of the output closed the pipe
  1    failure; stderr contains the reason
  2    invalid arguments
  3    too few huge pages, or too little memory
  5    difference found: tokens with and without huge pages, or a resident image and its checksums
  130  interrupted by Ctrl-C, SIGTERM or SIGHUP; no partial result remains";
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

/// Runs the command that the arguments of this process name.
pub fn run() -> Result<Exit> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // clap returns the texts of `--help` and `--version` as errors, too.
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
            // Into memory first, because clap_complete panics if a write fails.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hugepages", &mut script);
            io::Write::write_all(&mut io::stdout(), &script)?;
        }
        Command::Man { dir } => man::write(Cli::command(), &dir)?,
    }
    Ok(Exit::Success)
}

/// Prints an error with its hint, and returns the exit code.
pub fn report(error: &anyhow::Error) -> Exit {
    let broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    // `hugepages … | head` is a success.
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

/// The hint for an error, and its exit code.
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
