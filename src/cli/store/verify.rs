//! `hugepages store verify`.

use std::io::{self, Write};
use std::sync::atomic::Ordering;

use anyhow::{Result, bail};
use serde::Serialize;

use llama_hugepages::store::{Entries, Store, StoreError};

use super::{SCHEMA, Which};
use crate::cli::output::{self, Format, printable};
use crate::cli::{Exit, signals};

const BAR: &str = "{prefix} {wide_bar} {binary_bytes} of {binary_total_bytes}, {eta} left";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes:\n  0  all bytes are those that were put there\n  1  one is refused whatever its bytes are\n  5  bytes differ"
)]
pub struct Verify {
    /// Images, by their name, their model's path or its name [default: all]
    names: Vec<String>,
    #[command(flatten)]
    which: Which,
}

#[derive(Serialize)]
struct Verified {
    name: String,
    /// `equal`, `differs` or `refused`
    result: &'static str,
    reason: Option<String>,
}

pub fn run(args: &Verify, format: Format) -> Result<Exit> {
    #[derive(Serialize)]
    struct Answer {
        images: Vec<Verified>,
    }
    let store = args.which.open()?;
    let names = names(&store, &store.entries()?, &args.names)?;
    let stop = signals::stop()?;
    let bar = output::progress_bar(BAR);
    let mut images = Vec::new();
    for name in names {
        bar.set_prefix(name.clone());
        let verified = store.verify(&name, |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            !stop.load(Ordering::Relaxed)
        });
        let (result, reason) = match verified {
            Ok(()) => ("equal", None),
            Err(StoreError::Differs { said, .. }) => ("differs", Some(said.message)),
            Err(StoreError::Verify { said, .. }) => ("refused", Some(said.message)),
            Err(error) => return Err(error.into()),
        };
        images.push(Verified {
            name,
            result,
            reason,
        });
    }
    bar.finish_and_clear();
    let has = |result| images.iter().any(|image| image.result == result);
    let (differs, refused) = (has("differs"), has("refused"));
    match format {
        Format::Json => output::json(SCHEMA, &Answer { images })?,
        Format::Human => {
            let mut out = io::stdout().lock();
            for image in &images {
                let reason = image.reason.as_ref().map(|it| format!(": {it}"));
                let line = format!(
                    "{}: {}{}",
                    image.name,
                    image.result,
                    reason.unwrap_or_default()
                );
                writeln!(out, "{}", printable(&line))?;
            }
        }
    }
    if differs {
        eprintln!(
            "hint: `hugepages store drop` what differs: the next start reads the model again"
        );
        return Ok(Exit::Unequal);
    }
    Ok(if refused {
        Exit::Failure
    } else {
        Exit::Success
    })
}

fn names(store: &Store, entries: &Entries, wanted: &[String]) -> Result<Vec<String>> {
    if wanted.is_empty() {
        let all = entries.images.iter().map(|image| image.name.clone());
        return Ok(all.collect());
    }
    let mut names = Vec::new();
    for wanted in wanted {
        let found = entries.find(store, wanted)?;
        if found.images.is_empty() {
            bail!("`{wanted}` is a plain file, which has no checksums");
        }
        names.extend(found.images);
    }
    Ok(names)
}
