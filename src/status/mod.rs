//! The state of the machine's huge pages: pools, processes, limits, saved memory.
//!
//! The kernel is the only source, except for the reports of `llama-server` processes. [`Status::unread`] lists what this user may
//! not read, with the reason. Features that the kernel lacks are absent.

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

/// The state of all huge pages, at about one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// One pool for each page size; empty on a kernel without HugeTLB.
    pub pools: Vec<PoolState>,
    /// Processes with huge pages, the largest first.
    pub users: Vec<User>,
    /// hugetlbfs mounts and their files.
    pub mounts: Vec<Mount>,
    /// cgroup limits on huge pages that apply to this process.
    pub limits: Vec<Limit>,
    /// Memory that the optimization of `struct page` (HVO) frees.
    pub hvo: Hvo,
    /// Transparent huge pages, which belong to no pool.
    pub thp: Thp,
    /// State of ordinary memory.
    pub memory: Memory,
    /// Information that this user may not read, with the reason.
    pub unread: Vec<Unread>,
}

/// Information that this user may not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unread {
    /// Name of the information.
    pub what: String,
    /// Reason.
    pub why: String,
}

impl Status {
    /// Reads the state.
    ///
    /// ```
    /// use llama_hugepages::pool::Root;
    /// use llama_hugepages::status::{Asking, Status};
    ///
    /// let status = Status::read(&Root::system(), Asking::Never);
    /// for pool in &status.pools {
    ///     println!("{} of {} pages of {} usable", pool.usable, pool.total, pool.page_size);
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
