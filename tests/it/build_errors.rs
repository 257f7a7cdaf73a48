//! `cargo build` reports a missing or wrong dependency before the long compile: in one line, with a hint, and without leaving anything that
//! a later build would trust.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::support::{or_skip, skip};

/// A copy of this package, without the cache and the output of the real build.
struct Package {
    dir: PathBuf,
    _one_at_a_time: MutexGuard<'static, ()>,
}

impl Package {
    fn copy() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        static COPY: OnceLock<PathBuf> = OnceLock::new();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = COPY.get_or_init(|| {
            let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("build-errors");
            let _ = fs::remove_dir_all(dir.join("package"));
            let package = dir.join("package");
            fs::create_dir_all(package.join("vendor")).expect("the target folder can be written");
            let status = Command::new("cp")
                .args(["-r", "--"])
                .args(["Cargo.toml", "Cargo.lock", "build.rs", "build"])
                .args(["src", "hugepages", "patches", "preload", "xtask"])
                .arg(&package)
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status();
            assert!(status.expect("cp can be run").success());
            package
        });
        let package = Self {
            dir: dir.clone(),
            _one_at_a_time: turn,
        };
        package.write_lock(|lock| lock);
        package
    }

    fn write_lock(&self, change: impl Fn(String) -> String) {
        let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("vendor/llama.cpp.lock");
        let lock = fs::read_to_string(lock).expect("the pin exists");
        fs::write(self.dir.join("vendor/llama.cpp.lock"), change(lock)).expect("the copy is ours");
    }

    fn target(&self) -> PathBuf {
        self.dir.with_file_name("target")
    }

    /// Runs a build that must fail, and returns the cause and the hint.
    fn fails<V: AsRef<OsStr>>(&self, variable: &str, value: V) -> (String, String) {
        self.fails_with(&[], variable, value)
    }

    /// The same with more arguments of cargo.
    fn fails_with<V: AsRef<OsStr>>(
        &self,
        args: &[&str],
        variable: &str,
        value: V,
    ) -> (String, String) {
        let output = Command::new(env!("CARGO"))
            .args(["build", "--lib", "--package", "llama-hugepages"])
            .args(args)
            .current_dir(&self.dir)
            .env("CARGO_TARGET_DIR", self.target())
            .env_remove("LLAMA_CPP_DIR")
            .env(variable, value)
            .output()
            .expect("cargo can be run");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{text}");
        // error: llama-hugepages@0.1.0: CAUSE
        // error: llama-hugepages@0.1.0: hint: HINT
        let said: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("error: llama-hugepages@"))
            .filter_map(|line| line.split_once(": ").map(|(_, said)| said))
            .collect();
        let [cause, hint] = said[..] else {
            panic!("one cause and one hint, not {said:?}:\n{text}");
        };
        let hint = hint.strip_prefix("hint: ").expect("the second is a hint");
        self.assert_left_nothing();
        (cause.to_owned(), hint.to_owned())
    }

    /// Asserts that no unpacked source is left under the name that a later build would use.
    fn assert_left_nothing(&self) {
        let builds = self.target().join("debug/build");
        for build in fs::read_dir(builds).expect("the build script ran") {
            let cache = build
                .expect("the folder is readable")
                .path()
                .join("out/cache");
            let left = fs::read_dir(&cache).map_or(0, Iterator::count);
            assert_eq!(left, 0, "something was left in {}", cache.display());
        }
    }
}

fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target folder can be written")
}

#[test]
fn without_cmake_the_package_to_install_is_named() {
    let (cause, hint) = Package::copy().fails("CMAKE", "/no/such/cmake");
    assert!(cause.contains("`/no/such/cmake` not found"), "{cause}");
    assert!(hint.contains("apt-get install cmake"), "{hint}");
}

#[test]
fn a_missing_pin_is_reported_with_the_command_that_removes_it() {
    let package = Package::copy();
    fs::remove_file(package.dir.join("vendor/llama.cpp.lock")).expect("the copy is ours");
    let (cause, hint) = package.fails("PIP_QUIET", "0");
    assert!(
        cause.ends_with("vendor/llama.cpp.lock does not exist"),
        "{cause}"
    );
    assert!(hint.contains("cargo vendor"), "{hint}");
}

#[test]
fn link_time_optimization_of_cmake_is_refused() {
    let option = "-DGGML_LTO=ON";
    let (cause, hint) = Package::copy().fails("LLAMA_HUGEPAGES_CMAKE_ARGS", option);
    assert!(cause.contains(option), "{cause}");
    assert!(hint.contains("remove it"), "{hint}");
}

#[test]
fn headers_of_an_old_vulkan_are_refused() {
    let sdk = temp_dir();
    let headers = sdk.path().join("include/vulkan");
    fs::create_dir_all(&headers).expect("the folder is ours");
    fs::write(headers.join("vulkan_core.h"), "#define VK_EXT_other 1\n").expect("ours");
    let features = ["--features", "vulkan"];
    let (cause, hint) = Package::copy().fails_with(&features, "VULKAN_SDK", sdk.path());
    assert!(cause.contains("vulkan_core.h"), "{cause}");
    assert!(hint.contains("VULKAN_SDK"), "{hint}");
}

#[test]
fn the_documentation_needs_no_cmake_no_libclang_and_no_source() {
    let (package, nothing) = (Package::copy(), temp_dir());
    let output = Command::new(env!("CARGO"))
        .args(["doc", "--lib", "--no-deps", "--package", "llama-hugepages"])
        .current_dir(&package.dir)
        .env("CARGO_TARGET_DIR", package.target())
        .env("DOCS_RS", "1")
        .env("CMAKE", "/no/such/cmake")
        .env("LIBCLANG_PATH", nothing.path())
        .env("LLAMA_CPP_DIR", nothing.path())
        .output()
        .expect("cargo can be run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let model = "doc/llama_hugepages/struct.Model.html";
    assert!(package.target().join(model).is_file(), "{text}");
    package.assert_left_nothing();
}

#[test]
fn without_libclang_the_package_to_install_is_named() {
    let nothing = temp_dir();
    let (cause, hint) = Package::copy().fails("LIBCLANG_PATH", nothing.path());
    assert!(cause.contains("libclang"), "{cause}");
    assert!(hint.contains("apt-get install libclang-dev"), "{hint}");
}

#[test]
fn a_given_source_that_lacks_a_file_is_named_with_the_file() {
    let tree = temp_dir();
    fs::write(tree.path().join("CMakeLists.txt"), "").expect("the folder is ours");
    let (cause, hint) = Package::copy().fails("LLAMA_CPP_DIR", tree.path());
    let start = format!("{} is not a llama.cpp tree: `", tree.path().display());
    assert!(
        cause.contains(&start) && cause.ends_with("` is missing"),
        "{cause}"
    );
    assert!(hint.contains("complete checkout"), "{hint}");
}

/// A Python as Debian installs it without python3-pip.
fn python_without_pip(dir: &Path) -> Result<std::ffi::OsString, String> {
    let status = Command::new("python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(dir)
        .status();
    match status {
        Ok(status) if status.success() => {
            let mut path = dir.join("bin").into_os_string();
            path.push(":");
            path.push(std::env::var_os("PATH").unwrap_or_default());
            Ok(path)
        }
        other => Err(format!("python3 makes no virtual environment: {other:?}")),
    }
}

#[test]
fn without_pip_the_package_to_install_is_named() {
    let dir = temp_dir();
    let path = or_skip!(python_without_pip(dir.path()));
    let (cause, hint) = Package::copy().fails("PATH", path);
    assert!(cause.contains("python3 has no pip"), "{cause}");
    assert!(hint.contains("apt-get install python3-pip"), "{hint}");
}

#[test]
fn a_download_with_another_hash_is_refused() {
    let package = Package::copy();
    package.write_lock(|lock| {
        let lines = lock.lines().map(|line| match line.strip_prefix("sha256") {
            Some(_) => format!("sha256 = \"{}\"", "0".repeat(64)),
            None => line.to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n")
    });
    let (cause, hint) = package.fails("PIP_QUIET", "0");
    if hint.contains("without a network") {
        return skip("the archive cannot be fetched from here");
    }
    assert!(
        cause.contains("hash differs from vendor/llama.cpp.lock"),
        "{cause}"
    );
    assert!(hint.contains("do not trust this download"), "{hint}");
}
