//! The options that select a pool: `--size` and `--node`.

use hugepages::kernel::{HugePageSize, Root, sizes};
use hugepages::pool::{Counter, PoolError};

#[derive(Clone, Copy, Debug, clap::Args)]
pub struct WhichPool {
    /// Page size, for example 2M or 1G [default: the smallest size of at least 2 MiB]
    #[arg(long)]
    pub size: Option<HugePageSize>,
    /// Only the pool of this NUMA node
    #[arg(long, value_name = "N")]
    pub node: Option<u32>,
}

impl WhichPool {
    /// The counters of this pool.
    pub fn counter(self, root: &Root) -> Result<Counter, PoolError> {
        let default = || sizes::of_images(root);
        let size = self.size.or_else(default).ok_or(PoolError::NoPools)?;
        Counter::new(root, size, self.node)
    }
}
