//! The demand as JSON.

use std::io;

use hugepages::plan::Demand;

use crate::cli::output;

const SCHEMA: u32 = 1;

pub fn print(demand: &Demand) -> io::Result<()> {
    output::json(SCHEMA, demand)
}
