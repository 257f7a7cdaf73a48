//! Pages that a load adds to the pool, and returns if the load fails.

use std::collections::BTreeMap;

use hugepages::kernel::{HugePageSize, Root};
use hugepages::pool::{Counter, PoolError, Wish};

use crate::cli::pool;

/// Pages that were added to the pool. Dropping the value returns them, unless `keep` was called after the load.
#[derive(Default)]
pub struct Added {
    changes: Vec<u64>,
}

impl Added {
    pub fn reserve(&mut self, need: &BTreeMap<HugePageSize, u64>) -> Result<(), PoolError> {
        let root = Root::system();
        for (size, pages) in need {
            let counter = Counter::new(&root, *size, None)?;
            let missing = pages.saturating_sub(counter.read()?.idle());
            if missing == 0 {
                continue;
            }
            counter.writable()?;
            let mut pools = pool::lock_pools(&root)?;
            pools.reap()?;
            let wish = Wish {
                pages: missing,
                try_hard: true,
                ..Wish::default()
            };
            let reserved = pools.reserve(&counter, &wish)?;
            self.changes.extend(reserved.id);
            eprintln!("added {} pages of {size} to the pool", reserved.added);
        }
        Ok(())
    }

    pub fn keep(&mut self) {
        self.changes.clear();
    }
}

impl Drop for Added {
    fn drop(&mut self) {
        let root = Root::system();
        for id in self.changes.drain(..) {
            let given = pool::lock_pools(&root).and_then(|mut pools| pools.give_back(id));
            match given {
                Ok(undone) => eprintln!("returned {} pages", undone.pages),
                Err(error) => eprintln!("cannot return the pages: {error}"),
            }
        }
    }
}
