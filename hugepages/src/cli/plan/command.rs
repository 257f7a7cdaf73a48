//! The steps: ask llama-server for the plan, compare it with the pools, and print both.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;

use hugepages::kernel::Root;
use hugepages::plan::{Containers, Demand, Need, Plan, bounded_arguments};
use hugepages::server_arguments::{STORE_VARIABLE, is_interleaved};
use hugepages::store::shards;

use super::arguments::{Args, Format};
use super::containers;
use super::json;
use super::text::text;
use crate::cli::output::Screen;
use crate::cli::{Exit, programs};

pub fn run(args: &Args) -> Result<Exit> {
    let server = args
        .server
        .clone()
        .map_or_else(|| programs::beside("llama-server"), Ok)?;
    let print = match args.format {
        Format::Helm => containers::helm,
        Format::Env => containers::env,
        Format::Json | Format::Human => return against_pools(args, &server),
    };
    let limits = limits(&server, &args.server_arguments)?;
    write!(io::stdout(), "{}", print(&programs::own_command(), &limits))?;
    Ok(Exit::Success)
}

fn against_pools(args: &Args, server: &Path) -> Result<Exit> {
    let plan = Plan::ask(server, &args.server_arguments)?;
    let interleaved = is_interleaved(&args.server_arguments);
    let demand = Demand::new(&Root::system(), &plan, interleaved);
    if args.format == Format::Json {
        json::print(&demand)?;
    } else {
        writeln!(io::stdout(), "{}", text(Screen::stdout(), &demand))?;
    }
    Ok(if plan.fits {
        Exit::Success
    } else {
        Exit::Short
    })
}

fn limits(server: &Path, arguments: &[OsString]) -> Result<Containers> {
    let bounded = bounded_arguments(&Root::system(), arguments)?;
    let mut wrapper: Vec<OsString> = Vec::new();
    if env::var_os(STORE_VARIABLE).is_some() {
        wrapper = ["env", "-u", STORE_VARIABLE].map(OsString::from).into();
    }
    let plan = Plan::ask_through(&wrapper, server, &bounded)?;
    Ok(Containers::of(&plan, arguments, file_bytes)?)
}

fn file_bytes(need: &Need) -> io::Result<u64> {
    let files = shards(&need.model);
    let file = files.get(need.file.unwrap_or_default());
    Ok(fs::metadata(file.unwrap_or(&need.model))?.len())
}
