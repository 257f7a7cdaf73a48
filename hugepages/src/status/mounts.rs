//! hugetlbfs mounts, and their files with pages.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::kernel::{self, HugePageSize, Root, Unread};
use crate::store::Store;

/// A hugetlbfs mount that this process sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Mount {
    /// Mount point.
    pub path: String,
    /// Page size.
    pub page_size: Option<u64>,
    /// Options, in the kernel's form.
    pub options: String,
    /// Bytes of huge pages in its files.
    pub bytes: u64,
    /// Its files, in order of their names.
    pub files: Vec<HeldFile>,
}

/// A file with huge pages, which stay used until the file is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HeldFile {
    /// Path.
    pub path: String,
    /// Bytes of its pages; a hole takes none.
    pub bytes: u64,
    /// Length.
    pub length: u64,
    /// The model file, if this file is a resident image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// All hugetlbfs mounts, in the order of `/proc/self/mountinfo`.
pub fn read(root: &Root, unread: &mut Vec<Unread>) -> Vec<Mount> {
    let mounts = kernel::mounts::all(root).into_iter();
    mounts
        .filter(|mount| mount.kind == "hugetlbfs")
        .map(|mount| with_files(root, mount, unread))
        .collect()
}

fn with_files(root: &Root, mount: kernel::mounts::Mount, unread: &mut Vec<Unread>) -> Mount {
    let size = mount.option("pagesize");
    let size = size.and_then(|size| size.parse::<HugePageSize>().ok());
    let path = Path::new(&mount.path);
    let mut files = Vec::new();
    walk(root, path, &mut files, unread);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    // The files of a recorded kernel do not exist on this machine.
    if *root == Root::system() {
        name_models(path, &mut files);
    }
    Mount {
        page_size: size.map(HugePageSize::bytes),
        bytes: files.iter().map(|file| file.bytes).sum(),
        files,
        path: mount.path,
        options: mount.options,
    }
}

/// Adds the model files of trusted resident images. Untrusted images can contain any name.
fn name_models(dir: &Path, files: &mut [HeldFile]) {
    let is_image = |file: &&mut HeldFile| {
        file.path.ends_with(".resident") && Path::new(&file.path).parent() == Some(dir)
    };
    for file in files.iter_mut().filter(is_image) {
        let image = Store::open(dir).ok().and_then(|store| {
            let name = Path::new(&file.path).file_name()?;
            store.image(name.to_str()?)
        });
        file.model = image
            .filter(|it| it.problem.is_none())
            .map(|it| it.info.source.to_string_lossy().into_owned());
    }
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
        // Metadata of the entry itself, without following a link. A file that was removed meanwhile holds no page.
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
                model: None,
            });
        }
    }
}
