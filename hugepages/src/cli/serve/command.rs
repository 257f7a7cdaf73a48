//! The steps of `hugepages serve`: check, fill a store, serve.

use std::sync::Arc;

use anyhow::Result;

use hugepages::serve::{ForwardedSignals, Launch, Outcome, Progress};
use hugepages::server_arguments::{STORE, STORE_VARIABLE, value};

use super::arguments::Args;
use super::progress_bar::Bar;
use crate::cli::store::fill;
use crate::cli::{Exit, programs};

pub fn run(args: &Args) -> Result<Exit> {
    let signals = ForwardedSignals::new()?;
    let program = match &args.server {
        Some(path) => path.clone(),
        None => programs::beside("llama-server")?,
    };
    let mut launch = Launch::new(program.clone(), args.arguments.clone())?;
    if args.keep {
        let wanted = value(&args.arguments, STORE, STORE_VARIABLE);
        let is_chosen = wanted.is_some();
        let store = fill(
            &program,
            &args.arguments,
            launch.wrapper().to_vec(),
            wanted,
            signals.flag(),
        )?;
        if !is_chosen {
            launch.use_store(store);
        }
    }
    let progress: Arc<dyn Progress> = Arc::new(Bar::default());
    Ok(match launch.run(&signals, &progress)? {
        Outcome::Served(code) => Exit::Server(code),
        Outcome::Short => Exit::Short,
        Outcome::Interrupted => Exit::Interrupted,
    })
}
