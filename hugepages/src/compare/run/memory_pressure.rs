//! Tokens a second with too little memory for the page cache.
//!
//! ```text
//! limit = 2/3 of the model's mapped memory + the baseline's own memory + some memory for the kernel
//! ```
//! Each side is measured without the limit and with it, in turn, and compared with itself.

use serde::Serialize;

use super::cgroup::{Cgroup, accounts_huge_pages};
use super::server::{Host, Server};
use super::{Cache, CompareError, ModelFile, Runner, Side};
use crate::compare::measure::{Ratio, speed};

/// Bytes for the kernel: page tables, sockets, buffers.
const SLACK: u64 = 16 << 20;

/// Both sides with and without the limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pressure {
    /// Name of the model.
    pub model: String,
    /// Memory limit in bytes, including page cache.
    pub limit_bytes: u64,
    /// Bytes of the model's files in memory without a limit.
    pub mapped_bytes: u64,
    /// Version of the cgroup hierarchy: 2 or 1.
    pub cgroup_version: u8,
    /// Whether the limit counts huge pages.
    pub counts_huge_pages: bool,
    /// Both sides, the baseline first.
    pub sides: Vec<PressureSide>,
}

/// One side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PressureSide {
    /// Name in the report.
    pub name: String,
    /// Command line.
    pub command: Vec<String>,
    /// Without the limit and with it, from the same round.
    pub rounds: Vec<(Pressed, Pressed)>,
}

/// One run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pressed {
    /// Tokens a second. Source: `timings` of `/completion`.
    pub generation_per_second: f64,
    /// Process start to the first token.
    pub seconds_to_token: f64,
    /// Page faults with I/O during generation. Source: `/proc/PID/stat`.
    pub major_faults: u64,
    /// Peak of `RssFile`.
    pub peak_file_bytes: u64,
    /// Peak of `RssAnon`, which the cgroup counts; huge pages are not included.
    pub peak_anon_bytes: u64,
}

impl PressureSide {
    /// Tokens a second with the limit, divided by those without.
    pub fn ratio(&self) -> Option<Ratio> {
        let rates = self.rounds.iter();
        Ratio::of(
            rates
                .map(|(free, pressed)| (free.generation_per_second, pressed.generation_per_second)),
        )
    }

    /// Means of tokens a second without and with the limit, and of major faults with it.
    pub fn means(&self) -> (f64, f64, f64) {
        let n = self.rounds.len().max(1) as f64;
        let mean = |of: fn(&(Pressed, Pressed)) -> f64| self.rounds.iter().map(of).sum::<f64>() / n;
        (
            mean(|(free, _)| free.generation_per_second),
            mean(|(_, pressed)| pressed.generation_per_second),
            mean(|(_, pressed)| pressed.major_faults as f64),
        )
    }
}

impl Runner<'_> {
    /// Runs both sides under the same limit. Calls `told` before each run.
    ///
    /// # Errors
    /// [`CompareError::NoCgroup`] if the machine cannot limit memory, and errors of a server.
    pub fn pressure(
        &self,
        model: &str,
        sides: [&Side; 2],
        tokens: u32,
        told: impl Fn(&str),
    ) -> Result<Pressure, CompareError> {
        let files = ModelFile::open(&sides[0].model)?;
        told("pressure: without a limit, stock");
        // This is also the run that does not count.
        let (free, _) = self.pressed(sides[0], &files, None, tokens)?;
        let mapped = files.cached()?;
        let limit = mapped / 3 * 2 + free.peak_anon_bytes + SLACK;
        let version = Cgroup::with_memory(limit)?.version();
        let mut result = Pressure {
            model: model.to_owned(),
            limit_bytes: limit,
            mapped_bytes: mapped,
            cgroup_version: version,
            counts_huge_pages: version == 2 && accounts_huge_pages(),
            sides: Vec::new(),
        };
        let mut measured = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
        for round in 0..self.pairs {
            let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            for at in order {
                let (side, (rounds, command)) = (sides[at], &mut measured[at]);
                told(&format!(
                    "pressure: round {} of {}, {}",
                    round + 1,
                    self.pairs,
                    side.name
                ));
                let (free, _) = self.pressed(side, &files, None, tokens)?;
                let (pressed, line) = self.pressed(side, &files, Some(limit), tokens)?;
                rounds.push((free, pressed));
                *command = line;
            }
        }
        for (side, (rounds, command)) in sides.iter().zip(measured) {
            result.sides.push(PressureSide {
                name: side.name.clone(),
                command,
                rounds,
            });
        }
        Ok(result)
    }

    /// Drops the page cache first, because the kernel charges a page to the cgroup that reads it first.
    fn pressed(
        &self,
        side: &Side,
        files: &ModelFile,
        limit: Option<u64>,
        tokens: u32,
    ) -> Result<(Pressed, Vec<String>), CompareError> {
        files.prepare(Cache::Cold)?;
        let cgroup = limit.map(Cgroup::with_memory).transpose()?;
        let host = Host {
            cgroup: cgroup.as_ref(),
            ..self.host()
        };
        let mut server = Server::start(side, host)?;
        let (_, seconds_to_token) = server.first_token()?;
        let before = server.counts()?.major_faults;
        let generation_per_second =
            server.ask_completion(|agent, url| speed::generation(agent, url, tokens))?;
        let major_faults = server.counts()?.major_faults - before;
        let peak = server.peak();
        let pressed = Pressed {
            generation_per_second,
            seconds_to_token,
            major_faults,
            peak_file_bytes: peak.file_bytes,
            peak_anon_bytes: peak.anon_bytes,
        };
        let command = server.command();
        // The server must end before its cgroup can be removed.
        drop(server);
        Ok((pressed, command))
    }
}
