//! Finds and prints the differences between servers.

use std::collections::BTreeSet;

use super::Server;
use super::pytest::{Found, Outcome, Run};

/// A test that does not end in the same way on all servers.
#[derive(Debug, Clone)]
pub struct Difference {
    pub test: String,
    /// `None` if the server's run lacks the test.
    pub found: Vec<(Server, Option<Found>)>,
}

pub fn differences(runs: &[Run]) -> Vec<Difference> {
    let tests: BTreeSet<&String> = runs.iter().flat_map(|run| run.outcomes.keys()).collect();
    let outcome = |found: &Option<Found>| found.as_ref().map(|found| found.outcome);
    tests
        .into_iter()
        .map(|test| Difference {
            test: test.clone(),
            found: runs
                .iter()
                .map(|run| (run.server, run.outcomes.get(test).cloned()))
                .collect(),
        })
        .filter(|one| {
            one.found
                .windows(2)
                .any(|pair| outcome(&pair[0].1) != outcome(&pair[1].1))
        })
        .collect()
}

pub fn print_table(runs: &[Run]) {
    let shown: Vec<Outcome> = Outcome::ALL
        .into_iter()
        .filter(|&outcome| {
            outcome <= Outcome::Skipped || runs.iter().any(|run| run.count(outcome) > 0)
        })
        .collect();
    print!("{:<6}", "server");
    for outcome in &shown {
        print!(" {:>8}", outcome.name());
    }
    println!(" {:>8} {:>11}", "seconds", "huge pages");
    for run in runs {
        print!("{:<6}", run.server.name());
        for &outcome in &shown {
            print!(" {:>8}", run.count(outcome));
        }
        let share = run
            .huge_share()
            .map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0));
        println!(" {:>8.0} {share:>11}", run.seconds);
    }
}

pub fn print_differences(different: &[Difference]) {
    for one in different {
        println!("{}", one.test);
        for (server, found) in &one.found {
            let (outcome, said) = found.as_ref().map_or(("missing", ""), |found| {
                (found.outcome.name(), found.said.as_str())
            });
            println!(
                "{}",
                format!("  {:<5}  {outcome:<7}  {said}", server.name()).trim_end()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(server: Server, outcomes: &[(&str, Outcome)]) -> Run {
        let found = |outcome| Found {
            outcome,
            said: String::new(),
            all_mib: 4.0,
            huge_mib: 3.0,
        };
        Run {
            server,
            outcomes: outcomes
                .iter()
                .map(|&(test, outcome)| (test.to_owned(), found(outcome)))
                .collect(),
            seconds: 1.0,
        }
    }

    fn names(runs: &[Run]) -> Vec<String> {
        differences(runs).into_iter().map(|one| one.test).collect()
    }

    #[test]
    fn tests_that_fail_on_all_servers_do_not_differ() {
        let outcomes = [("a", Outcome::Passed), ("b", Outcome::Failed)];
        let runs = [Server::Stock, Server::Off, Server::On].map(|server| run(server, &outcomes));
        assert!(names(&runs).is_empty());
    }

    #[test]
    fn a_test_that_ends_otherwise_on_one_server_differs() {
        let runs = [
            run(
                Server::Stock,
                &[("a", Outcome::Passed), ("b", Outcome::Failed)],
            ),
            run(
                Server::On,
                &[("a", Outcome::Passed), ("b", Outcome::Passed)],
            ),
        ];
        assert_eq!(names(&runs), ["b"]);
    }

    #[test]
    fn a_test_that_one_server_did_not_run_differs() {
        let runs = [
            run(
                Server::Stock,
                &[("a", Outcome::Passed), ("b", Outcome::Passed)],
            ),
            run(Server::Off, &[("a", Outcome::Passed)]),
        ];
        assert_eq!(names(&runs), ["b"]);
    }

    #[test]
    fn the_share_of_huge_pages_is_over_all_loads() {
        let outcomes = [("a", Outcome::Passed), ("b", Outcome::Passed)];
        assert_eq!(run(Server::On, &outcomes).huge_share(), Some(0.75));
        assert_eq!(run(Server::On, &[]).huge_share(), None);
    }
}
