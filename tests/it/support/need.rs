//! The number of huge pages that a program reports as its need.
//! Lives here: asking the program. Not here: checking the answer, for which tests use the kernel's counts.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::pool::Pool;
use super::server::Launch;

/// The needs, by program and arguments.
static TOLD: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

/// Pages of 2 MiB that a server needs under `require`.
///
/// Holds an empty pool while it asks, so call this before the test takes its own. Returns 0 without rights to the pool; `Pool::with` then
/// returns the reason to skip the test.
pub fn of(launch: &Launch) -> u64 {
    let launch = launch.clone().hugepages("require");
    of_program(&format!("{launch:?}"), || {
        let ended = launch.run();
        ended.assert_clean_failure();
        ended.log
    })
}

/// The need of any program. `run` starts it under `require` and returns its output. `name` identifies everything that the need depends on.
pub fn of_program(name: &str, run: impl FnOnce() -> String) -> u64 {
    let told = || TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pages) = told().get(name) {
        return *pages;
    }
    let Ok(pool) = Pool::with(0) else {
        return 0;
    };
    let pages = told_in(&run());
    drop(pool);
    told().insert(name.to_owned(), pages);
    pages
}

/// The number in `the model needs N huge pages of 2 MiB`.
pub fn told_in(log: &str) -> u64 {
    let rest = log
        .split_once("the model needs ")
        .unwrap_or_else(|| panic!("no line names the need\n{log}"))
        .1;
    let (pages, rest) = rest.split_once(' ').expect("a number and a text");
    assert!(rest.starts_with("huge pages of 2 MiB "), "{rest}");
    pages.parse().expect("a number of pages")
}
