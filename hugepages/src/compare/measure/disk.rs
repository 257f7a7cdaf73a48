//! The read speed of the disk.

use std::path::Path;
use std::process::Command;

use serde::Serialize;
use serde_json::Value;

/// Speed of fio on a file with `O_DIRECT`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DirectRead {
    /// Bytes a second.
    pub bytes_per_second: f64,
}

impl DirectRead {
    /// Reads a whole file. `None` if fio is not installed or fails.
    ///
    /// Eight requests of 4 MiB are in flight, because more were not faster on the tested disks.
    pub fn measure(path: &Path) -> Option<Self> {
        let output = Command::new("fio")
            .args([
                "--name=read",
                "--rw=read",
                "--direct=1",
                "--readonly",
                "--ioengine=libaio",
                "--iodepth=8",
            ])
            .args(["--bs=4M", "--output-format=json", "--filename"])
            .arg(path)
            .output()
            .ok()?;
        let report: Value = serde_json::from_slice(&output.stdout).ok()?;
        let bytes_per_second = report["jobs"][0]["read"]["bw_bytes"].as_f64()?;
        (bytes_per_second > 0.0).then_some(Self { bytes_per_second })
    }
}
