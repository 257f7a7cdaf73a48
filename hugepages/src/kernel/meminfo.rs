//! `/proc/meminfo`: the memory of the machine.

use std::io;

use super::{Fields, Root, files};

/// Path of the file.
pub const PATH: &str = "/proc/meminfo";

/// Reads the file.
///
/// # Errors
/// The file is not readable.
pub fn read(root: &Root) -> io::Result<Fields> {
    files::read(root, PATH).map(Fields::new)
}
