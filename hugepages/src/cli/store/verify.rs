//! `hugepages store verify`: compares images with their checksums.

use std::ffi::OsString;
use std::io::{self, Write};
use std::sync::atomic::Ordering;

use anyhow::{Result, bail};
use serde::Serialize;

use hugepages::store::{Entries, Info, Store, StoreError};

use super::common::{SCHEMA, Which};
use crate::cli::output::{self, Format, printable};
use crate::cli::{Exit, signals};

const BAR: &str = "{prefix} {wide_bar} {binary_bytes} of {binary_total_bytes}, {eta} left";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes:\n  0  all images match their checksums\n  1  an image is refused for another reason\n  5  a checksum differs"
)]
pub struct Verify {
    /// Images to verify: names in the store, paths of models, or names of models [default: all images]
    names: Vec<OsString>,
    #[command(flatten)]
    which: Which,
}

#[derive(Serialize)]
struct Verified {
    name: String,
    /// `equal`, `empty`, `unchecked`, `differs` or `refused`
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
            Ok(info) => compared(&info),
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
            "hint: remove these images with `hugepages store drop`; the next start of a server reads the model, or computes the prompt, again"
        );
        return Ok(Exit::Unequal);
    }
    Ok(if refused {
        Exit::Failure
    } else {
        Exit::Success
    })
}

/// The result of an image whose complete segments have the right checksums.
fn compared(info: &Info) -> (&'static str, Option<String>) {
    let Info {
        complete, segments, ..
    } = *info;
    match complete {
        _ if info.kind == "kv" && !info.is_saved_prompt() => (
            "unchecked",
            Some("a server writes to a context, so it has no checksums".to_owned()),
        ),
        0 => (
            "empty",
            Some(format!("none of {segments} segments is complete")),
        ),
        _ if complete < segments => (
            "equal",
            Some(format!(
                "{complete} of {segments} segments, the others are not complete"
            )),
        ),
        _ => ("equal", None),
    }
}

fn names(store: &Store, entries: &Entries, wanted: &[OsString]) -> Result<Vec<String>> {
    if wanted.is_empty() {
        let all = entries.images.iter().map(|image| image.name.clone());
        return Ok(all.collect());
    }
    let mut names = Vec::new();
    for wanted in wanted {
        let found = entries.find(store, wanted)?;
        if found.images.is_empty() {
            bail!(
                "cannot verify `{}`: a plain file has no checksums",
                wanted.display()
            );
        }
        names.extend(found.images);
    }
    Ok(names)
}
