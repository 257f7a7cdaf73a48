//! Bounds for counts of memory, pages, faults and tokens. Times have no bounds.

use super::{Bound, Pool, Report};
use crate::compare::measure::{Measure, Sample};
use crate::compare::run::{Cache, CaseResult, Restart, Switch, Traffic};

const MIB: f64 = 1024.0 * 1024.0;

impl Report {
    /// Completes the report after the last case.
    pub fn finish(&mut self) {
        self.pools_after = Pool::all();
        self.bounds = of(self);
    }
}

/// All bounds of a report.
fn of(report: &Report) -> Vec<Bound> {
    let mut bounds: Vec<Bound> = Vec::new();
    for result in &report.cases {
        let size = report.model_bytes(&result.case.model) as f64 / MIB;
        if result.case.name == "off" {
            bounds.extend(without_overhead(result));
        }
        if result.case.planned_bytes > 0 && result.case.b.args.iter().any(|arg| arg == "require") {
            bounds.extend(on_pages(result, size));
        }
    }
    bounds.extend(report.restarts.iter().flat_map(after_restart));
    bounds.extend(report.switch.iter().flat_map(after_switch));
    bounds.extend(report.traffic.iter().map(in_traffic));
    bounds.extend(pages_are_back(report));
    bounds
}

/// With the option off, no count exceeds that of stock.
fn without_overhead(result: &CaseResult) -> Vec<Bound> {
    let most = |id: &str, share: f64, some: f64, why: &str| {
        let measure = Measure::named(id)?;
        let (a, b) = result.summaries(measure.of)?;
        Some(Bound {
            what: title(result, measure),
            value: b.median,
            limit: a.max * (1.0 + share) + some,
            why: format!("stock: {:.0}; {why}", a.max),
        })
    };
    [
        // The number of faults varies with the addresses of mappings.
        most("minor_faults", 0.03, 500.0, "tolerance 3 % and 500"),
        most("peak_own", 0.02, 8.0, "tolerance 2 % and 8 MiB"),
        most("residue", 0.01, 1.0, "tolerance 1 % and 1 MiB"),
        most("hugetlb", 0.0, 0.0, "the option is off"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// On huge pages, the memory matches the plan, and the page cache gets nothing of the model.
fn on_pages(result: &CaseResult, size: f64) -> Vec<Bound> {
    let planned = result.case.planned_bytes as f64 / MIB;
    let ordinary = result.case.planned_ordinary_bytes as f64 / MIB;
    let worst = |of: fn(&Sample) -> f64| {
        let values = result.pairs.iter().map(|(_, b)| of(b));
        values.fold(0.0, f64::max)
    };
    let mut bounds = Vec::new();
    let mut add = |id: &str, limit: f64, why: String| {
        bounds.extend(Measure::named(id).map(|measure| Bound {
            what: title(result, measure),
            value: worst(measure.of),
            limit,
            why,
        }));
    };
    add(
        "peak_own",
        (planned + ordinary) * 1.02 + 256.0,
        format!(
            "plan: {planned:.0} MiB of pages and {ordinary:.0} MiB of other memory; tolerance 2 % and 256 MiB"
        ),
    );
    add(
        "hugetlb",
        planned,
        format!("plan: {planned:.0} MiB of pages"),
    );
    if result.case.cache == Cache::Cold {
        add(
            "residue",
            size * 0.01 + 2.0,
            "1 % of the model and 2 MiB for its header".to_owned(),
        );
    }
    bounds
}

/// After a restart or a sleep with a kept context, the server computes only the new tokens, and they are those of a restored slot.
fn after_restart(restart: &Restart) -> [Bound; 2] {
    let runs = restart.kept().into_iter().flat_map(|side| &side.runs);
    let name = format!("{}, {}", restart.model, restart.pause.name());
    [
        only_new_tokens(
            &name,
            runs.map(|run| run.computed_tokens).max(),
            restart.new_tokens,
        ),
        no_other_tokens(
            &name,
            restart.different_tokens,
            restart.compared_tokens,
            "a restored slot",
        ),
    ]
}

/// The same after a switch, and the tokens are those of a server that was never interrupted.
fn after_switch(switch: &Switch) -> [Bound; 2] {
    [
        only_new_tokens("switch", switch.computed_tokens(), switch.new_tokens),
        no_other_tokens(
            "switch",
            switch.different_tokens,
            switch.compared_tokens,
            "a server without a switch",
        ),
    ]
}

/// The same for each of many messages.
fn in_traffic(traffic: &Traffic) -> Bound {
    only_new_tokens("traffic", traffic.computed_tokens(), traffic.new_tokens)
}

fn only_new_tokens(name: &str, computed: Option<u64>, new: u64) -> Bound {
    Bound {
        what: format!("{name}: computed tokens"),
        value: computed.unwrap_or_default() as f64,
        limit: new as f64,
        why: "the next message and the last token of the answer before it".to_owned(),
    }
}

fn no_other_tokens(name: &str, different: usize, compared: usize, reference: &str) -> Bound {
    Bound {
        what: format!("{name}: different tokens"),
        value: different as f64,
        limit: 0.0,
        why: format!("{compared} tokens and their probabilities equal those of {reference}"),
    }
}

/// The pools are the same as before.
fn pages_are_back(report: &Report) -> Vec<Bound> {
    let pairs = report.pools_before.iter().zip(&report.pools_after);
    let bound = |(before, after): (&Pool, &Pool)| Bound {
        what: format!("changed pages of {} bytes in the pool", after.page_bytes),
        value: (after.total.abs_diff(before.total) + after.free.abs_diff(before.free)) as f64,
        limit: 0.0,
        why: "the comparison returns all pages".to_owned(),
    };
    pairs.map(bound).collect()
}

fn title(result: &CaseResult, measure: &Measure) -> String {
    let case = &result.case;
    format!("{}, {}: {}", case.model, case.name, measure.title())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::measure::Footprint;
    use crate::compare::run::{Case, Pause, RestartSide, Restarted, Resume, Side};

    fn case(
        name: &str,
        cache: Cache,
        planned_bytes: u64,
        pairs: Vec<(Sample, Sample)>,
    ) -> CaseResult {
        let side = Side {
            name: "stock".into(),
            program: "server".into(),
            model: "m.gguf".into(),
            args: vec!["require".into()],
            environment: std::collections::BTreeMap::new(),
        };
        CaseResult {
            case: Case {
                name: name.into(),
                model: "m".into(),
                cache,
                a: side.clone(),
                b: side,
                direct_read: false,
                planned_bytes,
                planned_ordinary_bytes: 0,
                is_equal: true,
            },
            equal_tokens: 12,
            ratios: std::collections::BTreeMap::new(),
            pairs,
            direct_reads: Vec::new(),
        }
    }

    fn sample(minor_faults: u64, own: u64, residue_bytes: u64) -> Sample {
        Sample {
            minor_faults,
            peak_own_bytes: own << 20,
            residue_bytes: residue_bytes << 20,
            ..Sample::default()
        }
    }

    fn broken(bounds: &[Bound]) -> Vec<&str> {
        let broken = bounds.iter().filter(|bound| !bound.holds());
        broken.map(|bound| bound.what.as_str()).collect()
    }

    #[test]
    fn one_more_fault_in_ten_is_an_overhead_and_chance_is_not() {
        let of = |faults| {
            let pair = (sample(20_000, 70, 300), sample(faults, 70, 300));
            without_overhead(&case("off", Cache::Warm, 0, vec![pair.clone(), pair]))
        };
        assert_eq!(broken(&of(20_300)), Vec::<&str>::new());
        assert_eq!(broken(&of(22_000)), ["m, off: minor faults"]);
    }

    #[test]
    fn a_kept_token_that_is_computed_again_is_out_of_bounds() {
        let of = |computed_tokens, different_tokens| {
            let side = |resume, computed_tokens| RestartSide {
                name: String::new(),
                resume,
                command: Vec::new(),
                runs: vec![Restarted {
                    seconds_to_end: 0.1,
                    seconds_to_health: Some(0.1),
                    seconds_to_token: 0.2,
                    computed_tokens,
                    said: Vec::new(),
                }],
            };
            after_restart(&Restart {
                model: "m".into(),
                pause: Pause::Restart,
                conversation_tokens: 2048,
                new_tokens: 11,
                compared_tokens: 20,
                different_tokens,
                sides: vec![
                    side(Resume::Compute, 2062),
                    side(Resume::Keep, computed_tokens),
                ],
            })
        };
        assert_eq!(broken(&of(11, 0)), Vec::<&str>::new());
        assert_eq!(broken(&of(12, 0)), ["m, restart: computed tokens"]);
        assert_eq!(broken(&of(11, 1)), ["m, restart: different tokens"]);
    }

    #[test]
    fn a_page_that_is_not_planned_and_a_file_that_stays_cached_are_out_of_bounds() {
        let of = |hugetlb: u64, residue| {
            let ours = Sample {
                footprint: Footprint {
                    hugetlb: hugetlb << 20,
                    ..Footprint::default()
                },
                ..sample(2000, 430, residue)
            };
            let pairs = vec![(sample(20_000, 70, 300), ours)];
            on_pages(&case("cold", Cache::Cold, 408 << 20, pairs), 300.0)
        };
        assert_eq!(broken(&of(408, 1)), Vec::<&str>::new());
        assert_eq!(broken(&of(410, 1)), ["m, cold: HugetlbPages, MiB"]);
        assert_eq!(broken(&of(408, 9)), ["m, cold: in the page cache, MiB"]);
    }
}
