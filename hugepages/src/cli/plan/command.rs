//! The arguments, and the plan of llama-server for them.

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;

use hugepages::kernel::Root;
use hugepages::plan::{Plan, answer};

use super::text::text;
use crate::cli::output::{self, Format, Screen};
use crate::cli::{Exit, programs};

const SCHEMA: u32 = 1;

/// Compute how many huge pages a model needs, and how many are missing
///
/// Takes the arguments of llama-server. Reads only the headers of the model, takes no page and needs no root. The numbers are
/// those of a load with the same arguments, because llama-server computes both with the same code.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes:\n  0  enough pages are usable\n  1  llama-server refuses the model or the arguments\n  3  pages are missing; the output has the number"
)]
pub struct Args {
    /// llama-server that computes the plan [default: in the directory of this program]
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,

    #[command(flatten)]
    output: output::Args,

    /// Arguments of llama-server, for example -m model.gguf --ctx-size 8192
    #[arg(last = true, required = true)]
    server_arguments: Vec<String>,
}

pub fn run(args: &Args) -> Result<Exit> {
    let server = args
        .server
        .clone()
        .map_or_else(|| programs::beside("llama-server"), Ok)?;
    let plan = Plan::ask(&server, &args.server_arguments)?;
    let answer = answer(
        &Root::system(),
        &plan,
        is_interleaved(&args.server_arguments),
    );
    match args.output.format {
        Format::Json => output::json(SCHEMA, &answer)?,
        Format::Human => writeln!(io::stdout(), "{}", text(Screen::stdout(), &answer))?,
    }
    Ok(if plan.fits {
        Exit::Success
    } else {
        Exit::Short
    })
}

/// Whether the arguments or the environment contain `--numa distribute`.
fn is_interleaved(arguments: &[String]) -> bool {
    let value = arguments
        .iter()
        .skip_while(|argument| *argument != "--numa")
        .nth(1)
        .cloned();
    value
        .or_else(|| env::var("LLAMA_ARG_NUMA").ok())
        .is_some_and(|numa| numa == "distribute")
}
