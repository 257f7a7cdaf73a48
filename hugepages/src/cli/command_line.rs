//! The command line: all commands, and which file runs each of them.

use std::io;
use std::path::PathBuf;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use super::{Exit, signals};
use super::{
    compare, demo_model, doctor, exec, man, overview, plan, pool, serve, status, store, tlb,
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
    Exec(exec::Args),
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
        Command::Exec(args) => return exec::run(&args),
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
