//! The engine's own C++ tests in `tests/engine/` check behaviour that no server shows, such as decisions on another machine. This module
//! compiles them with the compiler alone, and runs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::support::cxx::{self, Compiler};
use crate::support::guardian::Guardian;
use crate::support::pool::Pool;
use crate::support::{or_skip, programs, skip, target_dir};

/// Enough pages to cause a shortage, and few enough for any machine.
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

    /// Compiles on every run, which takes seconds, so that no program is stale.
    fn program(self) -> Result<PathBuf, String> {
        static PROGRAMS: [OnceLock<Result<PathBuf, String>>; 3] = [const { OnceLock::new() }; 3];
        PROGRAMS[self as usize]
            .get_or_init(|| {
                if self != Self::Plain {
                    self.has_runtime()?;
                }
                Ok(self.compile())
            })
            .clone()
    }

    fn compiler(self) -> Compiler {
        Compiler::given().with(self.flags())
    }

    /// Some distributions package a sanitizer's library separately.
    fn has_runtime(self) -> Result<(), String> {
        let program = self
            .compiler()
            .try_program("int main() {}\n", &self.dir().join("runtime"))
            .map_err(|_| format!("the compiler has no library for {self:?}"))?;
        if !self.run(&program, &[]).status.success() {
            return Err(format!("programs built for {self:?} do not run here"));
        }
        Ok(())
    }

    fn compile(self) -> PathBuf {
        let sources = [cxx::engine_sources(), cxx::test_sources("tests/engine")].concat();
        let objects = self.compiler().objects(&sources, &self.dir());
        let program = self.dir().join("test-engine");
        self.compiler()
            // test-memory.cpp replaces madvise to refuse pages
            .link(&objects, &["-Wl,--wrap=madvise"], &program)
            .unwrap_or_else(|error| panic!("{error}"));
        program
    }

    fn run(self, program: &Path, groups: &[&str]) -> Output {
        // The tests read files with O_DIRECT, but /tmp is often memory.
        let scratch = tempfile::tempdir_in(self.dir()).expect("the target folder can be written");
        // GCC's ThreadSanitizer before version 14 fails at some addresses that newer kernels choose, so `setarch -R` fixes the addresses.
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
            .expect("coreutils and util-linux are installed")
    }

    /// Runs the tests of these groups, and counts those that this machine cannot run.
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

/// A 1 GiB page, returned on drop. Other tests wait for the lock of the 2 MiB pool, so none of them takes the page.
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
            return Err("the kernel found no contiguous free gigabyte".to_owned());
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

/// Groups of tests that need no pool.
const ANYWHERE: [&str; 6] = [
    "names",
    "machines",
    "placement",
    "ranges",
    "anywhere",
    "manifest",
];

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

/// Compiles the comparison of the kernels of `repack-rows.cpp` with upstream's functions.
fn repack_kernels(compiler: Compiler, dir: &str, ggml: &[PathBuf], flags: &[&str]) -> PathBuf {
    let dir = target_dir().join("engine/repack").join(dir);
    let upstream = Path::new(env!("OUT_DIR")).join("llama.cpp/ggml/src/ggml-cpu");
    let include = format!("-I{}", upstream.display());
    let version = Path::new(env!("OUT_DIR")).join("build/ggml/src");
    let compiler = compiler
        .with(&["-O3", "-DNDEBUG", "-D_GNU_SOURCE", "-w"])
        .with(&["-ffunction-sections", "-fdata-sections", &include])
        .with(&[&format!("-I{}", version.display())])
        .with(flags);
    let ours = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = vec![
        ours.join("tests/engine/repack/test-repack-rows.cpp"),
        ours.join("patches/files/ggml/src/ggml-cpu/repack-rows.cpp"),
    ];
    let (libraries, more): (Vec<_>, Vec<_>) = ggml
        .iter()
        .cloned()
        .partition(|file| file.extension().is_some_and(|extension| extension == "a"));
    sources.extend(more);
    let mut objects = compiler.objects(&sources, &dir);
    objects.extend(libraries);
    let program = dir.join("test-repack-rows");
    // Only upstream's functions are used, and not the backend around them; with a sanitizer, all of it is linked. ggml may use OpenMP.
    let linked = compiler.link(&objects, &["-Wl,--gc-sections", "-fopenmp"], &program);
    linked.unwrap_or_else(|error| panic!("{error}"));
    program
}

fn assert_no_difference(run: &mut Command) {
    let output = run.arg("--brief").output();
    let output = output.unwrap_or_else(|error| panic!("{run:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{run:?}: {output:?}");
    assert!(text.contains(" comparisons, no difference"), "{text}");
}

/// The kernels, compiled for this CPU, for all of its kind, or in between.
fn repack_kernels_of_this_machine(dir: &str, flags: &[&str]) {
    let program = repack_kernels(Compiler::given(), dir, &libraries_of_ggml(), flags);
    assert_no_difference(&mut Command::new(program));
}

/// The libraries of this build. Each library uses the next.
fn libraries_of_ggml() -> [PathBuf; 3] {
    let built = Path::new(env!("OUT_DIR")).join("build/ggml/src");
    ["libggml-cpu.a", "libggml.a", "libggml-base.a"].map(|library| built.join(library))
}

#[test]
fn the_repack_kernels_write_the_bytes_of_upstream() {
    repack_kernels_of_this_machine("native", &["-march=native"]);
    repack_kernels_of_this_machine("baseline", &[]);
    if cfg!(target_arch = "x86_64") {
        repack_kernels_of_this_machine("sse4", &["-msse4.2"]);
    }
}

/// Without a CPU that repacks, the program compares nothing, so the number of comparisons is part of the claim on x86-64 with AVX2.
#[test]
fn experts_in_node_order_give_the_results_of_upstreams_order() {
    let dir = target_dir().join("engine/repack/nodes");
    let upstream = Path::new(env!("OUT_DIR")).join("llama.cpp/ggml/src/ggml-cpu");
    let ours = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiler = Compiler::given().with(&["-w", &format!("-I{}", upstream.display())]);
    let source = ours.join("tests/engine/repack/test-repack-nodes.cpp");
    let mut objects = compiler.objects(&[source], &dir);
    objects.extend(libraries_of_ggml());
    let program = dir.join("test-repack-nodes");
    let linked = compiler.link(&objects, &["-fopenmp"], &program);
    linked.unwrap_or_else(|error| panic!("{error}"));
    let output = Command::new(&program).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let compared = text.strip_suffix(" comparisons, no difference\n");
    let compared: u32 = compared.and_then(|n| n.parse().ok()).unwrap_or_default();
    #[cfg(target_arch = "x86_64")]
    {
        let repacks = std::arch::is_x86_feature_detected!("avx2");
        assert!(!repacks || compared >= 900, "{text}");
    }
    assert!(text.contains(" comparisons, no difference"), "{text}");
    if compared == 0 {
        skip("this CPU repacks no type");
    }
}

#[test]
#[ignore = "long: make test-full"]
fn the_repack_kernels_are_clean_under_the_address_and_undefined_behavior_sanitizers() {
    or_skip!(Build::Address.has_runtime());
    let flags = [Build::Address.flags(), &["-march=native"]].concat();
    repack_kernels_of_this_machine("address", &flags);
}

#[test]
#[ignore = "long: make test-full"]
fn the_repack_kernels_write_the_bytes_of_upstream_on_arm64() {
    let compiler = Compiler::named("aarch64-linux-gnu-g++");
    or_skip!(programs::found("aarch64-linux-gnu-g++"));
    or_skip!(programs::found("qemu-aarch64-static"));
    let upstream = Path::new(env!("OUT_DIR")).join("llama.cpp/ggml/src");
    let ggml = [
        "ggml.c",
        "ggml-quants.c",
        "ggml-alloc.c",
        "ggml-threading.cpp",
        "ggml-backend.cpp",
    ];
    let ggml = ggml.map(|name| upstream.join(name));
    for (dir, cpu) in [
        ("arm64", "armv8-a"),
        ("arm64-dotprod", "armv8.2-a+dotprod+i8mm"),
    ] {
        let program = repack_kernels(
            compiler.clone(),
            dir,
            &ggml,
            &["-static", &format!("-march={cpu}")],
        );
        assert_no_difference(Command::new("qemu-aarch64-static").arg(program));
    }
}

/// A program that takes the address of every function of the header, so that the linker misses none.
fn program_with_every_function() -> String {
    let header = fs::read_to_string(cxx::header()).expect("the file is part of this repository");
    let names: Vec<&str> = header
        .lines()
        .filter_map(|line| {
            let (before, _) = line.strip_prefix("GGML_API ")?.split_once('(')?;
            let name = before.trim_end().rsplit([' ', '*']).next()?;
            name.starts_with("ggml_hugepages_").then_some(name)
        })
        .collect();
    assert!(names.len() > 30, "{names:?}");
    let addresses: Vec<String> = names
        .iter()
        .map(|name| format!("    (function) {name},\n"))
        .collect();
    format!(
        "#include \"ggml-hugepages.h\"\n\
         using function = void (*)();\n\
         static const volatile function functions[] = {{\n{}}};\n\
         int main() {{ return functions[0] == nullptr; }}\n",
        addresses.concat()
    )
}

/// Asserts that the engine links with a program that uses all of its functions.
fn assert_links(compiler: &Compiler, dir: &str) -> PathBuf {
    let dir = target_dir().join("engine").join(dir);
    fs::create_dir_all(&dir).expect("the target folder can be written");
    let main = dir.join("every-function.cpp");
    fs::write(&main, program_with_every_function()).expect("the target folder can be written");
    let ggml = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/fuzz/ggml.cpp");
    let sources = [cxx::engine_sources(), vec![main, ggml]].concat();
    let objects = compiler.objects(&sources, &dir);
    let program = dir.join("every-function");
    let linked = compiler.link(&objects, &[], &program);
    linked.unwrap_or_else(|error| panic!("{error}"));
    program
}

#[test]
fn the_engine_links_on_linux_and_outside() {
    let here = assert_links(&Compiler::given(), "here");
    assert!(Command::new(here).status().is_ok_and(|s| s.success()));

    let elsewhere = ["-U__linux__", "-U__linux", "-Ulinux", "-U__gnu_linux__"];
    let elsewhere = assert_links(&Compiler::given().with(&elsewhere), "elsewhere");
    assert!(Command::new(elsewhere).status().is_ok_and(|s| s.success()));
}

/// Windows headers declare nothing of Linux, so the compiler finds an unguarded call.
#[test]
fn the_engine_links_for_windows() {
    // Some distributions give the compiler with C++ threads another name.
    let names = ["x86_64-w64-mingw32-g++-posix", "x86_64-w64-mingw32-g++"];
    let text = "#include <mutex>\nstd::mutex m;\nint main() { m.lock(); }\n";
    let trial = target_dir().join("engine/windows");
    let mut compilers = names
        .map(|name| Compiler::named(name).with(&["-static"]))
        .into_iter();
    let compiler = compilers.find(|compiler| compiler.try_program(text, &trial).is_ok());
    let compiler = or_skip!(compiler.ok_or("no C++ compiler for Windows is installed"));
    assert_links(&compiler, "windows");
}
