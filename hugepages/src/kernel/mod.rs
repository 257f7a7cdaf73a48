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
mod unread;
mod users;

pub use cgroups::Limit;
pub use hvo::{Hvo, HvoState};
pub use llama_hugepages::{HugePageSize, ParseHugePageSizeError};
pub use memory::{Memory, Stall, Stalls};
pub use mounts::Mount;
pub use pools::{NodePool, Pool, PoolState, usable};
pub use root::{Root, ZeroByte};
pub use smaps::Share;
pub use thp::Thp;
pub use unread::Unread;
pub use users::User;
