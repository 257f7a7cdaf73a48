//! Git's ids of the contents of files.

use sha1::{Digest, Sha1};

use crate::build::hex;

/// Git's name for "no such file".
pub(super) const NONE: &str = "0000000000000000000000000000000000000000";

/// Git's id of a file's content.
pub fn blob_id(content: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content.len()));
    hash.update(content);
    hex(&hash.finalize())
}

/// The start of an id, for a message.
pub(super) fn short(id: &str) -> String {
    id.chars().take(10).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_id_is_gits() {
        // git hash-object --stdin < /dev/null
        assert_eq!(blob_id(b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    }
}
