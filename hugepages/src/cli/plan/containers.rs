//! The limits of containers, as values of a chart and as variables of a compose file.

use std::fmt::Write;

use hugepages::kernel::HugePageSize;
use hugepages::plan::{Containers, Limits};

use crate::cli::output::printable;

const MIB: u64 = 1 << 20;

fn named(limits: &Containers) -> [(&'static str, &Limits); 3] {
    [
        ("loader", &limits.loader),
        ("server", &limits.server),
        ("alone", &limits.alone),
    ]
}

/// A comment with the command that prints the limits.
fn comment(command: &str) -> String {
    format!("# {}\n", printable(command).replace('\n', " "))
}

/// Number and unit of a page size in Kubernetes: 2 and `Mi`.
fn quantity(size: HugePageSize) -> (u64, String) {
    let name = size.short_name();
    let digits = name.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = format!("{}i", &name[digits.len()..]);
    (digits.parse().unwrap_or_default(), unit)
}

/// A values file for deploy/chart.
pub fn helm(command: &str, limits: &Containers) -> String {
    let mut text = comment(command) + "plan:\n";
    for (name, limits) in named(limits) {
        let _ = writeln!(text, "  {name}:");
        add_helm(&mut text, limits);
    }
    if let Some(worker) = &limits.worker {
        text += "rpc:\n  limits:\n";
        add_helm(&mut text, worker);
    }
    text
}

fn add_helm(text: &mut String, limits: &Limits) {
    for (size, pages) in &limits.pages {
        let (number, unit) = quantity(*size);
        let _ = writeln!(
            text,
            "    hugepages-{number}{unit}: {}{unit}",
            pages * number
        );
    }
    let _ = writeln!(text, "    memory: {}Mi", limits.memory / MIB);
}

/// Lines for deploy/compose/.env, in bytes.
pub fn env(command: &str, limits: &Containers) -> String {
    let mut text = comment(command);
    let worker = limits.worker.iter().map(|worker| ("worker", worker));
    for (name, limits) in named(limits).into_iter().chain(worker) {
        let name = name.to_ascii_uppercase();
        for (size, pages) in &limits.pages {
            let bytes = size.bytes() * pages;
            let _ = writeln!(text, "{name}_HUGEPAGES_{}={bytes}", size.short_name());
        }
        let _ = writeln!(text, "{name}_MEMORY={}", limits.memory);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use hugepages::plan::Plan;

    use super::*;

    fn limits(page: u64) -> Containers {
        let plan = serde_json::json!({
            "model": "m.gguf", "size": "2M", "fits": true, "message": "", "hint": "",
            "memory": { "process": 30 * MIB, "buffers": 0, "prompt_cache": 0, "available": 0 },
            "needs": [
                { "kind": "weights", "file": 0, "page_size": page, "pages": 51, "bytes": 50 * page + 1 },
                { "kind": "kv", "file": null, "page_size": page, "pages": 3, "bytes": 3 * page },
            ],
        });
        let plan: Plan = serde_json::from_value(plan).unwrap();
        let arguments = ["--cache-ram", "0"].map(OsString::from);
        Containers::of(&plan, &arguments, |_| Ok(50 * page + 1)).unwrap()
    }

    #[test]
    fn values_are_in_the_spelling_of_kubernetes() {
        assert_eq!(
            helm("hugepages plan\nx", &limits(2 * MIB)),
            "# hugepages plan x\nplan:\n  loader:\n    hugepages-2Mi: 102Mi\n    memory: 62Mi\n  server:\n    hugepages-2Mi: 6Mi\n    \
             memory: 62Mi\n  alone:\n    hugepages-2Mi: 108Mi\n    memory: 62Mi\n"
        );
        assert!(helm("", &limits(1 << 30)).contains("    hugepages-1Gi: 51Gi\n"));
        assert!(helm("", &limits(64 << 10)).contains("    hugepages-64Ki: 3328Ki\n"));
    }

    #[test]
    fn workers_are_in_the_values_of_the_chart_and_in_the_variables() {
        let mut limits = limits(2 * MIB);
        limits.worker = Some(limits.server.clone());
        let text = helm("hugepages plan", &limits);
        assert!(
            text.ends_with("rpc:\n  limits:\n    hugepages-2Mi: 6Mi\n    memory: 62Mi\n"),
            "{text}"
        );
        let text = env("hugepages plan", &limits);
        assert!(
            text.ends_with("WORKER_HUGEPAGES_2M=6291456\nWORKER_MEMORY=65011712\n"),
            "{text}"
        );
    }

    #[test]
    fn variables_are_bytes() {
        let text = env("hugepages plan", &limits(2 * MIB));
        assert_eq!(text.lines().count(), 7, "{text}");
        assert!(text.contains("\nLOADER_HUGEPAGES_2M=106954752\nLOADER_MEMORY=65011712\n"));
        assert!(text.contains("\nSERVER_HUGEPAGES_2M=6291456\n"));
    }
}
