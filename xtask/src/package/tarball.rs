//! `llama-hugepages-VERSION-linux-ARCH.tar.gz`, and the SBOM beside it.

use std::env::consts::ARCH;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use super::{stage, sum};
use crate::release::{NAME, Origin, VERSION, copy_as, make, remove, walk};
use crate::repo::Repo;

/// Builds the tarball from programs that are already built, and returns its path.
pub fn build(repo: &Repo, programs: &Path, dir: &Path) -> Result<PathBuf> {
    make(dir)?;
    let time = Origin::of(repo)?.time;
    let name = format!("{NAME}-{VERSION}-linux-{ARCH}");
    let root = dir.join("tarball");
    let prefix = stage(repo, programs, &root, &name)?;
    copy_as(
        &prefix.join("share/doc").join(NAME).join("sbom.json"),
        &dir.join(format!("{NAME}-{VERSION}.cdx.json")),
        0o644,
    )?;
    let path = dir.join(format!("{name}.tar.gz"));
    let file = File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
    pack(&root, time, BufWriter::new(file))?;
    remove(&root)?;
    sum(dir)?;
    Ok(path)
}

/// Packs a folder: sorted, owned by root, with one time.
fn pack(root: &Path, time: u64, file: impl Write) -> Result<()> {
    let file = GzBuilder::new().write(file, Compression::best());
    let mut archive = Builder::new(file);
    for path in walk(root)? {
        let data = fs::symlink_metadata(&path)?;
        let mut header = Header::new_gnu();
        header.set_mtime(time);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        header.set_mode(data.permissions().mode() & 0o777);
        header.set_size(0);
        let name = path.strip_prefix(root)?;
        if data.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            archive.append_link(&mut header, name, fs::read_link(&path)?)?;
        } else if data.is_dir() {
            header.set_entry_type(EntryType::Directory);
            archive.append_data(&mut header, name, io::empty())?;
        } else {
            header.set_size(data.len());
            archive.append_data(&mut header, name, File::open(&path)?)?;
        }
    }
    archive.into_inner()?.finish()?.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;

    fn packed(names: &[&str]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for name in names {
            make(&root.join(name)).unwrap();
            fs::write(root.join(name).join("file"), name).unwrap();
        }
        std::os::unix::fs::symlink("a/file", root.join("link")).unwrap();
        let mut bytes = Vec::new();
        pack(&root, 1_700_000_000, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn neither_the_time_nor_the_order_of_files_changes_the_bytes() {
        assert_eq!(packed(&["a", "b"]), packed(&["b", "a"]));
    }

    #[test]
    fn all_entries_belong_to_root_and_have_the_given_time() {
        let bytes = packed(&["a"]);
        let mut archive = tar::Archive::new(GzDecoder::new(&*bytes));
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 1_700_000_000);
            assert_eq!(entry.header().uid().unwrap(), 0);
            names.push(entry.path().unwrap().display().to_string());
        }
        assert_eq!(names, ["a", "a/file", "link"]);
    }
}
