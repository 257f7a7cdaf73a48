//! Fuzzes the engine's parsers with libFuzzer. The targets are C++ files in `tests/engine/fuzz/`.
//!
//! Each target runs for a minute, or for `LLAMA_HUGEPAGES_FUZZ_SECONDS`. Its corpus stays in `target/engine/fuzz/`, so the next run
//! continues with it. An input that breaks a target stays there too; the failure names it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::{env, fs};

use crate::support::cxx::{self, Compiler};
use crate::support::guardian::Guardian;
use crate::support::{or_skip, target_dir};

const FLAGS: &[&str] = &[
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
];

const TRIAL: &str = r#"
#include <cstddef>
#include <cstdint>
extern "C" int LLVMFuzzerTestOneInput(const uint8_t *, size_t) { return 0; }
"#;

fn dir() -> PathBuf {
    target_dir().join("engine/fuzz")
}

/// The objects that all targets share, compiled once. An error is the reason to skip the test.
fn shared_objects() -> Result<&'static [PathBuf], String> {
    static OBJECTS: OnceLock<Result<Vec<PathBuf>, String>> = OnceLock::new();
    let objects = OBJECTS.get_or_init(|| {
        let fuzzer = compiler("-fsanitize=fuzzer");
        fuzzer
            .try_program(TRIAL, &dir().join("trial"))
            .map_err(|error| format!("clang++ with libFuzzer is not installed: {error}"))?;
        let is_shared = |source: &PathBuf| {
            let name = source.file_stem().expect("the source is a file");
            !name.to_string_lossy().starts_with("fuzz-")
        };
        let mut sources = cxx::engine_sources();
        let others = cxx::test_sources("tests/engine/fuzz").into_iter();
        sources.extend(others.filter(is_shared));
        Ok(compiler("-fsanitize=fuzzer-no-link").objects(&sources, &dir().join("objects")))
    });
    objects.as_deref().map_err(Clone::clone)
}

fn compiler(flag: &str) -> Compiler {
    Compiler::named("clang++").with(FLAGS).with(&[flag])
}

/// Removes the files of a killed target.
const REMOVE: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    read -r dir || exit 0
    while read -r _; do :; done
    rm -rf "$dir"
"#;

/// Runs a target until its time is over or an input breaks it.
fn fuzz(name: &str, link_flags: &[&str]) {
    let shared = or_skip!(shared_objects());
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/engine/fuzz")
        .join(format!("fuzz-{name}.cpp"));
    let own = compiler("-fsanitize=fuzzer-no-link").objects(&[source], &dir().join("objects"));
    let program = dir().join(format!("fuzz-{name}"));
    compiler("-fsanitize=fuzzer")
        .link(&[shared, &own].concat(), link_flags, &program)
        .unwrap_or_else(|error| panic!("{error}"));

    let [corpus, seeds, findings] =
        ["corpus", "seeds", "findings"].map(|kind| dir().join(kind).join(name));
    for folder in [&corpus, &seeds, &findings] {
        fs::create_dir_all(folder).expect("the target folder can be written");
    }
    let scratch = tempfile::tempdir_in("/dev/shm")
        .expect("/dev/shm can be written")
        .keep();
    let mut guardian = Guardian::start(REMOVE, None);
    guardian.tell(scratch.to_str().expect("the folder has a plain name"));
    let run = |args: &[String]| {
        let output = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&program)
            .args(args)
            .env("FUZZ_DIR", &scratch)
            .stdin(Stdio::null())
            .output()
            .expect("setpriv is installed");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // The last lines show the cause and the name of the input.
        let lines: Vec<&str> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n");
        assert!(
            output.status.success(),
            "{name}: {}\n{tail}\ninputs that break it stay in {}",
            output.status,
            findings.display()
        );
        said
    };
    let path = |path: &Path| path.display().to_string();
    run(&["seeds".to_owned(), path(&seeds)]);
    let seconds = env::var("LLAMA_HUGEPAGES_FUZZ_SECONDS").unwrap_or_else(|_| "60".to_owned());
    let said = run(&[
        format!("-max_total_time={seconds}"),
        format!("-artifact_prefix={}/", path(&findings)),
        // A header of 4 KiB, a name, and checksums.
        "-max_len=12000".to_owned(),
        // A target must not allocate a size only because an input claims it.
        "-malloc_limit_mb=512".to_owned(),
        "-timeout=60".to_owned(),
        path(&corpus),
        path(&seeds),
        // Inputs that broke the target before run again.
        path(&findings),
    ]);
    let done = said.lines().find(|line| line.starts_with("Done "));
    println!("{name}: {}", done.expect("libFuzzer counts its runs"));
}

#[test]
#[ignore = "long: make test-full"]
fn no_manifest_and_no_name_breaks_its_parser() {
    fuzz("manifest", &[]);
}

#[test]
#[ignore = "long: make test-full"]
fn no_file_in_a_store_breaks_a_program_that_looks_after_it() {
    // The files are in memory, and the wrapped fstatfs reports hugetlbfs.
    fuzz("image", &["-Wl,--wrap=fstatfs"]);
}

#[test]
#[ignore = "long: make test-full"]
fn no_mount_table_and_no_cgroup_breaks_its_parser() {
    fuzz("mounts", &[]);
}
