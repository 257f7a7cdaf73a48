//! The plan of `hugepages plan` for a server.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use super::server::Launch;
use super::{pool, programs};

/// The command that plans a server.
pub fn command(launch: &Launch) -> Command {
    let mut command = Command::new(programs::hugepages());
    command
        .args(["plan", "--format", "json", "--server"])
        .arg(launch.program())
        .arg("--")
        .args(launch.arguments());
    command
}

/// The plan of a server, whether the need fits the pool or not.
pub fn of(launch: &Launch) -> Value {
    let output = pool::alone(|| command(launch).output());
    let output = output.expect("the tool can be started");
    assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Pages of all sizes, by kind of memory.
pub fn pages_by_kind(plan: &Value) -> BTreeMap<String, u64> {
    let mut pages = BTreeMap::new();
    for need in plan["needs"].as_array().expect("a list") {
        let kind = need["kind"].as_str().expect("a name").to_owned();
        *pages.entry(kind).or_default() += need["pages"].as_u64().expect("a number");
    }
    pages
}
