//! The preload library and `hugepages exec`: huge pages for programs that know nothing of them, here stock llama.cpp.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::equality::answers;
use crate::support::cxx::Compiler;
use crate::support::gguf::Gguf;
use crate::support::pool::{Counts, PAGE, Pool};
use crate::support::server::{Ended, Launch, Server};
use crate::support::{full, models, need, or_skip, programs, smaps, wait_for};

/// A library that a test preloads into a program without a model.
pub fn library() -> PathBuf {
    let path = programs::preload_library();
    assert!(
        path.is_file(),
        "{} is missing: `cargo build --release --workspace` builds it",
        path.display()
    );
    path
}

/// The test models are small.
const MIN: (&str, &str) = ("HUGEPAGES_PRELOAD_MIN", "1M");

/// Stock's server under the preload library.
pub fn stock(policy: &str) -> Result<Launch, String> {
    let launch = Launch::stock()?
        .env("LD_PRELOAD", library().to_str().expect("UTF-8"))
        .env("LLAMA_ARG_HUGEPAGES", "1")
        .env("LLAMA_ARG_HUGEPAGE_POLICY", policy)
        .env(MIN.0, MIN.1)
        // The sizes of the buffers.
        .args(["--log-verbosity", "4"]);
    Ok(launch)
}

/// The sizes in the lines `NAME buffer size = N MiB` of a log, without those of the mapped file.
pub fn buffers(log: &str) -> u64 {
    let lines = log
        .lines()
        .filter(|line| line.contains("buffer size =") && !line.contains("Mapped"));
    let sizes = lines.filter_map(|line| {
        let (_, rest) = line.split_once("buffer size =")?;
        let (mib, hundredths) = rest.trim().split(' ').next()?.split_once('.')?;
        let number = |digits: &str| digits.parse::<u64>().ok();
        Some((number(mib)? * 100 + number(hundredths)?) * (1 << 20) / 100)
    });
    sizes.sum()
}

/// Bytes of the model that the CPU reads from the mapped file, and how many of them are on huge pages. `repacked`: it reads the others
/// from a buffer.
pub fn mapped(pid: u32, model: &Path, is_read: impl Fn(&str) -> bool) -> (u64, u64) {
    let vmas = smaps::read(pid);
    let file = Gguf::read(model);
    let bytes = File::open(model).expect("the model exists");
    let huge: Vec<_> = vmas
        .iter()
        .filter(|vma| vma.path.starts_with("/memfd:llama-weights"))
        .collect();
    let (mut all, mut on_huge) = (0, 0);
    for tensor in file.tensors.iter().filter(|tensor| is_read(&tensor.name)) {
        all += tensor.end - tensor.start;
        for vma in &huge {
            assert!(
                vma.is_huge() && vma.size("KernelPageSize") == PAGE,
                "{vma:?}"
            );
            let part = tensor.start.max(vma.offset)..tensor.end.min(vma.offset + vma.len());
            if part.start < part.end {
                on_huge += part.end - part.start;
                let sample = part.start..part.end.min(part.start + 4096);
                let base = vma.image_base();
                assert!(
                    smaps::same_bytes(pid, base + sample.start, &bytes, sample),
                    "`{}`",
                    tensor.name
                );
            }
        }
    }
    (all, on_huge)
}

/// Asserts that at least 97 % of what the CPU reads is on huge pages.
pub fn assert_on_huge_pages(server: &Server, model: &Path, is_mapped: impl Fn(&str) -> bool) {
    let (read, on_huge) = mapped(server.pid(), model, is_mapped);
    let buffers = buffers(&server.log());
    assert!(buffers > 0, "{}", server.log());
    let kinds = ["repacked", "other"].map(|kind| smaps::hugetlb_bytes_of(server.pid(), kind));
    let share = (on_huge + kinds.iter().sum::<u64>().min(buffers)) as f64 / (read + buffers) as f64;
    println!(
        "mapped: {on_huge} of {read} bytes; buffers of {buffers} bytes on {kinds:?}; {share:.3}"
    );
    assert!(share >= 0.97, "{share}\n{}", server.log());
}

/// Warnings and errors about memory in a log.
pub fn suspicious_lines(log: &str) -> Vec<&str> {
    let words = [
        "warning: ",
        "failed",
        "munmap",
        "madvise(",
        "mlock ",
        "hint:",
    ];
    let is_suspicious = |line: &&str| words.iter().any(|word| line.contains(word));
    log.lines().filter(is_suspicious).collect()
}

fn assert_quiet(ended: &Ended) {
    assert_eq!(suspicious_lines(&ended.log), Vec::<&str>::new());
    assert_eq!(
        ended
            .log
            .lines()
            .filter(|line| line.starts_with("hugepages-preload: "))
            .count(),
        1,
        "{}",
        ended.log
    );
}

/// Pages for a model whose file is mapped whole, and for its buffers.
pub fn pages(model: &Path) -> u64 {
    let bytes = fs::metadata(model).expect("the model exists").len();
    let buffers = need::of(&Launch::ours().model(model)).saturating_sub(bytes / PAGE);
    bytes.div_ceil(PAGE) + buffers + 32
}

#[test]
fn stock_serves_from_huge_pages_with_the_same_answers_and_returns_them() {
    let model = models::demo("100M", "Q8_0");
    let plain = or_skip!(Launch::stock()).model(&model).start();
    let expected = answers(&plain);
    drop(plain);
    let pages = pages(&model);
    let pool = or_skip!(Pool::with(pages));
    for signal in [Signal::TERM, Signal::KILL, Signal::INT] {
        let server = or_skip!(stock("require")).model(&model).start();
        assert_eq!(answers(&server), expected);
        assert_on_huge_pages(&server, &model, |_| true);
        let ended = server.stop(signal);
        assert_quiet(&ended);
        pool.assert_all_back();
    }
}

#[test]
fn a_repacked_model_of_stock_is_on_huge_pages_once() {
    let model = models::demo("100M", "Q4_K");
    let plain = or_skip!(Launch::stock()).repacked_model(&model).start();
    let expected = answers(&plain);
    drop(plain);
    let is_mapped = |name: &str| !name.contains("blk.") || name.contains("norm");
    let once = pages(&model);
    let mut pool = or_skip!(Pool::with(0));
    // With room for the file and its copy, and with room for one of them.
    for pages in [2 * once, once] {
        pool.set(pages);
        let server = or_skip!(stock("require")).repacked_model(&model).start();
        assert_eq!(answers(&server), expected);
        assert_on_huge_pages(&server, &model, is_mapped);
        let taken = pool.taken();
        assert!(taken <= once, "{taken} pages, {once} are enough");
        let ended = server.stop(Signal::TERM);
        assert_quiet(&ended);
        pool.assert_all_back();
    }
}

#[test]
fn one_page_too_few_fails_under_require_and_is_told_under_prefer() {
    let model = models::demo("20M", "Q8_0");
    let need = fs::metadata(&model)
        .expect("the model exists")
        .len()
        .div_ceil(PAGE);
    let pool = or_skip!(Pool::with(need - 1));
    let ended = or_skip!(stock("require")).model(&model).run();
    ended.assert_clean_failure();
    let line = ended.line_with("cannot map");
    assert!(
        line.contains(&format!("needs {need} huge pages of 2 MiB")),
        "{line}"
    );
    assert!(
        line.contains(&format!("only {} are usable", need - 1)),
        "{line}"
    );
    let hint = ended.line_with("hint: ");
    assert!(hint.contains("LLAMA_ARG_HUGEPAGE_POLICY=prefer"), "{hint}");
    pool.assert_all_back();

    let server = or_skip!(stock("prefer")).model(&model).start();
    assert_eq!(smaps::hugetlb_bytes(server.pid()), (need - 1) * PAGE);
    let ended = server.stop(Signal::TERM);
    let line = ended.line_with("the rest uses ordinary memory");
    assert!(
        line.contains(&format!("only {} of {need} huge pages", need - 1)),
        "{line}"
    );
    pool.assert_all_back();
}

#[test]
fn a_file_below_the_minimum_and_a_library_that_is_off_take_no_page() {
    let model = models::demo("20M", "Q8_0");
    let pool = or_skip!(Pool::with(50));
    for (name, value) in [
        (MIN.0, "64M"),
        ("LLAMA_ARG_HUGEPAGES", "0"),
        ("LLAMA_ARG_HUGEPAGE_SIZE", "3M"),
    ] {
        let server = or_skip!(stock("require"))
            .env(name, value)
            .model(&model)
            .start();
        assert_eq!(smaps::hugetlb_bytes(server.pid()), 0, "{name}={value}");
        assert_eq!(pool.taken(), 0, "{name}={value}");
        drop(server);
    }
}

#[test]
fn a_server_that_contains_the_engine_takes_its_pages_once() {
    let model = models::demo("20M", "Q8_0");
    let need = need::of(&Launch::ours().model(&model));
    let pool = or_skip!(Pool::with(2 * need + 8));
    let server = Launch::ours()
        .env("LD_PRELOAD", library().to_str().expect("UTF-8"))
        .env("LLAMA_ARG_HUGEPAGES", "1")
        .env(MIN.0, MIN.1)
        .model(&model)
        .start();
    assert_eq!(
        smaps::hugetlb_bytes(server.pid()) / PAGE,
        need,
        "{}",
        server.log()
    );
    let ended = server.stop(Signal::TERM);
    assert!(!ended.log.contains("hugepages-preload:"), "{}", ended.log);
    pool.assert_all_back();
}

/// A program of `tests/preload`.
fn program(dir: &Path, name: &str, flags: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/preload")
        .join(name)
        .with_extension("cpp");
    let program = dir.join(name);
    let mut command = Compiler::given().command();
    command
        .args(["-std=c++17", "-O1", "-g", "-pthread"])
        .arg(&source)
        .args(flags)
        .arg("-o")
        .arg(&program);
    programs::run(&mut command).unwrap_or_else(|error| panic!("{error}"));
    program
}

pub fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written")
}

pub fn preloaded(program: impl AsRef<Path>, policy: &str) -> Command {
    let mut command = Command::new(program.as_ref());
    command
        .env("LD_PRELOAD", library())
        .env("LLAMA_ARG_HUGEPAGES", "1")
        .env("LLAMA_ARG_HUGEPAGE_POLICY", policy)
        .env(MIN.0, MIN.1);
    command
}

fn stdout_of(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the program can be started");
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}\n{stderr}");
    String::from_utf8_lossy(&stdout).trim().to_owned()
}

/// Compares random calls with the same calls on a plain mapping. `make test-full` makes a million of them, with the address sanitizer in the
/// program.
#[test]
fn calls_on_a_model_have_the_results_of_a_file_mapping() {
    let dir = scratch();
    let (calls, flags): (_, &[_]) = if full() {
        (500_000, &["-fsanitize=address", "-static-libasan"])
    } else {
        (4_000, &[])
    };
    let stress = program(dir.path(), "stress", flags);
    let model = models::demo("5M", "Q8_0");
    let pages = fs::metadata(&model)
        .expect("the model exists")
        .len()
        .div_ceil(PAGE);
    // Whole, and with the tail of the file in ordinary memory.
    for (seed, pages) in [(1, pages), (2, pages - 1)] {
        let pool = or_skip!(Pool::with(pages));
        let mut command = preloaded(&stress, "prefer");
        command
            .arg(&model)
            .args([seed.to_string(), calls.to_string()])
            .env("ASAN_OPTIONS", "detect_leaks=0"); // the engine keeps what it will use again
        println!("{}", stdout_of(&mut command));
        pool.assert_all_back();
    }
}

#[test]
fn allocations_children_and_threads_of_a_program_with_a_model_work_as_before() {
    let dir = scratch();
    let calls = program(dir.path(), "calls", &[]);
    let model = models::demo("5M", "Q8_0");
    let pool = or_skip!(Pool::with(80));
    let no_model = dir.path().join("no-model");
    let file = File::create(&no_model).and_then(|file| file.set_len(8 << 20));
    file.expect("the folder has room");
    for what in [
        "heap", "fork", "raw", "handlers", "refused", "closed", "locks", "pipe", "sandbox",
        "stack", "unload",
    ] {
        let file = if what == "locks" { &no_model } else { &model };
        let said = stdout_of(preloaded(&calls, "require").arg(what).arg(file));
        assert_eq!(said, format!("{what} ok"));
        pool.assert_all_back();
    }
    println!(
        "without the library: {}",
        stdout_of(Command::new(&calls).arg("cost"))
    );
    println!(
        "with it:             {}",
        stdout_of(preloaded(&calls, "prefer").arg("cost"))
    );
    println!(
        "and with a model:    {}",
        stdout_of(preloaded(&calls, "prefer").arg("cost").arg(&model))
    );
}

/// Python maps a file with its module `mmap`, and calls the C library through `ctypes`, which finds functions with `dlsym`.
#[test]
fn python_maps_a_model_through_its_module_and_through_ctypes() {
    const SCRIPT: &str = r"
import ctypes, mmap, sys
path = sys.argv[1]
data = open(path, 'rb').read()
huge = lambda: int([l for l in open('/proc/self/status') if l.startswith('HugetlbPages')][0].split()[1])
with open(path, 'rb') as file:
    assert huge() == 0
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    assert huge() >= len(data) // 1024, huge()
    assert mapped[:] == data
    mapped.madvise(mmap.MADV_WILLNEED)
    mapped.close()
    assert huge() == 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    at = libc.mmap(None, len(data), 1, 2, file.fileno(), 0)
assert huge() >= len(data) // 1024, huge()
assert ctypes.string_at(at, len(data)) == data
assert libc.munmap(at, len(data)) == 0
assert huge() == 0
print('ok')
";
    let model = models::demo("5M", "Q8_0");
    let pool = or_skip!(Pool::with(10));
    let said = stdout_of(
        preloaded("python3", "require")
            .args(["-c", SCRIPT])
            .arg(&model),
    );
    assert_eq!(said, "ok");
    pool.assert_all_back();
}

/// Another library that stands before the C library, as jemalloc does.
#[test]
fn another_preload_library_before_or_behind_it_sees_its_own_memory() {
    const SOURCE: &str = r#"
#include <dlfcn.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
// Every allocation starts with a mark, which free checks.
static char heap[1 << 30];
static size_t used;
extern "C" void * malloc(size_t n) {
    const size_t at = __atomic_fetch_add(&used, ((n + 15) & ~15ul) + 32, __ATOMIC_RELAXED) + 16;
    if (at + n > sizeof(heap)) abort();
    memcpy(heap + at, "mark-of-", 8);
    memcpy(heap + at + 8, &n, 8);
    return heap + at + 16;
}
extern "C" void free(void * p) {
    if (p && (char *) p >= heap && (char *) p < heap + sizeof(heap)) {
        if (memcmp((char *) p - 16, "mark-of-", 8) != 0) abort();
        return;
    }
    static void (*next)(void *) = (void (*)(void *)) dlsym(RTLD_NEXT, "free");
    next(p); // aligned memory is of the next library
}
extern "C" void * calloc(size_t n, size_t s) { void * p = malloc(n*s); memset(p, 0, n*s); return p; }
extern "C" void * realloc(void * p, size_t n) {
    if (!p) return malloc(n);
    size_t old;
    memcpy(&old, (char *) p - 8, 8);
    void * q = malloc(n);
    memcpy(q, p, old < n ? old : n);
    return q;
}
"#;
    let dir = scratch();
    let source = dir.path().join("second.cpp");
    fs::write(&source, SOURCE).expect("target/ can be written");
    let second = dir.path().join("second.so");
    let mut command = Compiler::given().command();
    command
        .args(["-shared", "-fPIC", "-O1"])
        .arg(&source)
        .args(["-ldl", "-o"])
        .arg(&second);
    programs::run(&mut command).unwrap_or_else(|error| panic!("{error}"));
    let calls = program(dir.path(), "calls", &[]);
    let model = models::demo("5M", "Q8_0");
    let pool = or_skip!(Pool::with(80));
    let (ours, second) = (library(), second.display().to_string());
    for order in [
        format!("{}:{second}", ours.display()),
        format!("{second}:{}", ours.display()),
    ] {
        let said = stdout_of(
            preloaded(&calls, "require")
                .env("LD_PRELOAD", &order)
                .arg("unload")
                .arg(&model),
        );
        assert_eq!(said, "unload ok", "{order}");
        pool.assert_all_back();
    }
}

#[test]
fn only_the_interposed_functions_are_exported() {
    let output = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(library())
        .output();
    let output = or_skip!(output.map_err(|error| format!("nm cannot be run: {error}")));
    let text = String::from_utf8_lossy(&output.stdout);
    let mut names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    names.sort_unstable();
    let expected = [
        "aligned_alloc",
        "free",
        "madvise",
        "malloc_usable_size",
        "memalign",
        "mlock",
        "mlock2",
        "mmap",
        "mmap64",
        "mprotect",
        "mremap",
        "munmap",
        "posix_madvise",
        "posix_memalign",
        "realloc",
        "reallocarray",
    ];
    assert_eq!(names, expected);
}

/// `hugepages exec` with a journal of its own, because the test holds the pool.
fn exec(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(programs::hugepages());
    command
        .arg("exec")
        .args(words)
        .env("LLAMA_HUGEPAGES_STATE", dir)
        .env(MIN.0, MIN.1);
    command
}

#[test]
fn exec_lends_the_pages_reports_them_and_has_the_exit_code_of_the_program() {
    let dir = scratch();
    let model = models::demo("20M", "Q8_0");
    let need = fs::metadata(&model)
        .expect("the model exists")
        .len()
        .div_ceil(PAGE);
    let script = "import mmap, sys; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); sys.exit(7)";
    let pool = or_skip!(Pool::with(0));
    let before = pool.counts.total;
    let path = model.to_str().expect("UTF-8");
    let mut command = exec(
        dir.path(),
        &[
            "--plan-from",
            path,
            "--policy",
            "require",
            "--",
            "python3",
            "-c",
            script,
            path,
        ],
    );
    let output = command.output().expect("the tool can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    let line = said
        .lines()
        .find(|line| line.contains("weights") && line.contains("2M"));
    assert!(line.is_some(), "{said}");
    assert!(said.contains(&need.to_string()), "{need} pages\n{said}");
    let is_back = || Counts::read().total == before;
    assert!(
        wait_for(std::time::Duration::from_secs(10), is_back),
        "{}, before {before}",
        Counts::read()
    );
}

#[test]
fn exec_refuses_programs_that_ignore_the_library() {
    let dir = scratch();
    let source = dir.path().join("fixed.c");
    fs::write(&source, "int main(void) { return 0; }\n").expect("target/ can be written");
    let fixed = dir.path().join("fixed");
    let mut command = Compiler::given().command();
    command
        .args(["-x", "c++", "-static"])
        .arg(&source)
        .arg("-o")
        .arg(&fixed);
    or_skip!(programs::run(&mut command));
    let spaced = dir.path().join("a library.so");
    fs::copy(library(), &spaced).expect("target/ can be written");
    let spaced = spaced.to_str().expect("UTF-8");
    for (words, why) in [
        (
            &["--", fixed.to_str().expect("UTF-8")][..],
            "statically linked",
        ),
        (&["--", "no-such-program"], "cannot find the program"),
        (
            &["--library", spaced, "--", "true"],
            "has a space or a colon",
        ),
    ] {
        let output = exec(dir.path(), words)
            .output()
            .expect("the tool can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why), "{said}");
    }
}
