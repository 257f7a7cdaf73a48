//! Some servers on one model: what they take together.

use serde::Serialize;

use super::footprint::pool_bytes_taken;
use super::server::Server;
use super::{CompareError, Footprint, ModelFile, Runner, Side};
use crate::pool::Root;

/// The baseline and ours, as often as there are servers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Many {
    /// Which model.
    pub model: String,
    /// How many of each.
    pub servers: usize,
    /// The baseline, and what is compared with it.
    pub sides: Vec<ManySide>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ManySide {
    /// For people.
    pub name: String,
    /// What was started, so many times.
    pub command: Vec<String>,
    /// Sum of the `Pss` of all: page cache that is shared counts once. Source: `/proc/PID/smaps_rollup`.
    pub pss_bytes: u64,
    /// What the pools have less: pages that are shared count once. Source: `/sys/kernel/mm/hugepages`.
    pub pool_bytes: u64,
    /// Of the model in the page cache, mapped or not. Source: mincore(2).
    pub residue_bytes: u64,
    /// Of each.
    pub footprints: Vec<Footprint>,
}

impl ManySide {
    /// What nobody else has while they run.
    pub fn total_bytes(&self) -> u64 {
        self.pss_bytes + self.pool_bytes
    }
}

impl Runner<'_> {
    /// Starts `servers` of each side at the same time, lets each say a word, and looks. `told` is called before each.
    ///
    /// # Errors
    /// Whatever happened to a server.
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
            // One after the other: an image that is shared is made by the first.
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
