//! A server's report of its load.
//! Lives here: the numbers, and the check that log and `/props` agree. Not here: the check that they are true.

use super::http;
use super::server::Server;

const MIB: u64 = 1 << 20;

/// Bytes of a load, by source.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub direct: u64,
    pub cached: u64,
    pub buffered: u64,
    pub attached: u64,
}

impl Load {
    pub fn of(server: &Server) -> Self {
        let load = &http::get_json(&server.url("/props"))["hugepages"]["load"];
        let bytes = |name: &str| {
            load[name]
                .as_u64()
                .unwrap_or_else(|| panic!("no {name} in {load}"))
        };
        let load = Self {
            direct: bytes("bytes_direct"),
            cached: bytes("bytes_cached"),
            buffered: bytes("bytes_buffered"),
            attached: bytes("bytes_attached"),
        };
        if load.read() > 0 {
            load.assert_is_in(&server.log());
        }
        load
    }

    pub fn read(&self) -> u64 {
        self.direct + self.cached + self.buffered
    }

    fn assert_is_in(&self, log: &str) {
        let line = log
            .lines()
            .find(|line| line.contains("hugepages: read "))
            .unwrap_or_else(|| panic!("the log has no line about the load\n{log}"));
        for (bytes, what) in [
            (self.direct, "MiB direct"),
            (self.cached, "MiB from the page cache"),
            (self.buffered, "MiB buffered"),
        ] {
            let (before, _) = line
                .split_once(what)
                .unwrap_or_else(|| panic!("no `{what}` in: {line}"));
            let number = before.split_whitespace().next_back().expect("a number");
            let number: f64 = number
                .parse()
                .unwrap_or_else(|error| panic!("{error}: {line}"));
            let expected = bytes as f64 / MIB as f64;
            assert!(
                (number - expected).abs() < 1.0,
                "/props has {expected} {what}, the log: {line}"
            );
        }
    }
}
