//! The mistakes of the preload library of earlier guides: each test shows that the old way fails, and that ours works.
//! `docs/migrating.md` lists them.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::equality::answers;
use crate::preload::{assert_on_huge_pages, buffers, library, scratch, stock, suspicious_lines};
use crate::support::cxx::Compiler;
use crate::support::pool::{PAGE, Pool};
use crate::support::server::Launch;
use crate::support::store::Store;
use crate::support::{models, or_skip, page_cache, programs, smaps, wait_for};

/// The old library, which ignores smaller files.
struct OldWrapper {
    dir: TempDir,
}

impl OldWrapper {
    fn for_files_of(least: &str) -> Self {
        let dir = scratch();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/preload/old_wrapper.cpp");
        let mut command = Compiler::given().command();
        command
            .args(["-shared", "-fPIC", "-O2", &format!("-DLEAST={least}")])
            .arg(source)
            .arg("-o")
            .arg(dir.path().join("old.so"));
        programs::run(&mut command).unwrap_or_else(|error| panic!("{error}"));
        Self { dir }
    }

    /// The old library with the demo models, which are smaller than its users' models.
    fn for_small_files() -> Self {
        Self::for_files_of("1048576ul")
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("old.so")
    }

    fn stock(&self) -> Result<Launch, String> {
        let library = self.library();
        Ok(Launch::stock()?
            .env("LD_PRELOAD", library.to_str().expect("UTF-8"))
            .args(["--log-verbosity", "4"]))
    }
}

/// Pages for the whole file, for its buffers, and for copies of its weights.
fn pages(model: &Path) -> u64 {
    2 * crate::preload::pages(model)
}

#[test]
fn the_old_way_fails_to_unmap_at_every_exit() {
    let model = models::demo("20M", "Q8_0");
    let old = OldWrapper::for_small_files();
    let pool = or_skip!(Pool::with(pages(&model)));
    for signal in [Signal::TERM, Signal::INT] {
        let server = or_skip!(old.stock()).model(&model).start();
        let ended = server.stop(signal);
        let warning = "munmap failed: Invalid argument";
        assert!(ended.log.contains(warning), "{}", ended.log);
        pool.assert_all_back();

        let server = or_skip!(stock("require")).model(&model).start();
        let ended = server.stop(signal);
        assert_eq!(suspicious_lines(&ended.log), Vec::<&str>::new());
        pool.assert_all_back();
    }
}

#[test]
fn the_old_way_leaves_repacked_weights_cache_and_buffers_on_small_pages() {
    let model = models::demo("100M", "Q4_K");
    let old = OldWrapper::for_small_files();
    let pool = or_skip!(Pool::with(pages(&model)));
    let of_file = fs::metadata(&model).expect("made").len().div_ceil(PAGE);

    let server = or_skip!(old.stock()).repacked_model(&model).start();
    let expected = answers(&server);
    // The buffers hold more than half of the model's size, and no huge page. The pages hold weights that nothing reads any more.
    assert!(
        buffers(&server.log()) > of_file * PAGE / 2,
        "{}",
        server.log()
    );
    assert_eq!(smaps::hugetlb_bytes(server.pid()), of_file * PAGE);
    assert!(smaps::status_bytes(server.pid(), "RssAnon") > of_file * PAGE / 2);
    drop(server);
    pool.assert_all_back();

    let server = or_skip!(stock("require")).repacked_model(&model).start();
    assert_eq!(answers(&server), expected);
    let is_mapped = |name: &str| !name.contains("blk.") || name.contains("norm");
    assert_on_huge_pages(&server, &model, is_mapped);
    drop(server);
    pool.assert_all_back();
}

#[test]
fn the_old_way_uses_no_page_and_prints_nothing_if_one_page_is_missing() {
    let model = models::demo("20M", "Q8_0");
    let old = OldWrapper::for_small_files();
    let need = fs::metadata(&model).expect("made").len().div_ceil(PAGE);
    let pool = or_skip!(Pool::with(need - 1));

    let server = or_skip!(old.stock()).model(&model).start();
    assert_eq!(smaps::hugetlb_bytes(server.pid()), 0);
    let ended = server.stop(Signal::TERM);
    let of_huge: Vec<_> = ended
        .log
        .lines()
        .filter(|line| line.to_lowercase().contains("huge"))
        .collect();
    assert!(of_huge.is_empty(), "{of_huge:?}");

    let server = or_skip!(stock("prefer")).model(&model).start();
    assert_eq!(smaps::hugetlb_bytes(server.pid()), (need - 1) * PAGE);
    let ended = server.stop(Signal::TERM);
    ended.line_with("the rest uses ordinary memory");
    pool.assert_all_back();

    let ended = or_skip!(stock("require")).model(&model).run();
    ended.assert_clean_failure();
    ended.line_with("cannot map");
    pool.assert_all_back();
}

/// strace may write its last lines after the server's end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Threads that read the model, in a trace of `strace -f -y`.
fn readers(trace: &Path, model: &Path) -> usize {
    // One small read of the header is no load.
    const LEAST: u64 = 1 << 16;
    let model = fs::canonicalize(model).expect("made");
    let name = format!("<{}>", model.display());
    let trace = fs::read_to_string(trace).expect("strace has written it");
    let of_line = |line: &str| {
        let (thread, _) = line.split_once(' ')?;
        let got: u64 = line.rsplit_once(" = ")?.1.trim().parse().ok()?;
        (line.contains(&name) && got >= LEAST).then(|| thread.to_owned())
    };
    trace
        .lines()
        .filter_map(of_line)
        .collect::<HashSet<_>>()
        .len()
}

fn cached(model: &Path) -> u64 {
    page_cache::cached_bytes(model).expect("fincore counts")
}

#[test]
fn the_old_way_reads_with_one_thread_and_fills_the_page_cache() {
    or_skip!(programs::found("strace"));
    let model = models::demo("100M", "Q8_0");
    let old = OldWrapper::for_small_files();
    let pool = or_skip!(Pool::with(pages(&model)));
    let dir = scratch();
    let calls = "read,pread64,readv,preadv,preadv2";
    let size = fs::metadata(&model).expect("made").len();

    let trace = dir.path().join("old");
    page_cache::drop_file(&model);
    let server = or_skip!(old.stock())
        .model(&model)
        .traced(calls, &trace)
        .start();
    assert!(cached(&model) > size * 9 / 10);
    drop(server);
    assert!(wait_for(PATIENCE, || readers(&trace, &model) == 1));
    pool.assert_all_back();

    page_cache::drop_file(&model);
    let server = or_skip!(stock("require")).model(&model).start();
    assert!(cached(&model) < size / 10);
    drop(server);
    pool.assert_all_back();
}

#[test]
fn the_old_way_ignores_a_model_of_less_than_1_gb() {
    let model = models::demo("100M", "Q8_0");
    let old = OldWrapper::for_files_of("1073741824ul");
    let pool = or_skip!(Pool::with(pages(&model)));
    let server = or_skip!(old.stock()).model(&model).start();
    assert_eq!(smaps::hugetlb_bytes(server.pid()), 0);
    drop(server);

    // Without HUGEPAGES_PRELOAD_MIN.
    let server = or_skip!(Launch::stock())
        .env("LD_PRELOAD", library().to_str().expect("UTF-8"))
        .env("LLAMA_ARG_HUGEPAGES", "1")
        .model(&model)
        .start();
    let size = fs::metadata(&model).expect("made").len();
    assert!(smaps::hugetlb_bytes(server.pid()) >= size);
    drop(server);
    pool.assert_all_back();
}

/// Guides copy the model to a hugetlbfs, for a program that knows nothing of huge pages.
#[test]
fn a_copy_on_a_hugetlbfs_ends_with_a_warning_that_ours_prevents() {
    let model = models::demo("20M", "Q8_0");
    let store = or_skip!(Store::with(pages(&model)));
    let output = Command::new(programs::hugepages())
        .args(["store", "load", "--as-file", "--store", store.arg()])
        .arg(&model)
        .output()
        .expect("the tool can be started");
    assert!(output.status.success(), "{output:?}");
    let copy = store.path().join("demo.gguf");
    let of_copy = store.pages() * PAGE;

    let server = or_skip!(Launch::stock()).model(&copy).start();
    let expected = answers(&server);
    let ended = server.stop(Signal::TERM);
    let warning = "munmap failed: Invalid argument";
    assert!(ended.log.contains(warning), "{}", ended.log);

    let server = or_skip!(stock("require")).model(&copy).start();
    assert_eq!(answers(&server), expected);
    // The copy, and huge pages for the buffers.
    assert!(smaps::hugetlb_bytes(server.pid()) >= of_copy);
    assert_eq!(smaps::hugetlb_bytes_of(server.pid(), "weights"), 0);
    let ended = server.stop(Signal::TERM);
    assert_eq!(suspicious_lines(&ended.log), Vec::<&str>::new());
    ended.line_with("is a file on a hugetlbfs");
    store.assert_only_files_hold_pages();
}
