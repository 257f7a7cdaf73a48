//! The state of the machine's huge pages: pools, processes, limits, saved memory.
//!
//! The kernel is the only source, except for the reports of `llama-server` processes. [`Status::unread`] lists what this user may
//! not read, with the reason. Features that the kernel lacks are absent.

mod ask;
pub mod mounts;
pub mod servers;
pub mod users;

use serde::Serialize;

use crate::kernel::{Hvo, Limit, Memory, PoolState, Root, Thp, Unread};
use crate::kernel::{cgroup_limits, hvo, memory, pools, thp};

pub use mounts::{HeldFile, Mount};
pub use servers::{Asking, Server};
pub use users::User;

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

impl Status {
    /// Reads the state.
    ///
    /// ```
    /// use hugepages::kernel::Root;
    /// use hugepages::status::{Asking, Status};
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
            limits: cgroup_limits::read(root),
            hvo: hvo::read(root, &pools),
            thp: thp::read(root),
            memory: memory::read(root),
            unread,
            pools,
        }
    }
}
