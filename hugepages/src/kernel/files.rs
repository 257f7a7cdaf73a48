//! Small files of `/sys` and `/proc`: one text, one number, one field.

use std::fs;
use std::str::FromStr;

use crate::kernel::Root;

/// The whole file. `None` if it does not exist or is not readable.
pub fn text(root: &Root, path: &str) -> Option<String> {
    // Lossy, because some of these files contain names that other users chose.
    fs::read(root.path(path))
        .ok()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
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
