//! What the commands of a store share: the option `--store`, the number of the JSON schema, and words.

use std::ffi::OsString;
use std::time::{SystemTime, UNIX_EPOCH};

use hugepages::store::{Store, StoreError};

pub const SCHEMA: u32 = 1;

#[derive(Clone, Debug, clap::Args)]
pub struct Which {
    /// Directory of the store; `auto`: the first store that this user can write to, otherwise the first that this user can read
    #[arg(
        long,
        value_name = "DIR",
        default_value = Store::AUTO,
        env = "LLAMA_ARG_HUGEPAGE_STORE"
    )]
    store: OsString,
}

impl Which {
    pub fn open(&self) -> Result<Store, StoreError> {
        Store::open(&self.store)
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}
