//! The steps: ask llama-server for the plan, compare it with the pools, and print both.

use std::collections::BTreeSet;
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

use llama_hugepages::gguf::Gguf;

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
    let mut limits = Containers::of(&plan, arguments, file_bytes)?;
    if !plan.workers.is_empty() {
        limits.add_worker(&plan, largest_tensor(&plan)?);
    }
    Ok(limits)
}

/// Bytes of the largest tensor that an RPC worker may receive.
fn largest_tensor(plan: &Plan) -> Result<u64> {
    let mut largest = 0;
    let models: BTreeSet<_> = plan.workers.iter().map(|need| &need.model).collect();
    for file in models.into_iter().flat_map(|model| shards(model)) {
        let header = Gguf::open(&file)?;
        largest = header.tensors().map(|it| it.size).fold(largest, u64::max);
    }
    Ok(largest)
}

fn file_bytes(need: &Need) -> io::Result<u64> {
    let files = shards(&need.model);
    let file = files.get(need.file.unwrap_or_default());
    Ok(fs::metadata(file.unwrap_or(&need.model))?.len())
}
