//! `hugepages store list`: the images and plain files of a store.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use hugepages::size::ByteSize;
use hugepages::store::{Entries, Image, Model, PlainFile, Process, Store, span};

use super::common::{SCHEMA, Which, now};
use crate::cli::output::{self, Format, Screen, count, printable};

#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    which: Which,
}

#[derive(Serialize)]
struct Listed<'a> {
    store: &'a Path,
    page_bytes: u64,
    free_pages: u64,
    /// Pages up to the limit of the mount.
    room_pages: Option<u64>,
    models: Vec<Model>,
    files: &'a [PlainFile],
    unfinished: usize,
    others: usize,
    unread: usize,
}

pub fn run(args: &List, format: Format) -> Result<()> {
    let store = args.which.open()?;
    let entries = store.entries()?;
    match format {
        Format::Json => output::json(
            SCHEMA,
            &Listed {
                store: store.path(),
                page_bytes: store.page_size().bytes(),
                free_pages: store.free_pages(),
                room_pages: store.room(),
                models: entries.models(),
                files: &entries.files,
                unfinished: entries.unfinished,
                others: entries.others,
                unread: entries.unread,
            },
        )?,
        Format::Human => {
            let text = text(Screen::stdout(), &store, &entries);
            writeln!(io::stdout(), "{}", printable(&text))?;
        }
    }
    Ok(())
}

fn text(screen: Screen, store: &Store, entries: &Entries) -> String {
    let of_images = entries.images.iter().map(|image| image.bytes);
    let held: u64 = of_images
        .chain(entries.files.iter().map(|file| file.bytes))
        .sum();
    let mut parts = vec![format!(
        "{}: page size {}, {} in {} and {}, {} free",
        store.path().display(),
        store.page_size(),
        ByteSize::new(held),
        count(entries.images.len(), "image"),
        count(entries.files.len(), "plain file"),
        count(store.free_pages() as usize, "page"),
    )];
    let mut rows = Vec::new();
    for model in entries.models() {
        rows.extend(model.images.iter().map(|image| image_row(&model, image)));
    }
    rows.extend(entries.files.iter().map(file_row));
    if !rows.is_empty() {
        let columns = [
            "model", "kind", "size", "whole", "used", "attached", "state", "name",
        ];
        parts.push(output::table(screen, &columns, rows));
    }
    let mut notes = Vec::new();
    if entries.unfinished > 0 {
        notes.push(format!(
            "{} incomplete: a copy still runs, or was killed; `hugepages store gc` removes the files of killed copies",
            count(entries.unfinished, "plain file")
        ));
    }
    if entries.others > 0 {
        notes.push(format!(
            "{} of other programs",
            count(entries.others, "file")
        ));
    }
    if entries.unread > 0 {
        let advice = if rustix::process::geteuid().is_root() {
            ""
        } else {
            "; root can read all"
        };
        notes.push(format!(
            "cannot read the memory map of {}{advice}",
            count(entries.unread, "process")
        ));
    }
    if !notes.is_empty() {
        parts.push(notes.join("\n"));
    }
    parts.join("\n\n")
}

fn image_row(model: &Model, image: &Image) -> Vec<String> {
    let info = &image.info;
    let whole = match (info.complete, info.segments) {
        (_, 0) => "-".to_owned(),
        (done, all) if done == all => "all".to_owned(),
        (done, all) => format!("{} %", done * 100 / all),
    };
    vec![
        model.folder.join(&model.name).display().to_string(),
        if info.kind.is_empty() {
            "?"
        } else {
            &info.kind
        }
        .to_owned(),
        ByteSize::new(image.bytes).to_string(),
        whole,
        ago(info.used),
        processes(&image.attached, info.is_attached),
        state(image),
        image.name.clone(),
    ]
}

fn file_row(file: &PlainFile) -> Vec<String> {
    vec![
        file.name.clone(),
        "file".to_owned(),
        ByteSize::new(file.bytes).to_string(),
        "all".to_owned(),
        "-".to_owned(),
        processes(&file.attached, false),
        of_user(file.uid).unwrap_or_default(),
        file.name.clone(),
    ]
}

fn state(image: &Image) -> String {
    let mut state = match &image.problem {
        Some(reason) => format!("refused: {reason}"),
        None if image.info.is_filling => format!("filled by pid {}", image.info.filler),
        None if image.info.is_stale => "stale".to_owned(),
        None if image.info.is_hidden => "file not visible".to_owned(),
        None => "live".to_owned(),
    };
    if let Some(owner) = of_user(image.uid).filter(|_| image.problem.is_none()) {
        state = format!("{state}, {owner}");
    }
    state
}

/// Names an owner other than this user and root, because servers of this user refuse the image.
fn of_user(uid: u32) -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    (uid != 0 && uid != own).then(|| format!("of user {uid}"))
}

fn ago(seconds: i64) -> String {
    if seconds == 0 {
        return "-".to_owned();
    }
    let span_to_now = u64::try_from(now().saturating_sub(seconds)).unwrap_or(0);
    format!("{} ago", span(span_to_now))
}

fn processes(attached: &[Process], is_attached: bool) -> String {
    if attached.is_empty() {
        return if is_attached {
            "process not visible"
        } else {
            "-"
        }
        .to_owned();
    }
    let name = |it: &Process| format!("{} ({})", it.name, it.pid);
    attached.iter().map(name).collect::<Vec<_>>().join(", ")
}
