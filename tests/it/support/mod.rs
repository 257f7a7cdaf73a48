//! The base of the tests: a pool of their own, servers, models, and the kernel's view of a process.
//! Lives here: setup and observation. Not here: claims.

pub mod cgroup;
pub mod cxx;
pub mod debian;
pub mod device;
pub mod file_system;
pub mod fuse;
pub mod gguf;
pub mod guardian;
pub mod http;
pub mod kernels;
pub mod load;
pub mod made;
pub mod models;
pub mod need;
pub mod network;
pub mod page_cache;
pub mod plan;
pub mod pool;
pub mod programs;
pub mod python;
pub mod relay;
pub mod seccomp;
pub mod seen;
pub mod server;
pub mod settings;
pub mod smaps;
pub mod snapshot;
pub mod store;
pub mod table;
pub mod thief;
pub mod trace;
pub mod weights;
pub mod worker;

use std::env;
use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Reports why a test does nothing, in a line that `make test` counts.
///
/// Writes to stderr itself, because the test harness hides the output of `eprintln!` if the test passes.
pub fn skip(reason: impl Display) {
    let thread = thread::current();
    let line = format!("{}: {reason}\n", thread.name().unwrap_or("test"));
    let _ = write!(io::stderr(), "skipped: {line}");
    if let Some(log) = env::var_os("LLAMA_HUGEPAGES_SKIP_LOG") {
        let file = OpenOptions::new().create(true).append(true).open(log);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Unwraps a value, or skips the test with the reason: `let pool = or_skip!(Pool::with(3));`
macro_rules! or_skip {
    ($wanted:expr) => {
        match $wanted {
            Ok(it) => it,
            Err(reason) => return $crate::support::skip(reason),
        }
    };
}
pub(crate) use or_skip;

/// Whether to run the long variants, as `make test-full` does.
pub fn full() -> bool {
    env::var_os("LLAMA_HUGEPAGES_TEST_FULL").is_some_and(|value| value == "1")
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The folder of the build, and of all files that are made for the tests.
pub fn target_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("target/tmp is in target/")
        .to_owned()
}

/// Whether a process runs. A zombie does not. Its parent, which must wait for it, may not be this process.
pub fn is_running(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// Polls until the condition holds; `false` if it does not hold within the limit.
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
