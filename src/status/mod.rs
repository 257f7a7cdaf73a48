//! What the machine's huge pages are doing now: pools, who uses them, what limits them, what they give back.
//!
//! Reading only, and only what the kernel says; the one exception is a `llama-server`, which is asked for its own report.
//! What may not be read is listed in [`Status::unread`] with the reason; what the kernel does not have is absent.

mod ask;
pub mod cgroups;
pub mod hvo;
pub mod mounts;
pub mod pools;
pub mod pressure;
pub mod servers;
pub mod thp;
pub mod users;

use serde::{Serialize, Serializer};

use crate::pool::{HugePageSize, Root};

pub use ask::{Health, health};
pub use cgroups::Limit;
pub use hvo::{Hvo, HvoState};
pub use mounts::{HeldFile, Mount};
pub use pools::{NodePool, PoolState};
pub use pressure::{Memory, Stall, Stalls};
pub use servers::{Asking, Server};
pub use thp::Thp;
pub use users::{Share, User};

/// All of it, at about one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// One for each page size; empty on a kernel without HugeTLB.
    pub pools: Vec<PoolState>,
    /// Processes with huge pages, the largest first.
    pub users: Vec<User>,
    /// hugetlbfs mounts and what lies in them.
    pub mounts: Vec<Mount>,
    /// cgroup limits on huge pages that apply to this process.
    pub limits: Vec<Limit>,
    /// What the optimization of `struct page` gives back.
    pub hvo: Hvo,
    /// Transparent huge pages: not of a pool.
    pub thp: Thp,
    /// How tight ordinary memory is.
    pub memory: Memory,
    /// What could not be read, and why.
    pub unread: Vec<Unread>,
}

/// Something that is there and may not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unread {
    /// What it is.
    pub what: String,
    /// Why it cannot be read.
    pub why: String,
}

impl Status {
    /// Reads it.
    ///
    /// ```
    /// use llama_hugepages::pool::Root;
    /// use llama_hugepages::status::{Asking, Status};
    ///
    /// let status = Status::read(&Root::system(), Asking::Never);
    /// for pool in &status.pools {
    ///     println!("{} of {} pages of {} can be had", pool.usable, pool.total, pool.page_size);
    /// }
    /// ```
    pub fn read(root: &Root, asking: Asking) -> Self {
        let mut unread = Vec::new();
        let pools = pools::read(root);
        let users = users::read(root, asking, &mut unread);
        let mounts = mounts::read(root, &mut unread);
        Self {
            users,
            mounts,
            limits: cgroups::read(root),
            hvo: hvo::read(root, &pools),
            thp: thp::read(root),
            memory: pressure::read(root),
            unread,
            pools,
        }
    }
}

/// In JSON a page size is a number of bytes.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn bytes_of_page<S: Serializer>(size: &HugePageSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(size.bytes())
}
