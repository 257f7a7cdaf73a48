//! What the findings come to.

use super::{Expectation, Finding, Host, Severity};
use crate::size::ByteSize;
use crate::status::HvoState;

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
            "can be used as things are".to_owned()
        } else {
            format!("cannot be used as things are: {}", problems.join(", "))
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
            "nothing: this kernel has no huge pages".to_owned(),
        ));
        return lines;
    }
    lines.push(line(
        "load time",
        if has("model-direct-io") {
            "about that of stock: the file system refuses O_DIRECT".to_owned()
        } else {
            "cold loads at the speed of the disk; warm ones are copied, in about the time of stock's mapping and warm-up".to_owned()
        },
    ));
    lines.push(line(
        "restart",
        "with `--hugepage-store` weights stay and processes share them: nothing is read; without it they are loaded again".to_owned(),
    ));
    lines.push(line(
        "pinning",
        "weights are never evicted or swapped, whatever else the machine does".to_owned(),
    ));
    lines.push(line(
        "memory given back",
        match host.status.hvo.state {
            HvoState::On => "about 1.4 % of the pages that are added (HVO)".to_owned(),
            HvoState::Off => "page tables only; HVO would add about 1.4 % of the pool".to_owned(),
            HvoState::Unsupported => "page tables only; this kernel has no HVO".to_owned(),
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
                    "no change: {} of {} are mapped in large pieces already",
                    ByteSize::new(mapped.whole),
                    ByteSize::new(mapped.bytes)
                )
            }
            _ if guest => {
                "unknown until measured; in a virtual machine it is up to the host".to_owned()
            }
            _ => "unknown until measured, on this machine and with this model".to_owned(),
        },
    ));
    lines
}
