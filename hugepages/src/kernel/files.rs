//! Small files of `/sys` and `/proc`: one text, one number, one field.

use std::fs;
use std::io;
use std::str::FromStr;

use crate::kernel::Root;

/// A file with lines such as `MemTotal:   12 kB`.
#[derive(Debug, Clone, Default)]
pub struct Fields(String);

impl Fields {
    /// Takes the text of the file.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// A field in bytes. `None` if the kernel does not report it.
    pub fn bytes(&self, name: &str) -> Option<u64> {
        kib_field(&self.0, name)
    }

    /// A field with a word, such as `Name`.
    pub fn word(&self, name: &str) -> Option<&str> {
        let mut lines = self.0.lines();
        let word = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(word.trim())
    }
}

/// The whole file.
pub fn read(root: &Root, path: &str) -> io::Result<String> {
    // Lossy, because some of these files contain names that other users chose.
    let bytes = fs::read(root.path(path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The whole file. `None` if it does not exist or is not readable.
pub fn text(root: &Root, path: &str) -> Option<String> {
    read(root, path).ok()
}

/// A file with one number; `None` for `max`.
pub fn number<T: FromStr>(root: &Root, path: &str) -> Option<T> {
    text(root, path)?.trim().parse().ok()
}

/// `Name:   12 kB` in bytes.
pub fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

/// `name 12`
pub fn counter(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// The word in brackets: `always [madvise] never`.
pub fn chosen(text: &str) -> Option<&str> {
    text.split_once('[')?
        .1
        .split_once(']')
        .map(|(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "HugePages_Total:       3\nHugetlbPages2: 8 kB\nHugetlbPages:\t    4096 kB\n";
        assert_eq!(kib_field(text, "HugetlbPages"), Some(4 << 20));
        assert_eq!(kib_field(text, "Hugetlb"), None);
        assert_eq!(
            counter(
                "nr_memmap_pages 7\nnr_memmap_boot_pages 9\n",
                "nr_memmap_boot_pages"
            ),
            Some(9)
        );
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
    }
}
