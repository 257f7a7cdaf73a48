//! Compares the data of the guest with the expectations.

use std::collections::BTreeMap;

use super::cases::{Case, Expect, LARGE_KB, MODEL, PAGES_PER_NODE, SMALL_KB};
use super::placement::{OURS, WEIGHTS, elsewhere, pages, summary, table};
use super::report::{self, Pool, Seen};

/// Remembers the answers of the plain cases.
#[derive(Debug)]
pub struct Judge {
    model_bytes: u64,
    /// Answers by number of threads.
    answers: BTreeMap<usize, String>,
}

impl Judge {
    pub fn new(model_bytes: u64) -> Self {
        Self {
            model_bytes,
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
        if let Expect::RefusedFor(node) = case.expect {
            let count = format!("node {node} free {0} of {0}", case.pages);
            if !seen.log.contains(&count) {
                wrong.push(format!("the log lacks `{count}`"));
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
            self.answers.insert(case.threads(), tokens.clone());
            return None;
        }
        let plain = self.answers.get(&case.threads())?;
        (plain != tokens).then(|| format!("tokens {tokens}, but {plain} without huge pages"))
    }

    fn placement(&self, case: &Case, seen: &Seen) -> Vec<String> {
        let (ours, weights) = (pages(seen, OURS), pages(seen, WEIGHTS));
        let on_pages: u64 = weights
            .iter()
            .map(|((kb, _), pages)| (kb << 10) * pages)
            .sum();
        let mut wrong = Vec::new();
        let mut all_of_them = || {
            // Header and vocabulary are no weights, and together smaller than a page.
            if on_pages + (SMALL_KB << 10) <= self.model_bytes {
                wrong.push(format!(
                    "only {on_pages} of the model's {} bytes are on huge pages",
                    self.model_bytes
                ));
            }
        };
        match case.expect {
            Expect::Plain | Expect::RefusedFor(_) => {
                let pages = pages(seen, "");
                if !pages.is_empty() {
                    wrong.push(format!("unexpected huge pages: {}", summary(seen)));
                }
            }
            Expect::Anywhere => all_of_them(),
            Expect::Spread => {
                all_of_them();
                for mapping in seen.mappings.iter().filter(|one| one.file == WEIGHTS) {
                    let [here, there] = [0, 1].map(|node| mapping.pages.get(&node).unwrap_or(&0));
                    if here.abs_diff(*there) > 1 {
                        wrong.push(format!(
                            "a mapping has {here} pages on node 0 and {there} on node 1"
                        ));
                    }
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
                let on_file = seen.areas.iter().filter(|area| area.file == MODEL);
                let on_file: u64 = on_file.map(|area| area.bytes).sum();
                if ours.values().sum::<u64>() != case.pages {
                    wrong.push(format!("not all of the {} pages are used", case.pages));
                }
                if on_pages + on_file < self.model_bytes {
                    wrong.push(format!(
                        "{on_pages} bytes on huge pages and {on_file} bytes in the file mapping do not cover the model's {} bytes",
                        self.model_bytes
                    ));
                }
            }
        }
        wrong
    }
}

/// All pages are free at the start, and again at the end.
fn pools(case: &Case, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    for (node, page_kb) in [(0, SMALL_KB), (0, LARGE_KB), (1, SMALL_KB), (1, LARGE_KB)] {
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
    use crate::qemu::cases::CASES;
    use crate::qemu::report::{Area, Mapping, Pools};

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
        Seen {
            before: pools.clone(),
            after: pools,
            mappings: vec![Mapping {
                file: WEIGHTS.to_owned(),
                page_kb: SMALL_KB,
                pages: (0..).zip(pages).filter(|(_, pages)| *pages > 0).collect(),
            }],
            areas: vec![
                area(WEIGHTS, SMALL_KB, huge),
                area(MODEL, 4, MODEL_BYTES.saturating_sub(huge)),
            ],
            tokens: Some("1,2".to_owned()),
            exit: Some(0),
            log: format!(
                "0.1 I hugepages: weights    2M   40.20   21 {:14}.00 {:14}.00\n",
                2 * pages[0],
                2 * pages[1]
            ),
        }
    }

    fn findings(case: &str, seen: &Seen) -> Vec<String> {
        Judge::new(MODEL_BYTES).findings(find(case), seen)
    }

    #[test]
    fn weights_are_spread_when_the_nodes_differ_by_one_page() {
        let check = |pages| findings("distribute", &seen(find("distribute"), pages));
        assert_eq!(check([11, 10]), Vec::<String>::new());
        assert_eq!(
            check([12, 9]),
            ["a mapping has 12 pages on node 0 and 9 on node 1"]
        );
        assert_eq!(
            check([5, 5]),
            ["only 20971520 of the model's 42161504 bytes are on huge pages"]
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
        assert_eq!(
            check("size-1g", [0, 21]),
            ["not all weights are on pages of 1048576 kB"]
        );
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
    fn other_tokens_than_without_huge_pages_are_found() {
        let mut judge = Judge::new(MODEL_BYTES);
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
