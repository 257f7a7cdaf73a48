//! `hugepages store load`: fills a store without serving.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use indicatif::ProgressBar;
use serde::Serialize;

use hugepages::kernel::HugePageSize;
use hugepages::size::ByteSize;
use hugepages::store::{Copied, Loader, Store};

use super::common::{SCHEMA, Which};
use super::pages::Added;
use crate::cli::output::{self, Format, printable};
use crate::cli::{programs, signals};

/// Load models into a store without serving them
///
/// llama-server loads the models one after the other. Use the arguments that you serve with: a server finds a model only if
/// --no-repack, --n-gpu-layers, --override-tensor, --hugepage-size and --load-mode are the same.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes:\n  0    all models are in the store\n  1    llama-server refuses a model, the arguments or the store\n  3    too few huge pages; --pool adds the missing pages\n  130  interrupted; incomplete parts are removed"
)]
pub struct Load {
    /// Models to load; for a model in shards, the first file
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,
    /// Copy the files unchanged to DIR/NAME.gguf, for any llama.cpp
    #[arg(long, conflicts_with_all = ["server", "server_arguments"])]
    as_file: bool,
    /// Add the missing pages to the pool first, like `hugepages pool reserve --for`
    #[arg(long)]
    pool: bool,
    /// llama-server that loads the models [default: in the directory of this program]
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
    /// More arguments of llama-server
    #[arg(last = true, value_name = "SERVER ARGS")]
    server_arguments: Vec<OsString>,
}

#[derive(Serialize)]
struct Answer {
    store: PathBuf,
    loaded: Vec<Loaded>,
}

#[derive(Serialize)]
struct Loaded {
    model: PathBuf,
    /// Bytes of its huge pages in the store.
    bytes: u64,
    /// Its resident images.
    images: Vec<String>,
    /// Its plain files.
    files: Vec<Copied>,
}

pub fn run(args: &Load, format: Format) -> Result<()> {
    // Before the first page is taken.
    let stop = signals::stop()?;
    let store = args.which.open()?;
    let loader = Loader {
        server: args
            .server
            .clone()
            .map_or_else(|| programs::beside("llama-server"), Ok)?,
        store: store.path().into(),
        arguments: args.server_arguments.clone(),
        wrapper: Vec::new(),
    };
    let mut answer = Answer {
        store: store.path().to_owned(),
        loaded: Vec::new(),
    };
    for model in &args.models {
        let bar = output::progress_bar(output::LOADING);
        let name = model.file_name().unwrap_or_default().to_string_lossy();
        bar.set_prefix(printable(&name));
        let result = load(args, &store, &loader, model, &stop, &bar);
        bar.finish_and_clear();
        let done = result?;
        if format == Format::Human {
            let bytes = ByteSize::new(done.bytes);
            let line = format!("{}: {bytes} in {}", model.display(), store.path().display());
            writeln!(io::stdout(), "{}", printable(&line))?;
        }
        answer.loaded.push(done);
    }
    if format == Format::Json {
        output::json(SCHEMA, &answer)?;
    }
    Ok(())
}

fn load(
    args: &Load,
    store: &Store,
    loader: &Loader,
    model: &Path,
    stop: &AtomicBool,
    bar: &ProgressBar,
) -> Result<Loaded> {
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let mut added = Added::default();
    if args.pool {
        added.reserve(&need(args, store, loader, model)?)?;
    }
    let mut done = Loaded {
        model: model.to_owned(),
        bytes: 0,
        images: Vec::new(),
        files: Vec::new(),
    };
    if args.as_file {
        done.files = store.copy(model, stop, progress)?;
        let pages: u64 = done.files.iter().map(|file| file.pages).sum();
        done.bytes = pages * store.page_size().bytes();
    } else {
        loader.load(model, stop, progress)?;
        let entries = store.entries()?;
        // A model smaller than one page leaves no image.
        if let Ok(found) = entries.find(store, model.as_os_str()) {
            let of_model = entries.images.iter();
            let of_model = of_model.filter(|image| found.images.contains(&image.name));
            done.bytes = of_model.map(|image| image.bytes).sum();
            done.images = found.images;
        }
    }
    added.keep();
    Ok(done)
}

/// Pages of each size that the store lacks.
fn need(
    args: &Load,
    store: &Store,
    loader: &Loader,
    model: &Path,
) -> Result<BTreeMap<HugePageSize, u64>> {
    if args.as_file {
        return Ok([(store.page_size(), store.pages_to_copy(model)?)].into());
    }
    let plan = loader.plan(&loader.arguments_for(model))?;
    Ok(plan.pages_of_weights())
}
