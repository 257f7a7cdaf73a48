//! The results of one run of a server.

use serde::{Deserialize, Serialize};

use super::{Footprint, Moment, Speed};

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Name of the side.
    pub side: String,
    /// Command line.
    pub command: Vec<String>,
    /// Process start to `/health` ok.
    pub seconds_to_health: f64,
    /// Process start to the first token of `/completion`.
    pub seconds_to_token: f64,
    /// CPU time of the process until then, in user mode. Source: `/proc/PID/stat`.
    pub user_seconds: f64,
    /// The same in the kernel.
    pub system_seconds: f64,
    /// Page faults without I/O. Source: `/proc/PID/stat`.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
    /// Highest observed sum of `RssAnon` and `HugetlbPages`, which the kernel cannot drop. Source: `/proc/PID/status`.
    pub peak_own_bytes: u64,
    /// Highest observed `RssFile`: the mapped model.
    pub peak_file_bytes: u64,
    /// Bytes of the model in the page cache after the first token. Source: mincore(2).
    pub residue_bytes: u64,
    /// The server's report of its load on huge pages. Source: `/props`.
    pub load: Option<Load>,
    /// Tokens a second, after the first token. `None` if not requested.
    pub speed: Option<Speed>,
    /// Memory after all requests.
    pub footprint: Footprint,
    /// Memory from the start to the first token.
    pub moments: Vec<Moment>,
}

impl Sample {
    /// CPU time in user mode and in the kernel.
    pub fn cpu_seconds(&self) -> f64 {
        self.user_seconds + self.system_seconds
    }
}

/// In the form of `/props`: microseconds of the phases are sums over the threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the names of llama_hugepages::Load, which has them documented"
)]
pub struct Load {
    pub bytes_direct: u64,
    pub bytes_cached: u64,
    pub bytes_buffered: u64,
    pub us_total: u64,
    pub us_populate: u64,
    pub us_read: u64,
    pub us_place: u64,
    pub n_threads: u32,
}

impl Load {
    /// Read speed in bytes a second.
    pub fn bytes_per_second(&self) -> f64 {
        let bytes = self.bytes_direct + self.bytes_cached + self.bytes_buffered;
        bytes as f64 * 1e6 / self.us_total.max(1) as f64
    }
}
