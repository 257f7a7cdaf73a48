//! `hugepages store mount` and `unmount`.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use llama_hugepages::pool::{HugePageSize, Root};
use llama_hugepages::size::ByteSize;
use llama_hugepages::store::mount::{self as mounts, Made, Options};

use super::SCHEMA;
use crate::cli::output::{self, Format};

#[derive(Debug, clap::Args)]
pub struct Mount {
    /// Where; it is made if it is not there [default: /run/llama-hugepages/store/SIZE]
    path: Option<PathBuf>,
    /// Page size, such as 2M or 1G [default: the smallest of at least 2 MiB]
    #[arg(long)]
    size: Option<HugePageSize>,
    /// No more than that may lie in it
    #[arg(long, value_name = "BYTES")]
    limit: Option<ByteSize>,
    /// Take that much from the pool at once, for this store alone
    #[arg(long, value_name = "BYTES")]
    min: Option<ByteSize>,
    /// Rights to its directory, in octal; with 1777 each user has images of their own
    #[arg(long, default_value = "0755", value_parser = mode)]
    mode: u32,
    /// Who may write to it: a number, or a name of /etc/passwd
    #[arg(long, default_value = "0")]
    uid: String,
    /// Its group: a number, or a name of /etc/group
    #[arg(long, default_value = "0")]
    gid: String,
}

#[derive(Debug, clap::Args)]
pub struct Unmount {
    /// What is mounted where [default: /run/llama-hugepages/store/SIZE]
    path: Option<PathBuf>,
    /// Page size, for the default
    #[arg(long)]
    size: Option<HugePageSize>,
    /// Drop what it holds; who uses it keeps the memory until it ends
    #[arg(long)]
    force: bool,
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok();
    mode.filter(|mode| *mode <= 0o1777)
        .ok_or_else(|| format!("`{text}` is no mode, such as 0755"))
}

/// A number, or the third field of the line that begins with the name.
fn id(text: &str, table: &str) -> Result<u32> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let lines = fs::read_to_string(table).with_context(|| format!("cannot read `{table}`"))?;
    let id = lines.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == text).then(|| fields.nth(1)?.parse().ok())?
    });
    id.with_context(|| format!("`{text}` is neither a number nor a name of `{table}`"))
}

fn page_size(wanted: Option<HugePageSize>) -> Result<HugePageSize> {
    let default = || HugePageSize::of_images(&Root::system());
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
        "is mounted already"
    } else {
        "is mounted"
    };
    writeln!(
        io::stdout(),
        "{} {what}, with {}",
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
        Format::Human => writeln!(io::stdout(), "{} is unmounted", path.display())?,
    }
    Ok(())
}
