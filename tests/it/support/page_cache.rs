//! How much of a file the kernel holds in memory.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Advice, fadvise, fsync};
use rustix::io::Errno;

/// Lets the kernel forget a file that nobody maps.
pub fn drop_file(path: &Path) {
    let file = File::open(path).expect("the file is there");
    // Only what is on disk can be dropped.
    match fsync(&file) {
        // A file system that is read-only by its kind has nothing to write.
        Ok(()) | Err(Errno::INVAL | Errno::ROFS) => {}
        Err(error) => panic!("the disk works: {error}"),
    }
    fadvise(&file, 0, None, Advice::DontNeed).expect("it is a file");
}

/// Bytes of a file in memory, or why that cannot be told.
pub fn cached_bytes(path: &Path) -> Result<u64, String> {
    let output = Command::new("fincore")
        .args(["--bytes", "--noheadings", "--output", "RES"])
        .arg(path)
        .output();
    let output =
        output.map_err(|error| format!("fincore (of util-linux) cannot be run: {error}"))?;
    assert!(output.status.success(), "{output:?}");
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .expect("a number"))
}
