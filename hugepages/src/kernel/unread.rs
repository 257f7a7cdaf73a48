//! Information that the kernel hides from this user.

use serde::Serialize;

/// Information that this user may not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unread {
    /// Name of the information.
    pub what: String,
    /// Reason.
    pub why: String,
}
