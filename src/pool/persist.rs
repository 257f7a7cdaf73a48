//! Files that set a pool at every boot: sysctl.d for the default page size, tmpfiles.d for others and for nodes, the kernel's
//! command line for pages that are rarely to be had later.
//!
//! Each begins with a header that says whose it is and has a checksum of the rest, so that only what is ours and unchanged is
//! replaced or removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{ChangeError, HugePageSize, Root};

const HEADER: &str =
    "# Written by `hugepages pool persist`; `hugepages pool unpersist` removes it. Checksum: ";

/// Folders that may hold our files.
const DIRS: [&str; 3] = ["/etc/sysctl.d", "/etc/tmpfiles.d", "/etc/default/grub.d"];

/// From this size on pages are to be had at boot, before memory is in pieces.
const AT_BOOT: u64 = 1 << 30;

/// A file to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setting {
    /// Below the root.
    pub path: PathBuf,
    /// With the header.
    pub text: String,
}

/// What sets a pool at every boot. The number is the pool's total.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Persistent {
    /// Files, none where there is no folder for them.
    pub settings: Vec<Setting>,
    /// For the kernel's command line, where it is the better way.
    pub kernel_parameters: Option<String>,
}

impl Persistent {
    /// For a pool.
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
        if node.is_none() && HugePageSize::default_of(root) == Some(size) {
            let body = format!("vm.nr_hugepages = {pages}\n");
            add(DIRS[0], "60-llama-hugepages.conf".to_owned(), body);
        } else {
            let pool = size.sysfs_name();
            let dir = match node {
                None => format!("/sys/kernel/mm/hugepages/{pool}"),
                Some(node) => format!("/sys/devices/system/node/node{node}/hugepages/{pool}"),
            };
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
    /// What is there now; empty where nothing is.
    ///
    /// # Errors
    /// [`ChangeError::Edited`] for what is not ours as we left it, unless `force`.
    pub fn present(&self, force: bool) -> Result<String, ChangeError> {
        match fs::read_to_string(&self.path) {
            Ok(text) if force || is_ours(&text) => Ok(text),
            Ok(_) => Err(ChangeError::Edited(self.path.clone())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(ChangeError::io("read", &self.path, error)),
        }
    }

    /// Writes it under another name first: never half a file at boot.
    ///
    /// # Errors
    /// [`ChangeError::Io`]
    pub fn write(&self) -> Result<(), ChangeError> {
        let failed = |source| ChangeError::io("write", &self.path, source);
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).map_err(failed)?;
        }
        // Not a suffix that sysctl, tmpfiles or GRUB would read.
        let part = self.path.with_extension("part");
        fs::write(&part, &self.text)
            .and_then(|()| fs::File::open(&part)?.sync_all())
            .and_then(|()| fs::rename(&part, &self.path))
            .map_err(failed)
    }
}

/// Our files that are there, in order.
///
/// # Errors
/// [`ChangeError::Edited`] for one that was changed, unless `force`.
pub fn written(root: &Root, force: bool) -> Result<Vec<PathBuf>, ChangeError> {
    let mut found = Vec::new();
    for dir in DIRS {
        let entries = fs::read_dir(root.path(dir)).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if !is_our_name(&path) {
                continue;
            }
            let text = fs::read_to_string(&path).map_err(|e| ChangeError::io("read", &path, e))?;
            // Somebody else's with such a name is nobody's business, forced or not.
            if !text.starts_with(HEADER) {
                continue;
            }
            if !force && !is_ours(&text) {
                return Err(ChangeError::Edited(path));
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

/// FNV-1a: it tells an edited file from an unedited one, and protects from nothing.
fn checksum(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}
