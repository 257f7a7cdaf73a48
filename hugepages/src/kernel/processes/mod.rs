//! `/proc/PID`: what the kernel reports about a process.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::process;

use super::{Fields, Root, files};

pub mod limits;
pub mod maps;
pub mod numa_maps;
pub mod smaps;
pub mod stat;
mod users;

pub use users::User;

/// The ids of all processes, in the order of the kernel.
///
/// # Errors
/// `/proc` is not readable.
pub fn ids(root: &Root) -> io::Result<Vec<u32>> {
    let entries = fs::read_dir(root.path("/proc"))?.flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(ids.collect())
}

/// The path by which other processes of this user can open a file of this process.
pub fn path_of(file: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()).into()
}

/// `/proc/PID/status`
///
/// # Errors
/// The process has ended.
pub fn status(root: &Root, pid: u32) -> io::Result<Fields> {
    files::read(root, &format!("/proc/{pid}/status")).map(Fields::new)
}

/// `/proc/PID/comm`, the name, cut by the kernel to 15 bytes. Empty if the process has ended.
pub fn name(root: &Root, pid: u32) -> String {
    let name = files::text(root, &format!("/proc/{pid}/comm"));
    name.unwrap_or_default().trim_end().to_owned()
}

/// `/proc/PID/cmdline`, the program and its arguments. Empty for a thread of the kernel.
pub fn arguments(root: &Root, pid: u32) -> Vec<String> {
    words(root, pid, "cmdline")
}

/// `/proc/PID/environ`, entries of the form `NAME=value`. Empty if this user may not read them.
pub fn environment(root: &Root, pid: u32) -> Vec<String> {
    words(root, pid, "environ")
}

fn words(root: &Root, pid: u32, file: &str) -> Vec<String> {
    let text = files::text(root, &format!("/proc/{pid}/{file}")).unwrap_or_default();
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// Whether a process is in another network namespace than this one. `false` if this user may not read it.
pub fn is_in_another_network(root: &Root, pid: u32) -> bool {
    let namespace = |who: &str| -> Option<PathBuf> {
        fs::read_link(root.path(format!("/proc/{who}/ns/net"))).ok()
    };
    namespace(&pid.to_string())
        .zip(namespace("self"))
        .is_some_and(|(theirs, ours)| theirs != ours)
}
