//! What the kernel offers: page sizes, pools, nodes, mounts, cgroup limits, memory, and the processes that use huge pages.
//!
//! Each file of `/sys` and `/proc` has one reader here. Every reader takes a [`Root`], so a folder can replace this machine.
//! This module changes nothing, and knows no models, stores or servers.

pub mod cgroups;
pub mod files;
pub mod hvo;
pub mod memory;
pub mod mounts;
pub mod nodes;
pub mod pools;
mod root;
pub mod sizes;
pub mod smaps;
pub mod thp;
mod users;

use serde::{Serialize, Serializer};

pub use cgroups::Limit;
pub use hvo::{Hvo, HvoState};
pub use llama_hugepages::{HugePageSize, ParseHugePageSizeError};
pub use memory::{Memory, Stall, Stalls};
pub use mounts::Mount;
pub use pools::{NodePool, Pool, PoolState, usable};
pub use root::{Root, ZeroByte};
pub use smaps::Share;
pub use thp::Thp;
pub use users::User;

/// Information that this user may not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unread {
    /// Name of the information.
    pub what: String,
    /// Reason.
    pub why: String,
}

/// In JSON a page size is a number of bytes.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
pub(crate) fn bytes_of_page<S: Serializer>(
    size: &HugePageSize,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(size.bytes())
}
