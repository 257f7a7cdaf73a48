//! Compares the data of the guest with the expectations.

use std::collections::BTreeMap;

use super::cases::{Case, Expect, LARGE_KB, Machine, Model, PAGES_PER_NODE, SMALL_KB};
use super::placement::{
    BUFFERS, OURS, Pages, REPACKED, WEIGHTS, count, elsewhere, pages, summary, table,
};
use super::report::{self, Memory, Pool, Seen};

/// Remembers the answers of the plain cases.
#[derive(Debug)]
pub struct Judge {
    /// Bytes of each model's file.
    sizes: BTreeMap<&'static Model, u64>,
    /// Answers by model and number of threads.
    answers: BTreeMap<(&'static Model, usize), String>,
}

impl Judge {
    pub fn new(sizes: BTreeMap<&'static Model, u64>) -> Self {
        Self {
            sizes,
            answers: BTreeMap::new(),
        }
    }

    /// Findings, one line each.
    pub fn findings(&mut self, case: &Case, seen: &Seen) -> Vec<String> {
        let mut wrong = pools(case, seen);
        if seen.exit != Some(case.exit_code()) {
            let exit = seen.exit.map_or("none".to_owned(), |code| code.to_string());
            wrong.push(format!("exit code {exit}, expected {}", case.exit_code()));
        }
        wrong.extend(memory(case, seen));
        let reason = match case.expect {
            Expect::RefusedFor(node) => Some(format!("node {node} free {0} of {0}", case.pages)),
            Expect::RefusedByLimit => Some("memory.max of cgroup /limited".to_owned()),
            _ => None,
        };
        if let Some(reason) = reason {
            if !seen.log.contains(&reason) {
                wrong.push(format!("the log lacks `{reason}`"));
            }
            return wrong;
        }
        wrong.extend(self.answer(case, seen));
        // Upstream sets MADV_RANDOM for the whole file. On huge pages it would only slow down the reads.
        let is_random = |flags: &[String]| flags.iter().any(|flag| flag == "rr");
        for area in &seen.areas {
            if area.page_kb >= SMALL_KB && is_random(&area.flags) {
                wrong.push(format!("MADV_RANDOM on huge pages of `{}`", area.file));
            }
        }
        wrong.extend(self.placement(case, seen));
        let (told, found) = (report::table(&seen.log), table(seen));
        if told != found {
            wrong.push(format!(
                "the table in the log shows {told:?}, but the kernel's files show {found:?}"
            ));
        }
        wrong
    }

    fn answer(&mut self, case: &Case, seen: &Seen) -> Option<String> {
        let Some(tokens) = &seen.tokens else {
            return Some("no answer".to_owned());
        };
        if case.expect == Expect::Plain {
            let key = (case.model, case.threads());
            self.answers.insert(key, tokens.clone());
            return None;
        }
        let plain = self.answers.get(&(case.model, case.threads()))?;
        (plain != tokens).then(|| format!("tokens {tokens}, but {plain} without huge pages"))
    }

    fn placement(&self, case: &Case, seen: &Seen) -> Vec<String> {
        let (ours, weights) = (pages(seen, OURS), pages(seen, WEIGHTS));
        let model_bytes = self.sizes.get(case.model).copied().unwrap_or_default();
        let on_pages = bytes(&weights) + bytes(&pages(seen, REPACKED));
        let mut wrong = Vec::new();
        let mut all_of_them = || {
            // Header and vocabulary are no weights, and together smaller than a page.
            if on_pages + (SMALL_KB << 10) <= model_bytes {
                wrong.push(format!(
                    "only {on_pages} of the model's {model_bytes} bytes are on huge pages"
                ));
            }
        };
        match case.expect {
            Expect::Plain | Expect::Off | Expect::RefusedFor(_) | Expect::RefusedByLimit => {
                let pages = pages(seen, "");
                if !pages.is_empty() {
                    wrong.push(format!("unexpected huge pages: {}", summary(seen)));
                }
                if case.expect == Expect::Off {
                    wrong.extend(threads(case, seen, |thread, nodes| thread % nodes));
                }
            }
            Expect::Anywhere => all_of_them(),
            Expect::ByRows(percent) => {
                all_of_them();
                let count = case.threads() as u32;
                wrong.extend(threads(case, seen, |thread, nodes| thread * nodes / count));
                wrong.extend(moved(seen));
                wrong.extend(buffers(case, seen));
                wrong.extend(foretold(seen));
                wrong.extend(recorded(case, seen, percent));
                let (local, all) = report::locality(&seen.log);
                if all <= 0.0 {
                    wrong.push("the log lacks the local bytes".to_owned());
                } else if local * 100.0 < all * f64::from(percent) {
                    wrong.push(format!(
                        "only {local:.2} of {all:.2} MiB are local, expected {percent} %"
                    ));
                }
            }
            Expect::On(node, page_kb) => {
                all_of_them();
                wrong.extend(elsewhere(&ours, node));
                if weights.keys().any(|(other, _)| *other != page_kb) {
                    wrong.push(format!("not all weights are on pages of {page_kb} kB"));
                }
            }
            Expect::PartlyOn(node) => {
                wrong.extend(elsewhere(&ours, node));
                let on_file = seen
                    .areas
                    .iter()
                    .filter(|area| area.file == case.model.path());
                let on_file: u64 = on_file.map(|area| area.bytes).sum();
                if ours.values().sum::<u64>() != case.pages {
                    wrong.push(format!("not all of the {} pages are used", case.pages));
                }
                if on_pages + on_file < model_bytes {
                    wrong.push(format!(
                        "{on_pages} bytes on huge pages and {on_file} bytes in the file mapping do not cover the model's {model_bytes} bytes"
                    ));
                }
            }
        }
        wrong
    }
}

/// Threads that compute: the first one is also the program's main thread and not pinned after the answer, the others keep their node's
/// CPUs. The number of a thread grows with its index. map: the node of a thread, from its index and the number of nodes
fn threads(case: &Case, seen: &Seen, map: impl Fn(u32, u32) -> u32) -> Option<String> {
    let Machine {
        nodes,
        cpus_per_node,
        ..
    } = case.machine;
    let node_of = |cpus: &String| {
        let cpus_of = |node| {
            format!(
                "{}-{}",
                node * cpus_per_node,
                (node + 1) * cpus_per_node - 1
            )
        };
        (0..nodes).find(|node| *cpus == cpus_of(*node))
    };
    let found: Vec<_> = seen.threads.values().filter_map(node_of).collect();
    let expected: Vec<_> = (1..case.threads() as u32)
        .map(|thread| map(thread, nodes))
        .collect();
    (found != expected)
        .then(|| format!("the threads run on nodes {found:?}, expected {expected:?}"))
}

/// Weights whose pages moved during the answer, although NUMA balancing is on.
fn moved(seen: &Seen) -> Vec<String> {
    let differs =
        |file: &&'static str| count(&seen.mappings, file) != count(&seen.mappings_after, file);
    [WEIGHTS, REPACKED]
        .into_iter()
        .filter(differs)
        .map(|file| format!("pages of `{file}` moved during the answer"))
        .collect()
}

/// The size of pages, by their size in KiB and node.
fn bytes(pages: &Pages) -> u64 {
    pages
        .iter()
        .map(|((kb, _), pages)| (kb << 10) * pages)
        .sum()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A plan that differs from the pages and the report of the server.
fn foretold(seen: &Seen) -> Vec<String> {
    let Some(plan) = &seen.plan else {
        return vec!["no plan".to_owned()];
    };
    let mut found = BTreeMap::new();
    for ((page_kb, node), pages) in pages(seen, WEIGHTS)
        .into_iter()
        .chain(pages(seen, REPACKED))
    {
        if page_kb == SMALL_KB {
            *found.entry(node).or_default() += pages;
        }
    }
    let mut wrong = Vec::new();
    let has = |(node, pages): (&u32, &u64)| found.get(node).is_some_and(|there| there >= pages);
    let planned = plan.pages.values().sum::<u64>() + plan.pages_anywhere;
    if !plan.pages.iter().all(has) || found.values().sum::<u64>() != planned {
        wrong.push(format!(
            "pages of weights by node: {found:?}, but {:?} in the plan",
            plan.pages
        ));
    }
    let (local, all) = report::locality(&seen.log);
    let planned = (
        mib(plan.local_bytes),
        mib(plan.local_bytes + plan.remote_bytes),
    );
    // The log has two decimals for each kind of weights.
    if (planned.0 - local).abs() > 0.03 || (planned.1 - all).abs() > 0.03 {
        wrong.push(format!(
            "{local:.2} of {all:.2} MiB are local, but {:.2} of {:.2} in the plan",
            planned.0, planned.1
        ));
    }
    wrong
}

/// Reads of the threads that differ from the report.
fn recorded(case: &Case, seen: &Seen, percent: u32) -> Vec<String> {
    let Some(reads) = seen.reads.filter(|reads| reads.all() > 0) else {
        return vec!["no thread recorded a read of weights".to_owned()];
    };
    let mut wrong = Vec::new();
    if case.reads_as_planned() && reads.local * 100 < reads.all() * u64::from(percent) {
        wrong.push(format!(
            "only {:.2} of {:.2} MiB of the recorded reads are local, expected {percent} %",
            mib(reads.local),
            mib(reads.all())
        ));
    }
    // A token reads all matrices of a dense model.
    let (local, all) = report::locality(&seen.log);
    let differs = |read: u64, told: f64| (mib(read) - told).abs() > all / 1000.0;
    if case.model.is_dense() && (differs(reads.local, local) || differs(reads.all(), all)) {
        wrong.push(format!(
            "the threads recorded {:.2} local of {:.2} MiB, but the report has {local:.2} of {all:.2}",
            mib(reads.local),
            mib(reads.all())
        ));
    }
    wrong
}

/// A limit of memory that the kernel or the plan did not apply to huge pages.
fn memory(case: &Case, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    let Memory {
        limit,
        used,
        killed,
    } = seen.memory;
    if killed > 0 {
        wrong.push(format!(
            "{killed} processes had too little memory and were killed"
        ));
    }
    if limit.is_some() != case.room.is_some() {
        wrong.push(format!("limit of memory: {limit:?}"));
    }
    if case.room.is_none() {
        return wrong;
    }
    let huge = bytes(&pages(seen, OURS));
    if used < huge {
        wrong.push(format!(
            "the cgroup uses {used} bytes, but huge pages alone {huge}: this kernel does not count them"
        ));
    }
    if seen.plan.as_ref().map(|plan| plan.fits) != Some(case.exit_code() == 0) {
        wrong.push("the plan and the load differ".to_owned());
    }
    if seen
        .plan_of_a_page_less
        .as_ref()
        .is_none_or(|plan| plan.fits)
    {
        wrong.push("the plan fits, although the limit lacks a page".to_owned());
    }
    wrong
}

/// KV cache and compute buffers whose pages are not spread over all nodes. A buffer may take pages of a freed one, so that its pages are
/// not adjacent.
fn buffers(case: &Case, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    for mapping in seen
        .mappings
        .iter()
        .filter(|one| BUFFERS.contains(&&*one.file))
    {
        let on = |node| mapping.pages.get(&node).copied().unwrap_or_default();
        let most = (0..case.machine.nodes).map(on).max().unwrap_or_default();
        let least = (0..case.machine.nodes).map(on).min().unwrap_or_default();
        if most > least + 2 {
            wrong.push(format!(
                "`{}` has {most} pages on one node and {least} on another",
                mapping.file
            ));
        }
    }
    wrong
}

/// All pages are free at the start, and again at the end.
fn pools(case: &Case, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    let sizes: &[u64] = if case.machine.has_large {
        &[SMALL_KB, LARGE_KB]
    } else {
        &[SMALL_KB]
    };
    let pools = (0..case.machine.nodes).flat_map(|node| sizes.iter().map(move |kb| (node, *kb)));
    for (node, page_kb) in pools {
        let total = match (node, page_kb) {
            (_, LARGE_KB) => 1,
            (1, _) => case.pages,
            _ => PAGES_PER_NODE,
        };
        let wanted = Some(Pool { total, free: total });
        for (when, pools) in [("before", &seen.before), ("after", &seen.after)] {
            let found = pools.get(&(node, page_kb)).copied();
            if found != wanted {
                let found = found.map_or("none".to_owned(), |pool| {
                    format!("{} of {}", pool.free, pool.total)
                });
                wrong.push(format!(
                    "{when} the case, free pages of {page_kb} kB on node {node}: {found}, expected {total}"
                ));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::cases::{CASES, EXPERTS};
    use crate::qemu::report::{Area, Mapping, Plan, Pools, Reads};

    /// A little more than 20 pages.
    const MODEL_BYTES: u64 = 42_161_504;

    fn find(name: &str) -> &'static Case {
        CASES.iter().find(|case| case.name == name).unwrap()
    }

    /// The data of a correct run: weights in one mapping, with these pages of 2 MiB on the two nodes.
    fn seen(case: &Case, pages: [u64; 2]) -> Seen {
        let pool = |free| Pool { total: free, free };
        let pools = Pools::from([
            ((0, SMALL_KB), pool(PAGES_PER_NODE)),
            ((0, LARGE_KB), pool(1)),
            ((1, SMALL_KB), pool(case.pages)),
            ((1, LARGE_KB), pool(1)),
        ]);
        let area = |file: &str, page_kb, bytes| Area {
            file: file.to_owned(),
            bytes,
            page_kb,
            flags: vec!["rd".to_owned()],
        };
        let huge = (pages[0] + pages[1]) * (SMALL_KB << 10);
        let mappings = vec![Mapping {
            file: WEIGHTS.to_owned(),
            page_kb: SMALL_KB,
            pages: (0..).zip(pages).filter(|(_, pages)| *pages > 0).collect(),
        }];
        Seen {
            before: pools.clone(),
            after: pools,
            mappings: mappings.clone(),
            mappings_after: mappings,
            areas: vec![
                area(WEIGHTS, SMALL_KB, huge),
                area(&case.model.path(), 4, MODEL_BYTES.saturating_sub(huge)),
            ],
            tokens: Some("1,2".to_owned()),
            reads: None,
            threads: BTreeMap::new(),
            plan: None,
            plan_of_a_page_less: None,
            memory: Memory::default(),
            exit: Some(0),
            log: format!(
                "0.1 I hugepages: weights    2M   40.20   21 {:14}.00 {:14}.00\n",
                2 * pages[0],
                2 * pages[1]
            ),
        }
    }

    fn judge() -> Judge {
        Judge::new([(EXPERTS, MODEL_BYTES)].into())
    }

    fn findings(case: &str, seen: &Seen) -> Vec<String> {
        judge().findings(find(case), seen)
    }

    #[test]
    fn threads_of_a_dense_model_read_what_the_report_says() {
        let case = find("dense-distribute");
        let mut seen = seen(case, [11, 10]);
        assert_eq!(
            recorded(case, &seen, 97),
            ["no thread recorded a read of weights"]
        );
        seen.log += "0.1 I hugepages: weights on 2M: 39.00 of 40.00 MiB of matrices are on the node that reads them (97.5 %)\n";
        let reads = |local: u64, remote: u64| {
            Some(Reads {
                local: local << 20,
                remote: remote << 20,
            })
        };
        seen.reads = reads(39, 1);
        assert_eq!(recorded(case, &seen, 97), Vec::<String>::new());
        for (local, remote) in [(40, 0), (39, 0), (39, 2)] {
            seen.reads = reads(local, remote);
            let wrong = recorded(case, &seen, 90);
            assert_eq!(wrong.len(), 1, "{local} {remote}: {wrong:?}");
        }
    }

    #[test]
    fn rows_are_local_and_adjacent_threads_are_on_one_node() {
        let mut case = *find("distribute");
        case.expect = Expect::ByRows(97);
        let mut good = seen(&case, [11, 10]);
        good.log += "0.1 I hugepages: weights on 2M: 39.00 of 40.00 MiB of matrices are on the node that reads them (97.5 %)\n";
        good.plan = Some(Plan {
            pages: [(0, 11), (1, 10)].into(),
            pages_anywhere: 0,
            local_bytes: 39 << 20,
            remote_bytes: 1 << 20,
            fits: true,
        });
        let cpus = |list: [&str; 5]| (7..).zip(list.map(str::to_owned)).collect();
        good.threads = cpus(["0-3", "0-3", "0-1", "2-3", "2-3"]);
        good.reads = Some(Reads {
            local: 39 << 20,
            remote: 1 << 20,
        });
        assert_eq!(judge().findings(&case, &good), Vec::<String>::new());
        case.expect = Expect::ByRows(98);
        assert_eq!(
            judge().findings(&case, &good),
            [
                "only 39.00 of 40.00 MiB of the recorded reads are local, expected 98 %",
                "only 39.00 of 40.00 MiB are local, expected 98 %"
            ]
        );
        case.expect = Expect::ByRows(97);
        good.threads = cpus(["0-3", "0-3", "2-3", "0-1", "2-3"]);
        assert_eq!(
            judge().findings(&case, &good),
            ["the threads run on nodes [1, 0, 1], expected [0, 1, 1]"]
        );
        good.threads = cpus(["0-3", "0-3", "0-1", "2-3", "2-3"]);
        let mut moved = good.clone();
        moved.mappings_after[0].pages = [(0, 10), (1, 11)].into();
        assert_eq!(
            judge().findings(&case, &moved),
            ["pages of `/memfd:llama-weights` moved during the answer"]
        );
        let mut planned = good.clone();
        planned.plan = Some(Plan {
            pages: [(0, 10), (1, 11)].into(),
            pages_anywhere: 0,
            local_bytes: 38 << 20,
            remote_bytes: 2 << 20,
            fits: true,
        });
        assert_eq!(
            judge().findings(&case, &planned),
            [
                "pages of weights by node: {0: 11, 1: 10}, but {0: 10, 1: 11} in the plan",
                "39.00 of 40.00 MiB are local, but 38.00 of 40.00 in the plan"
            ]
        );
        planned.plan = None;
        assert_eq!(judge().findings(&case, &planned), ["no plan"]);
        let mut piled = good.clone();
        piled.mappings.push(Mapping {
            file: BUFFERS[0].to_owned(),
            page_kb: SMALL_KB,
            pages: [(0, 5), (1, 2)].into(),
        });
        piled.log += "0.1 I hugepages: kv    2M   14.00   7   10.00   4.00\n";
        assert_eq!(
            judge().findings(&case, &piled),
            ["`/memfd:llama-kv` has 5 pages on one node and 2 on another"]
        );
        good.log = good.log.replace(" of matrices", "");
        assert_eq!(
            judge().findings(&case, &good),
            [
                "0.00 of 0.00 MiB are local, but 39.00 of 40.00 in the plan",
                "the log lacks the local bytes"
            ]
        );
        assert_eq!(
            judge().findings(&case, &seen(&case, [5, 5]))[0],
            "only 20971520 of the model's 42161504 bytes are on huge pages"
        );
    }

    #[test]
    fn without_huge_pages_the_threads_alternate_as_upstreams_do() {
        let case = find("distribute-off");
        let mut off = seen(case, [0, 0]);
        off.mappings.clear();
        let cpus = |list: [&str; 4]| (7..).zip(list.map(str::to_owned)).collect();
        off.threads = cpus(["0-3", "2-3", "0-1", "2-3"]);
        assert_eq!(findings(case.name, &off), Vec::<String>::new());
        off.threads = cpus(["0-3", "0-1", "2-3", "2-3"]);
        assert_eq!(
            findings(case.name, &off),
            ["the threads run on nodes [0, 1, 1], expected [1, 0, 1]"]
        );
    }

    #[test]
    fn a_bound_server_has_nothing_on_the_other_node() {
        let check = |case, pages| findings(case, &seen(find(case), pages));
        assert_eq!(check("numactl", [0, 21]), Vec::<String>::new());
        assert_eq!(
            check("numactl", [1, 20]),
            ["1 pages of 2048 kB are on node 0, not on node 1"]
        );
        assert_eq!(
            check("isolate", [20, 1]),
            ["1 pages of 2048 kB are on node 1, not on node 0"]
        );
        assert_eq!(check("size-auto", [0, 21]), Vec::<String>::new());
    }

    #[test]
    fn a_short_node_is_used_up_and_the_file_has_the_rest() {
        let case = find("short-prefer");
        assert_eq!(
            findings(case.name, &seen(case, [0, 4])),
            Vec::<String>::new()
        );
        assert_eq!(
            findings(case.name, &seen(case, [0, 3])),
            ["not all of the 4 pages are used"]
        );
        let mut lost = seen(case, [0, 4]);
        lost.areas.pop();
        assert_eq!(
            findings(case.name, &lost),
            [
                "8388608 bytes on huge pages and 0 bytes in the file mapping do not cover the model's 42161504 bytes"
            ]
        );
    }

    #[test]
    fn a_refusal_names_the_count_of_the_node_and_is_no_signal() {
        let case = find("short-require");
        let mut refused = seen(case, [0, 0]);
        refused.exit = Some(3);
        refused.log = "21 huge pages are needed, node 1 free 4 of 4".to_owned();
        assert_eq!(findings(case.name, &refused), Vec::<String>::new());
        refused.exit = Some(135);
        refused.log.clear();
        assert_eq!(
            findings(case.name, &refused),
            [
                "exit code 135, expected 3",
                "the log lacks `node 1 free 4 of 4`"
            ]
        );
    }

    #[test]
    fn a_limit_counts_huge_pages_and_kills_nothing() {
        let case = find("limit");
        let mut good = seen(case, [0, 21]);
        good.plan = Some(Plan {
            fits: true,
            ..Plan::default()
        });
        good.plan_of_a_page_less = Some(Plan::default());
        good.memory = Memory {
            limit: Some(80 << 20),
            used: 60 << 20,
            killed: 0,
        };
        assert_eq!(findings(case.name, &good), Vec::<String>::new());
        let mut bad = good.clone();
        bad.memory = Memory {
            limit: None,
            used: 41 << 20,
            killed: 1,
        };
        bad.plan = None;
        bad.plan_of_a_page_less = None;
        assert_eq!(
            findings(case.name, &bad),
            [
                "1 processes had too little memory and were killed",
                "limit of memory: None",
                "the cgroup uses 42991616 bytes, but huge pages alone 44040192: this kernel does not count them",
                "the plan and the load differ",
                "the plan fits, although the limit lacks a page"
            ]
        );

        let case = find("limit-short");
        let mut refused = seen(case, [0, 0]);
        refused.exit = Some(3);
        refused.plan = Some(Plan::default());
        refused.plan_of_a_page_less = Some(Plan::default());
        refused.memory.limit = Some(60 << 20);
        assert_eq!(
            findings(case.name, &refused),
            ["the log lacks `memory.max of cgroup /limited`"]
        );
        refused.log = "only 20 are usable: memory.max of cgroup /limited 62914560".to_owned();
        assert_eq!(findings(case.name, &refused), Vec::<String>::new());
    }

    #[test]
    fn other_tokens_than_without_huge_pages_are_found() {
        let mut judge = judge();
        let mut plain = seen(find("plain-1"), [0, 0]);
        plain.mappings.clear();
        assert_eq!(
            judge.findings(find("plain-1"), &plain),
            Vec::<String>::new()
        );
        let mut other = seen(find("numactl"), [0, 21]);
        assert_eq!(
            judge.findings(find("numactl"), &other),
            Vec::<String>::new()
        );
        other.tokens = Some("1,3".to_owned());
        assert_eq!(
            judge.findings(find("numactl"), &other),
            ["tokens 1,3, but 1,2 without huge pages"]
        );
        other.tokens = None;
        assert_eq!(judge.findings(find("numactl"), &other), ["no answer"]);
    }

    #[test]
    fn a_page_that_does_not_come_back_is_found() {
        let case = find("numactl");
        let mut kept = seen(case, [0, 21]);
        kept.after.insert(
            (1, SMALL_KB),
            Pool {
                total: 256,
                free: 255,
            },
        );
        assert_eq!(
            findings(case.name, &kept),
            ["after the case, free pages of 2048 kB on node 1: 255 of 256, expected 256"]
        );
    }

    #[test]
    fn random_reading_on_huge_pages_is_found_and_on_the_file_it_is_upstreams() {
        let case = find("short-prefer");
        let mut random = seen(case, [0, 4]);
        random.areas[1].flags.push("rr".to_owned());
        assert_eq!(findings(case.name, &random), Vec::<String>::new());
        random.areas[0].flags.push("rr".to_owned());
        assert_eq!(
            findings(case.name, &random),
            ["MADV_RANDOM on huge pages of `/memfd:llama-weights`"]
        );
    }

    #[test]
    fn a_table_that_tells_something_else_than_the_kernel_is_found() {
        let case = find("numactl");
        let mut told = seen(case, [0, 21]);
        told.log = told.log.replace("42.00", "40.00");
        assert_eq!(
            findings(case.name, &told),
            [
                "the table in the log shows {(\"weights\", 1): 40}, but the kernel's files show {(\"weights\", 1): 42}"
            ]
        );
    }
}
