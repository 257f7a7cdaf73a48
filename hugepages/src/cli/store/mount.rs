//! `hugepages store mount` and `unmount`: the hugetlbfs of a store.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use hugepages::kernel::{HugePageSize, Root, sizes};
use hugepages::size::ByteSize;
use hugepages::store::mount::{self as mounts, Made, Options};

use super::common::SCHEMA;
use crate::cli::output::{self, Format};

#[derive(Debug, clap::Args)]
pub struct Mount {
    /// Mount point; created if it does not exist [default: /run/llama-hugepages/store/SIZE]
    path: Option<PathBuf>,
    /// Page size, for example 2M or 1G [default: the smallest size of at least 2 MiB]
    #[arg(long)]
    size: Option<HugePageSize>,
    /// Upper limit for the size of the store [default: the pool]
    #[arg(long, value_name = "BYTES")]
    limit: Option<ByteSize>,
    /// Reserve this much of the pool now, for this store only
    #[arg(long, value_name = "BYTES")]
    min: Option<ByteSize>,
    /// Mode of the directory, in octal; with 1777 each user has their own images
    #[arg(long, default_value = "0755", value_parser = mode)]
    mode: u32,
    /// Owner of the directory: a number, or a name in /etc/passwd
    #[arg(long, default_value = "0")]
    uid: String,
    /// Group of the directory: a number, or a name in /etc/group
    #[arg(long, default_value = "0")]
    gid: String,
}

#[derive(Debug, clap::Args)]
pub struct Unmount {
    /// Mount point [default: /run/llama-hugepages/store/SIZE]
    path: Option<PathBuf>,
    /// Page size in the default mount point
    #[arg(long)]
    size: Option<HugePageSize>,
    /// First drop all models in the store; an attached process keeps its memory until it ends
    #[arg(long)]
    force: bool,
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok();
    mode.filter(|mode| *mode <= 0o1777)
        .ok_or_else(|| format!("`{text}` is not an octal mode such as 0755"))
}

/// Parses a number, or finds a name in the table and returns the third field of its line.
fn id(text: &str, table: &str) -> Result<u32> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let lines = fs::read_to_string(table).with_context(|| format!("cannot read `{table}`"))?;
    let id = lines.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == text).then(|| fields.nth(1)?.parse().ok())?
    });
    id.with_context(|| format!("`{text}` is neither a number nor a name in `{table}`"))
}

fn page_size(wanted: Option<HugePageSize>) -> Result<HugePageSize> {
    let default = || sizes::of_images(&Root::system());
    wanted
        .or_else(default)
        .context("this kernel has no pool of huge pages")
}

pub fn mount(args: &Mount, format: Format) -> Result<()> {
    #[derive(Serialize)]
    struct Mounted {
        path: PathBuf,
        page_bytes: u64,
        options: String,
        already: bool,
    }
    let size = page_size(args.size)?;
    if args.limit.is_some_and(|limit| limit.bytes() == 0) {
        bail!(
            "`--limit` must be at least one page of {size}: a store without pages keeps no model"
        );
    }
    let path = args
        .path
        .clone()
        .unwrap_or_else(|| mounts::default_path(size));
    let mut options = Options::new(size);
    options.limit = args.limit.map(ByteSize::bytes);
    options.min = args.min.map(ByteSize::bytes);
    options.mode = args.mode;
    options.uid = id(&args.uid, "/etc/passwd")?;
    options.gid = id(&args.gid, "/etc/group")?;
    let options = options.rounded();
    let made = mounts::make(&path, &options)?;
    let mounted = Mounted {
        path,
        page_bytes: size.bytes(),
        options: options.to_string(),
        already: made == Made::Already,
    };
    if format == Format::Json {
        output::json(SCHEMA, &mounted)?;
        return Ok(());
    }
    let what = if mounted.already {
        "is already mounted"
    } else {
        "is mounted"
    };
    writeln!(
        io::stdout(),
        "{} {what}: {}",
        mounted.path.display(),
        mounted.options
    )?;
    Ok(())
}

pub fn unmount(args: &Unmount, format: Format) -> Result<()> {
    #[derive(Serialize)]
    struct Unmounted {
        path: PathBuf,
    }
    let path = match &args.path {
        Some(path) => path.clone(),
        None => mounts::default_path(page_size(args.size)?),
    };
    mounts::remove(&path, args.force)?;
    match format {
        Format::Json => output::json(SCHEMA, &Unmounted { path })?,
        Format::Human => writeln!(io::stdout(), "{} unmounted", path.display())?,
    }
    Ok(())
}
