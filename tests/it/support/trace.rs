//! Traces of `strace -y`.

use std::fs;
use std::path::Path;

/// Bytes that read calls got from a file, in a trace of `strace -y`.
pub fn bytes_read(trace: &Path, file: &Path) -> u64 {
    let trace = fs::read_to_string(trace).expect("strace has written it");
    let name = format!("<{}>", file.display());
    let got = |line: &str| line.rsplit_once(" = ")?.1.trim().parse::<u64>().ok();
    trace
        .lines()
        .filter(|line| line.contains(&name))
        .filter_map(got)
        .sum()
}
