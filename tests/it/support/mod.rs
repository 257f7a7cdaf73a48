//! What the tests stand on: a pool of their own, servers, models, and the kernel's view of a process.
//! Lives here: how to get and to look. Not here: what is claimed.

pub mod cgroup;
pub mod cxx;
pub mod device;
pub mod file_system;
pub mod gguf;
pub mod guardian;
pub mod http;
pub mod kernels;
pub mod load;
pub mod made;
pub mod models;
pub mod need;
pub mod page_cache;
pub mod plan;
pub mod pool;
pub mod programs;
pub mod python;
pub mod seccomp;
pub mod seen;
pub mod server;
pub mod settings;
pub mod smaps;
pub mod snapshot;
pub mod store;
pub mod table;
pub mod thief;
pub mod weights;

use std::env;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// Says why a test does nothing, and adds a line to what `make test` counts.
///
/// Written to stderr itself: what `eprintln!` says in a test that passes is never seen.
pub fn skip(reason: impl Display) {
    let thread = thread::current();
    let line = format!("{}: {reason}\n", thread.name().unwrap_or("test"));
    let _ = write!(io::stderr(), "skipped: {line}");
    if let Some(log) = env::var_os("LLAMA_HUGEPAGES_SKIP_LOG") {
        let file = OpenOptions::new().create(true).append(true).open(log);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Takes what is there, or ends the test that cannot do without it: `let pool = or_skip!(Pool::with(3));`
macro_rules! or_skip {
    ($wanted:expr) => {
        match $wanted {
            Ok(it) => it,
            Err(reason) => return $crate::support::skip(reason),
        }
    };
}
pub(crate) use or_skip;

/// The long variants, which `make test-full` asks for.
pub fn full() -> bool {
    env::var_os("LLAMA_HUGEPAGES_TEST_FULL").is_some_and(|value| value == "1")
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where the build and everything that is made for the tests lies.
pub fn target_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("target/tmp lies in target/")
        .to_owned()
}

/// Asks until it is so; `false` when the time is over.
pub fn wait_for(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
}
