//! `hugepages store drop` and `gc`: remove images from a store.

use std::ffi::OsString;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use hugepages::pool::Amount;
use hugepages::size::ByteSize;
use hugepages::store::{Garbage, Rules, Store, StoreError};

use super::common::{SCHEMA, Which, now};
use crate::cli::Exit;
use crate::cli::output::{self, Format, printable};

#[derive(Debug, clap::Args)]
pub struct Drop {
    /// Image or model to remove: a name in the store, the path of a model, or the name of a model
    #[arg(value_name = "NAME|MODEL", required_unless_present = "all")]
    names: Vec<OsString>,
    /// Remove all images and plain files that `list` shows
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Also remove the names of images in use; their pages return to the pool when the last process ends
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --older-than, --stale and --need, `gc` removes images that no process can use: stale, incomplete or untrusted images, and files that a killed copy left. `gc` never removes an image in use or a file of another program."
)]
pub struct Gc {
    /// Remove images that no process used for this time: 90s, 30m, 12h, 7d, 2w
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older_than: Option<Duration>,
    /// Remove only images whose model file changed or was removed
    #[arg(long)]
    stale: bool,
    /// Remove images until this many pages or bytes are free: first the unusable images, then the longest unused
    #[arg(long, value_name = "PAGES|BYTES")]
    need: Option<Amount>,
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    which: Which,
}

#[derive(Serialize)]
struct Gone {
    name: String,
    bytes: u64,
    why: Option<String>,
}

#[derive(Serialize)]
struct Kept {
    name: String,
    why: String,
}

#[derive(Serialize)]
struct Answer {
    dry_run: bool,
    dropped: Vec<Gone>,
    kept: Vec<Kept>,
    bytes: u64,
}

/// Parses a time such as `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| {
        format!("`{text}` is not a time: {error}; expected numbers with s, m, h, d or w, such as 7d or `1d 12h`")
    })
}

pub fn drop(args: &Drop, format: Format) -> Result<()> {
    let store = args.which.open()?;
    let entries = store.entries()?;
    let mut names = Vec::new();
    if args.all {
        names.extend(entries.images.iter().map(|image| image.name.clone()));
        names.extend(entries.files.iter().map(|file| file.name.clone()));
    }
    for wanted in &args.names {
        let found = entries.find(&store, wanted)?;
        names.extend([found.images, found.files].concat());
    }
    names.sort();
    names.dedup();
    // Check all images before the first is removed.
    for image in entries
        .images
        .iter()
        .filter(|image| names.contains(&image.name))
    {
        if image.is_busy() && !args.force {
            return Err(StoreError::InUse {
                name: image.name.clone(),
                by: image.attached.clone(),
            }
            .into());
        }
    }
    let bytes_of = |name: &String| {
        let image = entries.images.iter().find(|it| it.name == *name);
        let file = entries.files.iter().find(|it| it.name == *name);
        image.map_or(0, |it| it.bytes) + file.map_or(0, |it| it.bytes)
    };
    let mut answer = Answer::new(false);
    for name in names {
        store.drop(&name, args.force)?;
        answer.gone(Gone {
            bytes: bytes_of(&name),
            name,
            why: None,
        });
    }
    answer.print(format)
}

pub fn gc(args: &Gc, format: Format) -> Result<Exit> {
    let store = args.which.open()?;
    let rules = Rules {
        stale: args.stale,
        older_than: args.older_than,
        need: args.need.map(|amount| amount.pages(store.page_size())),
    };
    let mut answer = Answer::new(args.dry_run);
    for garbage in store.garbage(&rules, now())? {
        match collect(&store, &garbage, args.dry_run) {
            Ok(true) => answer.gone(Gone {
                name: garbage.name,
                bytes: garbage.bytes,
                why: Some(garbage.why),
            }),
            Ok(false) => answer.kept.push(Kept {
                name: garbage.name,
                why: "a process uses it now".to_owned(),
            }),
            // An image that cannot be removed must not stop the removal of the others.
            Err(error) => answer.kept.push(Kept {
                name: garbage.name,
                why: format!("{:#}", anyhow::Error::from(error)),
            }),
        }
    }
    let failed = !answer.kept.is_empty();
    answer.print(format)?;
    Ok(if failed { Exit::Failure } else { Exit::Success })
}

fn collect(store: &Store, garbage: &Garbage, dry_run: bool) -> Result<bool, StoreError> {
    if dry_run {
        return Ok(true);
    }
    store.collect(garbage)
}

impl Answer {
    fn new(dry_run: bool) -> Self {
        Self {
            dry_run,
            dropped: Vec::new(),
            kept: Vec::new(),
            bytes: 0,
        }
    }

    fn gone(&mut self, gone: Gone) {
        self.bytes += gone.bytes;
        self.dropped.push(gone);
    }

    fn print(&self, format: Format) -> Result<()> {
        if format == Format::Json {
            output::json(SCHEMA, self)?;
            return Ok(());
        }
        let verb = if self.dry_run {
            "would drop"
        } else {
            "dropped"
        };
        let mut out = io::stdout().lock();
        for gone in &self.dropped {
            let why = gone.why.as_ref().map(|why| format!(": {why}"));
            let bytes = ByteSize::new(gone.bytes);
            let line = format!("{verb} {} ({bytes}){}", gone.name, why.unwrap_or_default());
            writeln!(out, "{}", printable(&line))?;
        }
        for kept in &self.kept {
            let line = format!("kept {}: {}", kept.name, kept.why);
            writeln!(out, "{}", printable(&line))?;
        }
        if self.dropped.is_empty() && self.kept.is_empty() {
            writeln!(out, "nothing to drop")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        for (text, seconds) in [
            ("90s", 90),
            ("30m", 1800),
            ("12h", 43_200),
            ("7d", 604_800),
            ("1d 12h", 129_600),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in [
            "",
            "7",
            "d",
            "-1d",
            "99999999999999999999w",
            "9999999999999999w",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
