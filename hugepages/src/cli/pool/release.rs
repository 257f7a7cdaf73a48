//! `hugepages pool release`

use anyhow::Result;

use hugepages::kernel::Root;

use super::arguments::{AmountOrAll, Release};
use super::lock::lock_pools;
use super::print_change::{Pages, print_change};
use crate::cli::output::Format;

pub fn release(root: &Root, args: &Release, format: Format) -> Result<()> {
    let counter = args.which.counter(root)?;
    let pages = match args.amount {
        AmountOrAll::All => None,
        AmountOrAll::Amount(amount) => Some(amount.pages(counter.size)),
    };
    counter.writable()?;
    let mut pools = lock_pools(root)?;
    let before = counter.read()?;
    if args.dry_run {
        let pages = pools.releasable(&counter, pages, args.force)?;
        return print_change(
            &counter,
            format,
            true,
            before,
            before,
            Pages::Returned(pages),
        );
    }
    let given = pools.release(&counter, pages, args.force)?;
    let after = counter.read()?;
    print_change(
        &counter,
        format,
        false,
        before,
        after,
        Pages::Returned(given),
    )
}
