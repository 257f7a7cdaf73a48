//! The engine's own tests, which are C++ and lie in `tests/engine/`: they ask for what no server can show, such as what is
//! decided on another machine. Here they are compiled, straight with the compiler, and run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::{env, thread};

use crate::support::guardian::Guardian;
use crate::support::pool::Pool;
use crate::support::{or_skip, skip, target_dir};

/// Enough to be short of some, little enough to be had anywhere.
const PAGES: u64 = 24;

/// How the tests are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Build {
    Plain,
    /// `AddressSanitizer` and `UndefinedBehaviorSanitizer`
    Address,
    /// `ThreadSanitizer`
    Thread,
}

impl Build {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Address => &[
                "-fsanitize=address,undefined",
                "-fno-sanitize-recover=undefined",
                "-fno-omit-frame-pointer",
            ],
            Self::Thread => &["-fsanitize=thread"],
        }
    }

    fn dir(self) -> PathBuf {
        target_dir()
            .join("engine")
            .join(format!("{self:?}").to_lowercase())
    }

    /// Compiles what is there now: it takes seconds, and no test can be of yesterday.
    fn program(self) -> Result<PathBuf, String> {
        static PROGRAMS: [OnceLock<Result<PathBuf, String>>; 3] = [const { OnceLock::new() }; 3];
        PROGRAMS[self as usize]
            .get_or_init(|| {
                fs::create_dir_all(self.dir()).expect("the target folder can be written");
                if self != Self::Plain {
                    self.has_runtime()?;
                }
                Ok(self.compile())
            })
            .clone()
    }

    /// A sanitizer's library is a package of its own in some distributions.
    fn has_runtime(self) -> Result<(), String> {
        let source = self.dir().join("runtime.cpp");
        fs::write(&source, "int main() {}\n").expect("the target folder can be written");
        let program = source.with_extension("");
        let output = compiler()
            .args(self.flags())
            .arg(source)
            .arg("-o")
            .arg(&program)
            .output();
        if !output.is_ok_and(|output| output.status.success()) {
            return Err(format!("the compiler has no library for {self:?}"));
        }
        if !self.run(&program, &[]).status.success() {
            return Err(format!("programs built for {self:?} do not run here"));
        }
        Ok(())
    }

    fn compile(self) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let engine = root.join("patches/files/ggml");
        let upstream = Path::new(env!("OUT_DIR")).join("llama.cpp/ggml");
        let sources = [
            with_extension(&engine.join("src"), "cpp"),
            with_extension(&root.join("tests/engine"), "cpp"),
        ]
        .concat();
        let compile = |source: &Path| {
            let name = source.file_name().expect("it is a file");
            let object = self.dir().join(name).with_extension("o");
            let output = compiler()
                .args(["-std=c++17", "-O1", "-g", "-pthread"])
                .args(self.flags())
                .args([&engine, &upstream].map(|dir| format!("-I{}/include", dir.display())))
                .args([&engine, &upstream].map(|dir| format!("-I{}/src", dir.display())))
                .args(["-c".as_ref(), source, "-o".as_ref(), &object])
                .output();
            (source.to_owned(), object, output)
        };
        let compiled: Vec<_> = thread::scope(|scope| {
            let handles: Vec<_> = sources
                .iter()
                .map(|source| scope.spawn(move || compile(source)))
                .collect();
            let joined = handles.into_iter().map(thread::ScopedJoinHandle::join);
            joined
                .map(|result| result.expect("it only compiles"))
                .collect()
        });
        let mut objects = Vec::new();
        for (source, object, output) in compiled {
            let output = output.expect("there is a C++ compiler");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}\n{text}", source.display());
            objects.push(object);
        }
        let program = self.dir().join("test-engine");
        let output = compiler()
            .args(self.flags())
            // test-memory.cpp refuses pages in its place
            .args(["-pthread", "-Wl,--wrap=madvise"])
            .args(&objects)
            .arg("-o")
            .arg(&program)
            .output()
            .expect("there is a C++ compiler");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        program
    }

    fn run(self, program: &Path, groups: &[&str]) -> Output {
        // Files are read with O_DIRECT, for which /tmp is too often memory.
        let scratch = tempfile::tempdir_in(self.dir()).expect("the target folder can be written");
        // GCC's ThreadSanitizer before version 14 does not know all the places to which a newer kernel may move a program.
        let mut command = Command::new(if self == Self::Thread {
            "setarch"
        } else {
            "env"
        });
        if self == Self::Thread {
            command.arg("-R");
        }
        command
            .arg(program)
            .args(groups)
            .env("TEST_ENGINE_SCRATCH", scratch.path())
            .output()
            .expect("coreutils and util-linux are there")
    }

    /// Runs the tests of these groups, and counts those that cannot run here.
    fn test(self, groups: &[&str]) {
        let program = or_skip!(self.program());
        let output = self.run(&program, groups);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{self:?}: {}\n{text}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        for reason in text
            .lines()
            .filter_map(|line| line.strip_prefix("skipped "))
        {
            skip(reason);
        }
    }
}

fn compiler() -> Command {
    let given = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut words = given.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("c++"));
    command.args(words);
    command
}

fn with_extension(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("it is part of this repository");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    files
}

/// One page of 1 GiB, given back at the end. Others wait for the pool of 2 MiB pages, so nobody else takes it.
struct Large {
    _guardian: Guardian,
}

impl Large {
    fn one(_pool: &Pool) -> Result<Self, String> {
        const DIR: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB";
        let nr = format!("{DIR}/nr_hugepages");
        let read =
            |path: &str| -> Option<u64> { fs::read_to_string(path).ok()?.trim().parse().ok() };
        let before = read(&nr).ok_or("this kernel has no 1 GiB pages")?;
        let free = read(&format!("{DIR}/free_hugepages")).unwrap_or_default();
        if free > 0 {
            return Err(format!("others may use the {free} free pages of 1 GiB"));
        }
        let mut guardian = Guardian::start(
            "trap '' INT TERM HUP QUIT PIPE; read -r total file && cat > /dev/null && echo $total > $file",
            None,
        );
        guardian.tell(&format!("{before} {nr}"));
        fs::write(&nr, (before + 1).to_string())
            .map_err(|error| format!("no right to change {nr}: {error}"))?;
        if read(&nr) != Some(before + 1) {
            return Err("no gigabyte of memory is in one piece".to_owned());
        }
        Ok(Self {
            _guardian: guardian,
        })
    }
}

fn in_memory(build: Build) {
    or_skip!(build.program());
    let pool = or_skip!(Pool::with(PAGES));
    build.test(&["pool", "store"]);
    pool.assert_all_back();
}

fn in_large_memory(build: Build) {
    or_skip!(build.program());
    let pool = or_skip!(Pool::with(PAGES));
    let _large = or_skip!(Large::one(&pool));
    build.test(&["large"]);
    pool.assert_all_back();
}

/// What needs no pool.
const ANYWHERE: [&str; 5] = ["names", "machines", "ranges", "anywhere", "manifest"];

#[test]
fn the_engine_decides_as_foretold_on_made_up_machines() {
    Build::Plain.test(&ANYWHERE);
}

#[test]
fn the_engine_fills_its_pages_and_gives_all_of_them_back() {
    in_memory(Build::Plain);
}

#[test]
fn the_engine_uses_pages_of_1_gib() {
    in_large_memory(Build::Plain);
}

fn under(build: Build) {
    build.test(&ANYWHERE);
    in_memory(build);
    in_large_memory(build);
}

#[test]
#[ignore = "long: make test-full"]
fn the_engine_is_clean_under_the_address_and_undefined_behavior_sanitizers() {
    under(Build::Address);
}

#[test]
#[ignore = "long: make test-full"]
fn the_engine_is_clean_under_the_thread_sanitizer() {
    under(Build::Thread);
}
