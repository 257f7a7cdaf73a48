//! What the kernel offers: page sizes, pools, nodes, mounts, cgroup limits, memory, and the processes that use huge pages.
//!
//! Each file of `/sys` and `/proc` has one reader here. Every reader takes a [`Root`], so a folder can replace this machine.
//! This module changes nothing, and knows no models, stores or servers.
//!
//! The files are parsed here and not by a crate: the known crates reject a whole file if one field is missing.

pub mod buddyinfo;
pub mod cgroup_limits;
mod files;
pub mod hvo;
pub mod machine;
pub mod meminfo;
pub mod memory;
pub mod mounts;
pub mod nodes;
pub mod pools;
pub mod processes;
mod root;
pub mod running;
pub mod sizes;
pub mod thp;
mod unread;

pub use cgroup_limits::Limit;
pub use files::Fields;
pub use hvo::{Hvo, HvoState};
pub use llama_hugepages::{HugePageSize, ParseHugePageSizeError};
pub use memory::{Memory, Stall, Stalls};
pub use mounts::Mount;
pub use pools::{NodePool, Pool, PoolState, usable};
pub use processes::User;
pub use processes::smaps::Share;
pub use root::{Root, ZeroByte};
pub use thp::Thp;
pub use unread::Unread;
