//! Prints the status once, or repeatedly with `--watch`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use hugepages::kernel::Root;
use hugepages::status::{Asking, Status};

use super::tables::human;
use super::watch::{self, SCHEMA};
use crate::cli::Exit;
use crate::cli::output::{self, Format, Screen};

/// Show pools, processes with huge pages, mounts, limits and saved memory
///
/// Needs no root. Without root, the kernel hides the page sizes of other users' processes; the output lists these processes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Repeat every SECONDS, or every 2 seconds without a number, until q or Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds)]
    watch: Option<Duration>,

    /// Do not ask servers for their report over HTTP
    #[arg(long)]
    no_ask: bool,

    /// Directory with the `sys` and `proc` of another kernel
    #[arg(long, hide = true, value_name = "DIR")]
    root: Option<PathBuf>,

    #[command(flatten)]
    output: output::Args,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse()
        .ok()
        .filter(|seconds| (0.1..=86400.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "expected 0.1 to 86400 seconds".to_owned())
}

/// Prints the status once, or repeatedly with `--watch`.
pub fn run(args: &Args) -> Result<Exit> {
    let root = args
        .root
        .as_ref()
        .map_or_else(|| Ok(Root::system()), Root::at)?;
    // The servers of a recorded kernel do not run on this machine.
    let asking = if args.no_ask || args.root.is_some() {
        Asking::Never
    } else {
        Asking::Allowed
    };
    let read = || Status::read(&root, asking);
    if let Some(pause) = args.watch {
        return watch::run(pause, args.output.format, read);
    }
    match args.output.format {
        Format::Json => output::json(SCHEMA, &read())?,
        Format::Human => io::stdout().write_all(human(&read(), Screen::stdout()).as_bytes())?,
    }
    Ok(Exit::Success)
}
