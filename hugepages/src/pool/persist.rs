//! Files that set a pool at every boot: sysctl.d for the default page size, tmpfiles.d for other sizes and for nodes, and the
//! kernel's command line for large pages, which the kernel can rarely allocate later.
//!
//! Each file starts with a header with a checksum of the rest. The tool replaces or removes a file only if the checksum matches.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::PoolError;
use crate::kernel::{HugePageSize, Root, pools, sizes};

const HEADER: &str =
    "# Written by `hugepages pool persist`; `hugepages pool unpersist` removes it. Checksum: ";

/// Directories for our files.
const DIRS: [&str; 3] = ["/etc/sysctl.d", "/etc/tmpfiles.d", "/etc/default/grub.d"];

/// Pages of at least this size must be allocated at boot, before memory is fragmented.
const AT_BOOT: u64 = 1 << 30;

/// A file with its content.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setting {
    /// Path below the root.
    pub path: PathBuf,
    /// Content with the header.
    pub text: String,
}

/// The settings of a pool for every boot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Persistent {
    /// Files; empty if the machine has no directory for them.
    pub settings: Vec<Setting>,
    /// Parameters for the kernel's command line, for large pages.
    pub kernel_parameters: Option<String>,
}

impl Persistent {
    /// Settings for a pool of `pages` pages in total.
    pub fn new(root: &Root, size: HugePageSize, node: Option<u32>, pages: u64) -> Self {
        let short = size.short_name();
        let on_node = node.map(|node| format!("-node{node}")).unwrap_or_default();
        let mut settings = Vec::new();
        let mut add = |dir: &str, name: String, body: String| {
            let dir = root.path(dir);
            settings.push(Setting {
                path: dir.join(name),
                text: with_header(&body),
            });
        };
        if node.is_none() && sizes::default_of(root) == Some(size) {
            let body = format!("vm.nr_hugepages = {pages}\n");
            add(DIRS[0], "60-llama-hugepages.conf".to_owned(), body);
        } else {
            let dir = pools::folder(size, node);
            let body = format!("w {dir}/nr_hugepages - - - - {pages}\n");
            let name = format!("60-llama-hugepages-{short}{on_node}.conf");
            add(DIRS[1], name, body);
        }
        let kernel_parameters = (size.bytes() >= AT_BOOT).then(|| {
            let on_node = node.map(|node| format!("{node}:")).unwrap_or_default();
            format!("hugepagesz={short} hugepages={on_node}{pages}")
        });
        if let Some(parameters) = &kernel_parameters
            && root.path(DIRS[2]).is_dir()
        {
            let body = format!("GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {parameters}\"\n");
            let name = format!("60-llama-hugepages-{short}{on_node}.cfg");
            add(DIRS[2], name, body);
        }
        Self {
            settings,
            kernel_parameters,
        }
    }
}

impl Setting {
    /// Current content of the file; empty if it does not exist.
    ///
    /// # Errors
    /// [`PoolError::Edited`] if the file is not ours or was edited, unless `force`.
    pub fn present(&self, force: bool) -> Result<String, PoolError> {
        match fs::read_to_string(&self.path) {
            Ok(text) if force || is_ours(&text) => Ok(text),
            Ok(_) => Err(PoolError::Edited(self.path.clone())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(PoolError::io("read", &self.path, error)),
        }
    }

    /// Writes under another name first, so that a boot never reads an incomplete file.
    ///
    /// # Errors
    /// [`PoolError::Io`]
    pub fn write(&self) -> Result<(), PoolError> {
        let failed = |source| PoolError::io("write", &self.path, source);
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).map_err(failed)?;
        }
        // sysctl, tmpfiles and GRUB must not read the temporary file.
        let part = self.path.with_extension("part");
        fs::write(&part, &self.text)
            .and_then(|()| fs::File::open(&part)?.sync_all())
            .and_then(|()| fs::rename(&part, &self.path))
            .map_err(failed)
    }
}

/// Our existing files, in order.
///
/// # Errors
/// [`PoolError::Edited`] if a file was edited, unless `force`.
pub fn written(root: &Root, force: bool) -> Result<Vec<PathBuf>, PoolError> {
    let mut found = Vec::new();
    for dir in DIRS {
        let entries = fs::read_dir(root.path(dir)).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if !is_our_name(&path) {
                continue;
            }
            let text = fs::read_to_string(&path).map_err(|e| PoolError::io("read", &path, e))?;
            // A file of another program with such a name stays, even with `force`.
            if !text.starts_with(HEADER) {
                continue;
            }
            if !force && !is_ours(&text) {
                return Err(PoolError::Edited(path));
            }
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn is_our_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("60-llama-hugepages"))
}

fn with_header(body: &str) -> String {
    format!("{HEADER}{:016x}\n{body}", checksum(body))
}

fn is_ours(text: &str) -> bool {
    text.split_once('\n')
        .is_some_and(|(_, body)| text == with_header(body))
}

/// FNV-1a, which detects edits but not attacks.
fn checksum(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}
