//! Writes the guest's initramfs: a cpio archive in the "newc" format, which the kernel unpacks.
//!
//! The program `cpio` would need a folder with all files first, with the owner and mode of each file.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// The archive. It adds the parent folders of each file.
pub struct Image<W> {
    out: W,
    known: BTreeSet<PathBuf>,
}

impl<W: Write> Image<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            known: BTreeSet::new(),
        }
    }

    /// Adds a file; keeps an existing one.
    pub fn file(&mut self, path: impl AsRef<Path>, content: &[u8]) -> Result<()> {
        let path = path.as_ref();
        let path = path.strip_prefix("/").unwrap_or(path);
        if !self.known.insert(path.to_owned()) {
            return Ok(());
        }
        // The kernel creates no parent folders.
        let mut parents: Vec<_> = path.ancestors().skip(1).collect();
        parents.retain(|parent| !parent.as_os_str().is_empty());
        for parent in parents.into_iter().rev() {
            if self.known.insert(parent.to_owned()) {
                self.entry(parent, DIRECTORY, &[])?;
            }
        }
        self.entry(path, PROGRAM, content)
    }

    /// Adds a program of this machine, and the shared libraries that it needs here.
    pub fn program(&mut self, path: impl AsRef<Path>, program: &Path) -> Result<()> {
        let output = Command::new("ldd")
            .arg(program)
            .env("LC_ALL", "C")
            .output()
            .context("cannot run `ldd`")?;
        // ldd fails for a static program, which needs no libraries.
        for (place, library) in libraries(&String::from_utf8_lossy(&output.stdout))? {
            self.file(place, &read(&library)?)?;
        }
        self.file(path, &read(program)?)
    }

    pub fn finish(mut self) -> Result<()> {
        self.entry(Path::new("TRAILER!!!"), 0, &[])?;
        self.out.flush().context("cannot write the initramfs")
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        let name = path.as_os_str().as_encoded_bytes();
        let (links, size, name_size) = (1, content.len(), name.len() + 1);
        let mut entry = b"070701".to_vec();
        // inode, mode, owner, group, links, time, size, device (2), device number of a device file (2), name, checksum
        #[rustfmt::skip]
        let fields = [0, mode as usize, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        for field in fields {
            write!(entry, "{field:08x}")?;
        }
        entry.extend(name);
        entry.push(0);
        pad(&mut entry);
        entry.extend(content);
        pad(&mut entry);
        self.out
            .write_all(&entry)
            .context("cannot write the initramfs")
    }
}

/// Pads to a multiple of 4, where the next entry or content begins.
fn pad(entry: &mut Vec<u8>) {
    entry.resize(entry.len().next_multiple_of(4), 0);
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
}

/// Libraries from `ldd`, and their paths in the guest: all libraries in one directory in the guest's `LD_LIBRARY_PATH`;
/// the loader at the path in the program's header.
fn libraries(ldd: &str) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    for line in ldd.lines().map(str::trim) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [name, "=>", "not", ..] => bail!("library `{name}` not found"),
            [name, "=>", path, ..] => found.push((Path::new("lib").join(name), path.into())),
            [loader, ..] if loader.starts_with('/') => found.push((loader.into(), loader.into())),
            _ => {} // the vdso
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_every_folder_once_and_before_what_it_holds() {
        let mut out = Vec::new();
        let mut image = Image::new(&mut out);
        image.file("/bin/a", b"12345").unwrap();
        image.file("bin/b", b"").unwrap();
        image.file("bin/b", b"again").unwrap();
        image.finish().unwrap();
        let mut names = Vec::new();
        let mut at = 0;
        while at < out.len() {
            let field = |index: usize| {
                let start = at + 6 + 8 * index;
                let digits = std::str::from_utf8(&out[start..start + 8]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            assert_eq!(&out[at..at + 6], b"070701", "at {at}");
            let (size, name_size) = (field(6), field(11));
            let name = &out[at + 110..at + 110 + name_size - 1];
            names.push((String::from_utf8_lossy(name).into_owned(), size));
            let content = (at + 110 + name_size).next_multiple_of(4);
            at = (content + size).next_multiple_of(4);
        }
        let expected = [("bin", 0), ("bin/a", 5), ("bin/b", 0), ("TRAILER!!!", 0)];
        assert_eq!(names, expected.map(|(name, size)| (name.to_owned(), size)));
    }

    #[test]
    fn libraries_share_a_folder_and_the_loader_keeps_its_place() {
        let text = "\tlinux-vdso.so.1 (0x00007fc5fac66000)\n\
            \tlibm.so.6 => /usr/lib/somewhere/libm.so.6 (0x00007fc5f9b20000)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007fc5fac68000)\n";
        let expected = [
            ("lib/libm.so.6", "/usr/lib/somewhere/libm.so.6"),
            ("/lib64/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"),
        ];
        let expected = expected.map(|(place, file)| (place.into(), file.into()));
        assert_eq!(libraries(text).unwrap(), expected);
        assert_eq!(libraries("\tstatically linked\n").unwrap(), []);
        assert!(libraries("\tlibx.so.1 => not found\n").is_err());
    }
}
