//! The command line of `hugepages`: what it understands, one file per command, and the exit codes.

mod demo_model;

use std::{
    io,
    process::{ExitCode, Termination},
};

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use llama_hugepages::demo_model::Error as DemoModelError;

/// Tools around llama.cpp on huge pages.
#[derive(Debug, Parser)]
#[command(name = "hugepages", version, about, after_help = Exit::TABLE, max_term_width = 120, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a model with random weights, for tests, benchmarks and a first try
    DemoModel(demo_model::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell to complete in
        shell: clap_complete::Shell,
    },
}

/// What the process tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Success = 0,
    Failure = 1,
    Usage = 2,
    /// As a shell reports a process that Ctrl-C ended.
    Interrupted = 130,
}

impl Exit {
    const TABLE: &str = "\
Exit codes:
  0    done (or the reader of the output went away)
  1    failed, with the reason on stderr
  2    arguments that make no sense
  130  interrupted by Ctrl-C, SIGTERM or SIGHUP; nothing half-done is left";
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
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
    match cli.command {
        Command::DemoModel(args) => demo_model::run(&args)?,
        Command::Completions { shell } => {
            // Into memory first: clap_complete panics when it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hugepages", &mut script);
            io::Write::write_all(&mut io::stdout(), &script)?;
        }
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
    let cause = error.downcast_ref::<DemoModelError>();
    if let Some(hint) = cause.and_then(DemoModelError::hint) {
        eprintln!("hint: {hint}");
    }
    match cause {
        Some(DemoModelError::Cancelled) => Exit::Interrupted,
        _ => Exit::Failure,
    }
}
