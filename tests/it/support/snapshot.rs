//! Compares a program's output with the output at the last review.

use std::path::PathBuf;
use std::{env, fs};

/// Compares with `tests/it/snapshots/NAME`. `LLAMA_HUGEPAGES_UPDATE_SNAPSHOTS=1` writes the file instead: review the diff.
pub fn assert(name: &str, text: &str) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/it/snapshots", name]
        .iter()
        .collect();
    if env::var_os("LLAMA_HUGEPAGES_UPDATE_SNAPSHOTS").is_some_and(|value| value == "1") {
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is ours");
        fs::write(&path, text).expect("the disk has space");
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "{name} differs.\n--- expected\n{expected}\n--- now\n{text}\nLLAMA_HUGEPAGES_UPDATE_SNAPSHOTS=1 takes it"
    );
}
