//! hugetlbfs: where it is mounted, and which files hold pages.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use super::Unread;
use crate::kernel_files;
use crate::pool::{HugePageSize, Root};

/// A hugetlbfs mount that this process sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Mount {
    /// Where it is mounted.
    pub path: String,
    /// Size of its pages.
    pub page_size: Option<u64>,
    /// Its options, as the kernel prints them.
    pub options: String,
    /// Bytes of pages that its files hold.
    pub bytes: u64,
    /// Its files, in order of their names.
    pub files: Vec<HeldFile>,
}

/// A file with pages. They stay taken until it is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HeldFile {
    /// Where it is.
    pub path: String,
    /// Bytes of its pages; a hole takes none.
    pub bytes: u64,
    /// Its length.
    pub length: u64,
}

/// All of them, in the order of `/proc/self/mountinfo`.
pub fn read(root: &Root, unread: &mut Vec<Unread>) -> Vec<Mount> {
    let table = kernel_files::text(root, "/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| mount(root, line, unread))
        .collect()
}

/// id parent dev root mount-point options … - type source super-options
fn mount(root: &Root, line: &str, unread: &mut Vec<Unread>) -> Option<Mount> {
    let (ours, theirs) = line.split_once(" - ")?;
    let mut theirs = theirs.split(' ');
    if theirs.next()? != "hugetlbfs" {
        return None;
    }
    let options = theirs.nth(1)?.to_owned();
    let path = unescape(ours.split(' ').nth(4)?);
    let page_size = options
        .split(',')
        .find_map(|option| option.strip_prefix("pagesize="))
        .and_then(|size| size.parse::<HugePageSize>().ok());
    let mut files = Vec::new();
    walk(root, Path::new(&path), &mut files, unread);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Some(Mount {
        path,
        page_size: page_size.map(HugePageSize::bytes),
        options,
        bytes: files.iter().map(|file| file.bytes).sum(),
        files,
    })
}

fn walk(root: &Root, dir: &Path, files: &mut Vec<HeldFile>, unread: &mut Vec<Unread>) {
    let entries = match fs::read_dir(root.path(dir)) {
        Ok(entries) => entries,
        Err(error) => {
            unread.push(Unread {
                what: format!("files in {}", dir.display()),
                why: error.to_string(),
            });
            return;
        }
    };
    for entry in entries.flatten() {
        let path = dir.join(entry.file_name());
        // Of the entry itself: a link is not followed. One that is removed meanwhile holds nothing.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() {
            walk(root, &path, files, unread);
        } else if metadata.is_file() {
            files.push(HeldFile {
                path: path.to_string_lossy().into_owned(),
                bytes: metadata.blocks() * 512,
                length: metadata.len(),
            });
        }
    }
}

/// proc(5): space, tab, newline and backslash are written in octal.
pub fn unescape(text: &str) -> String {
    let codes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let replace = |text: String, (code, letter): (&str, &str)| text.replace(code, letter);
    codes.into_iter().fold(text.to_owned(), replace)
}
