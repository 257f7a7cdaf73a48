//! Memory of several servers on one model.

use serde::Serialize;

use super::server::Server;
use super::{CompareError, ModelFile, Runner, Side};
use crate::compare::measure::Footprint;
use crate::compare::measure::footprint::pool_bytes_taken;
use crate::kernel::Root;

/// Several servers of each side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Many {
    /// Name of the model.
    pub model: String,
    /// Number of servers of each side.
    pub servers: usize,
    /// Both sides, the baseline first.
    pub sides: Vec<ManySide>,
}

/// One side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ManySide {
    /// Name in the report.
    pub name: String,
    /// Command line of each server.
    pub command: Vec<String>,
    /// Sum of all `Pss`, which counts shared page cache once. Source: `/proc/PID/smaps_rollup`.
    pub pss_bytes: u64,
    /// Bytes taken from the pools, which count shared pages once. Source: `/sys/kernel/mm/hugepages`.
    pub pool_bytes: u64,
    /// Bytes of the model in the page cache, mapped or not. Source: mincore(2).
    pub residue_bytes: u64,
    /// Memory of each server.
    pub footprints: Vec<Footprint>,
}

impl ManySide {
    /// Total memory of all servers.
    pub fn total_bytes(&self) -> u64 {
        self.pss_bytes + self.pool_bytes
    }
}

impl Runner<'_> {
    /// Starts `servers` of each side, requests a token from each, and reads the memory. Calls `told` before each side.
    ///
    /// # Errors
    /// Errors of a server.
    pub fn many(
        &self,
        model: &str,
        sides: [&Side; 2],
        servers: usize,
        told: impl Fn(&str),
    ) -> Result<Many, CompareError> {
        let mut measured = Vec::new();
        for side in sides {
            told(&format!("servers: {servers} of {}", side.name));
            measured.push(self.together(side, servers)?);
        }
        Ok(Many {
            model: model.to_owned(),
            servers,
            sides: measured,
        })
    }

    fn together(&self, side: &Side, servers: usize) -> Result<ManySide, CompareError> {
        let root = Root::system();
        let files = ModelFile::open(&side.model)?;
        let before = pool_bytes_taken(&root);
        let mut running = Vec::new();
        for _ in 0..servers {
            let mut server = Server::start(side, self.host())?;
            // One after the other, because the first server fills the shared image.
            server.first_token()?;
            running.push(server);
        }
        let footprints: Vec<_> = running
            .iter()
            .map(|server| Footprint::read(server.pid()))
            .collect();
        Ok(ManySide {
            name: side.name.clone(),
            command: running.first().map(Server::command).unwrap_or_default(),
            pss_bytes: footprints.iter().map(|footprint| footprint.pss).sum(),
            pool_bytes: pool_bytes_taken(&root).saturating_sub(before),
            residue_bytes: files.cached()?,
            footprints,
        })
    }
}
