//! How many huge pages a program says it needs.
//! Lives here: the question. Not here: whether the answer is right, which tests check with what the kernel counts.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::pool::Pool;
use super::server::Launch;

/// Answers, by what was asked.
static TOLD: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

/// Pages of 2 MiB that a server needs under `require`.
///
/// It is asked with an empty pool, which this takes for the moment: ask before the test takes its own. 0 where there is
/// no right to the pool, which `Pool::with` then gives as the reason to skip the test.
pub fn of(launch: &Launch) -> u64 {
    let launch = launch.clone().hugepages("require");
    of_program(&format!("{launch:?}"), || {
        let ended = launch.run();
        ended.assert_clean_failure();
        ended.log
    })
}

/// The same of any program: `run` starts it under `require` and returns what it prints, `name` is what its need depends on.
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
        .unwrap_or_else(|| panic!("the need is not told\n{log}"))
        .1;
    let (pages, rest) = rest.split_once(' ').expect("a number and a text");
    assert!(rest.starts_with("huge pages of 2 MiB "), "{rest}");
    pages.parse().expect("a number of pages")
}
