//! The steps: ask llama-server for the plan, compare it with the pools, and print both.

use std::io::{self, Write};

use anyhow::Result;

use hugepages::kernel::Root;
use hugepages::plan::{Demand, Plan};
use hugepages::server_arguments::is_interleaved;

use super::arguments::Args;
use super::json;
use super::text::text;
use crate::cli::output::{Format, Screen};
use crate::cli::{Exit, programs};

pub fn run(args: &Args) -> Result<Exit> {
    let server = args
        .server
        .clone()
        .map_or_else(|| programs::beside("llama-server"), Ok)?;
    let plan = Plan::ask(&server, &args.server_arguments)?;
    let interleaved = is_interleaved(&args.server_arguments);
    let demand = Demand::new(&Root::system(), &plan, interleaved);
    match args.output.format {
        Format::Json => json::print(&demand)?,
        Format::Human => writeln!(io::stdout(), "{}", text(Screen::stdout(), &demand))?,
    }
    Ok(if plan.fits {
        Exit::Success
    } else {
        Exit::Short
    })
}
