//! The verdict: expected effects, from the findings.

use serde::Serialize;

use super::host::Host;
use super::{Finding, Severity};
use crate::kernel::HvoState;
use crate::size::ByteSize;

/// One line of the verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Expectation {
    /// Subject.
    pub of: &'static str,
    /// Expectation.
    pub expect: String,
}

pub fn verdict(host: &Host, findings: &[Finding]) -> Vec<Expectation> {
    let problems: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Problem)
        .map(|finding| finding.id)
        .collect();
    let line = |of, expect: String| Expectation { of, expect };
    let mut lines = vec![line(
        "huge pages",
        if problems.is_empty() {
            "can be used".to_owned()
        } else {
            format!("cannot be used, because of: {}", problems.join(", "))
        },
    )];
    let has = |id: &str| {
        findings
            .iter()
            .any(|it| it.id == id && it.severity >= Severity::Warning)
    };
    if host.status.pools.is_empty() {
        lines.push(line(
            "everything else",
            "no effect: this kernel has no huge pages".to_owned(),
        ));
        return lines;
    }
    lines.push(line(
        "load time",
        if has("model-direct-io") {
            "about the same as stock, because the file system refuses O_DIRECT".to_owned()
        } else {
            "a cold load runs at the speed of the disk; a warm load copies from the page cache, in about the time of stock's start without warm-up".to_owned()
        },
    ));
    lines.push(line(
        "restart",
        "with `--hugepage-store` the server attaches to the weights in memory and reads nothing; without it the server loads them again".to_owned(),
    ));
    lines.push(line(
        "pinning",
        "the kernel never evicts or swaps the weights".to_owned(),
    ));
    lines.push(line(
        "saved memory",
        match host.status.hvo.state {
            HvoState::On => "page tables, and about 1.4 % of added pages (HVO)".to_owned(),
            HvoState::Off => "page tables; HVO would save about 1.4 % of the pool too".to_owned(),
            HvoState::Unsupported => "page tables only, because this kernel has no HVO".to_owned(),
        },
    ));
    let guest = findings
        .iter()
        .any(|finding| finding.id == "virtual-machine");
    lines.push(line(
        "tokens/s",
        match host.mapped {
            Some(mapped) if mapped.whole * 2 >= mapped.bytes => {
                format!(
                    "no change: stock already maps {} of {} in large pieces",
                    ByteSize::new(mapped.whole),
                    ByteSize::new(mapped.bytes)
                )
            }
            _ if guest => {
                "unknown until measured; in a virtual machine the host decides".to_owned()
            }
            _ => "unknown until measured on this machine with this model".to_owned(),
        },
    ));
    lines
}
