//! A project outside of this repository builds with the library, with the compilers and flags of distributions. The tarball and the
//! Debian package contain the programs for every CPU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::support::pool::Pool;
use crate::support::{debian, is_root, or_skip, programs, skip};

/// Calls the C++ code through the shim, and needs no model.
const PROGRAM: &str = r#"
fn main() {
    llama_hugepages::ModelParams::from_env().expect("the variables are valid");
    println!("{}", llama_hugepages::report().expect("an empty report"));
}
"#;

/// Builds a program with the library, and runs the program.
fn builds_and_runs(name: &str, variables: &[(&str, &str)]) {
    let root = env!("CARGO_MANIFEST_DIR");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("packaging")
        .join(name);
    fs::create_dir_all(dir.join("src")).expect("the target folder can be written");
    let manifest = format!(
        "[package]\nname = \"outside\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         llama-hugepages = {{ path = {root:?}, default-features = false, features = [\"native\", \"openmp\"] }}\n"
    );
    fs::write(dir.join("Cargo.toml"), manifest).expect("the folder is ours");
    fs::write(dir.join("src/main.rs"), PROGRAM).expect("the folder is ours");
    fs::copy(Path::new(root).join("Cargo.lock"), dir.join("Cargo.lock"))
        .expect("the folder is ours");
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet"])
        .current_dir(&dir)
        .env("CARGO_TARGET_DIR", dir.join("target"))
        .envs(variables.iter().copied())
        .output()
        .expect("cargo can be run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

#[test]
#[ignore = "long: make test-full"]
fn flags_for_link_time_optimization_give_a_program_that_runs() {
    let flags = "-flto=auto";
    builds_and_runs("lto", &[("CFLAGS", flags), ("CXXFLAGS", flags)]);
}

#[test]
#[ignore = "long: make test-full"]
fn clang_gives_a_program_that_runs() {
    let found = Command::new("clang++").arg("--version").output();
    or_skip!(found.map_err(|error| format!("clang++ cannot be run: {error}")));
    builds_and_runs("clang", &[("CC", "clang"), ("CXX", "clang++")]);
}

/// Builds a package of the programs in a folder with `cargo xtask`, and returns its path.
fn package(kind: &str, programs: &Path, out: &Path, args: &[&str]) -> PathBuf {
    // All packages write the same SBOM.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let output = Command::new(env!("CARGO"))
        .args(["xtask", kind])
        .args(args)
        .arg("--programs")
        .arg(programs)
        .arg("--out")
        .arg(out)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// The same package, built twice in different folders.
fn built_twice(kind: &str, programs: &Path) -> (tempfile::TempDir, PathBuf) {
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().expect("a folder can be made"));
    let packages = [&first, &second].map(|dir| package(kind, programs, dir.path(), &[]));
    let [one, two] = packages
        .each_ref()
        .map(|path| fs::read(path).expect("just made"));
    assert!(one == two, "two builds differ: {packages:?}");
    let [package, _] = packages;
    (first, package)
}

#[test]
#[ignore = "long: make test-full"]
fn two_tarballs_are_equal_and_their_programs_run_in_any_folder() {
    let found = Command::new("strip").arg("--version").output();
    or_skip!(found.map_err(|error| format!("strip cannot be run: {error}")));
    let programs = or_skip!(programs::portable());
    let (dir, tarball) = built_twice("dist", &programs);
    let sums = Command::new("sha256sum")
        .args(["--check", "SHA256SUMS"])
        .current_dir(dir.path())
        .output()
        .expect("a program of every system");
    assert!(sums.status.success(), "{sums:?}");
    let unpacked = dir.path().join("elsewhere");
    fs::create_dir(&unpacked).expect("the folder is ours");
    programs::run(
        Command::new("tar")
            .args(["--strip-components=1", "--extract", "--file"])
            .arg(&tarball)
            .arg("--directory")
            .arg(&unpacked),
    )
    .expect("the tarball is whole");
    for name in ["hugepages", "llama-server", "ggml-rpc-server"] {
        let output = Command::new(unpacked.join("bin").join(name))
            .arg("--version")
            .current_dir("/")
            .output()
            .expect("the program was unpacked");
        assert!(output.status.success(), "{output:?}");
    }
    // An empty entry would mean the working directory, whose libraries anybody may have written.
    for entry in fs::read_dir(unpacked.join("lib/llama-hugepages")).expect("unpacked") {
        let path = entry.expect("an entry").path();
        let output = Command::new("readelf").arg("--dynamic").arg(&path).output();
        let text = String::from_utf8_lossy(&output.expect("of the same package as strip").stdout)
            .into_owned();
        for line in text
            .lines()
            .filter(|line| line.contains("(RUNPATH)") || line.contains("(RPATH)"))
        {
            assert!(line.ends_with("[$ORIGIN]"), "{}: {line}", path.display());
        }
    }
    // The tool finds the library through the link.
    let output = Command::new(unpacked.join("bin/hugepages"))
        .args(["exec", "--", "env"])
        .output()
        .expect("the program was unpacked");
    let variables = String::from_utf8_lossy(&output.stdout);
    let library = unpacked.join("lib/llama-hugepages/libhugepages_preload.so");
    let expected = format!("LD_PRELOAD={}", library.display());
    assert!(variables.contains(&expected), "{output:?}");
    for file in [
        "share/doc/llama-hugepages/licences-of-crates.txt",
        "share/doc/llama-hugepages/sbom.json",
        "share/man/man1/hugepages-plan.1",
        "share/bash-completion/completions/hugepages",
        "lib/systemd/system/llama-server@.service",
        "lib/systemd/system/ggml-rpc-server@.service",
    ] {
        assert!(unpacked.join(file).is_file(), "{file}");
    }
}

#[test]
#[ignore = "long: make test-full"]
fn two_debian_packages_are_equal_and_lintian_finds_no_error() {
    or_skip!(programs::found("dpkg-shlibdeps"));
    or_skip!(programs::found("lintian"));
    let (_dir, package) = built_twice("deb", &or_skip!(programs::portable()));
    let output = Command::new("lintian")
        .args(["--allow-root", "--fail-on", "error"])
        .arg(&package)
        .output()
        .expect("just found");
    assert!(output.status.success(), "{output:?}");
}

#[test]
#[ignore = "long: make test-full"]
fn a_purge_of_the_debian_package_leaves_files_and_pool_as_before() {
    if !is_root() {
        return skip("root is needed for namespaces");
    }
    or_skip!(programs::found("dpkg-shlibdeps"));
    let programs = or_skip!(programs::portable());
    let contents = ["llama-server", "hugepages"].map(|name| programs.join(name));
    let mut packages = or_skip!(debian::libraries(&contents));
    packages.push("systemd".to_owned());
    let base = or_skip!(debian::base("packaging", "essential", &packages));
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let first = package("deb", &programs, dir.path(), &[]);
    let second = package("deb", &programs, dir.path(), &["--revision", "2"]);
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("the folder is ours");
    programs::run(
        Command::new("tar")
            .arg("--extract")
            .arg("--file")
            .arg(base)
            .arg("--directory")
            .arg(&root),
    )
    .expect("the disk has space");
    // The script adds pages and returns them, so no other test may change the pool.
    let pool = or_skip!(Pool::with(0));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/packaging.sh");
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh"])
        .arg(script)
        .args([&root, &first, &second])
        .output()
        .expect("unshare is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    pool.assert_all_back();
}
