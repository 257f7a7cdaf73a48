//! Tests of `cargo xtask vendor` with made-up carrier packages, which pip and cargo find in folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::support::{Fixture, MMAP, Run, git, upstream, write};

/// A minimal build backend, so that pip accepts the package and downloads nothing.
const BACKEND: &str = "
import os
def get_requires_for_build_wheel(config_settings=None): return []
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    name = 'llama_cpp_python-VERSION.dist-info'
    os.mkdir(os.path.join(directory, name))
    with open(os.path.join(directory, name, 'METADATA'), 'w') as f:
        f.write('Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: VERSION\\n')
    return name
";

const AS_IT_WAS: (&str, &str) = ("", "");

/// Whether the archive contains upstream's git objects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Commit {
    Told,
    Untold,
}

/// Writes the archive of a carrier whose upstream replaced `from` by `to`; returns upstream's commit.
fn carrier(fixture: &Fixture, version: &str, (from, to): (&str, &str), told: Commit) -> String {
    let name = format!("llama_cpp_python-{version}");
    let top = fixture.path("made").join(&name);
    let source = top.join("vendor/llama.cpp");
    let _ = fs::remove_dir_all(&top);
    upstream(&source);
    let text = fs::read_to_string(source.join(MMAP)).unwrap();
    write(&source.join(MMAP), &text.replacen(from, to, 1));
    git(&source, &["init", "--quiet"]);
    git(&source, &["add", "--all"]);
    git(
        &source,
        &[
            "commit",
            "--quiet",
            "-m",
            "upstream",
            "--date",
            "2026-05-05T00:00:00Z",
        ],
    );
    let commit = git(&source, &["rev-parse", "HEAD"]);
    if told == Commit::Told {
        let module = top.join(".git/modules/vendor/llama.cpp");
        fs::create_dir_all(module.parent().unwrap()).unwrap();
        fs::rename(source.join(".git"), &module).unwrap();
        write(&module.join("HEAD"), &format!("{commit}\n"));
        write(
            &source.join(".git"),
            "gitdir: ../../.git/modules/vendor/llama.cpp\n",
        );
    } else {
        fs::remove_dir_all(source.join(".git")).unwrap();
    }
    let about = format!("Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {version}\n");
    write(&top.join("PKG-INFO"), &about);
    write(
        &top.join("backend.py"),
        &BACKEND.replace("VERSION", version),
    );
    let project =
        "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n";
    write(&top.join("pyproject.toml"), project);

    pack(
        fixture,
        &name,
        &index(fixture).join(format!("{name}.tar.gz")),
    );
    commit
}

/// Packs the folder `name` of the made-up packages.
fn pack(fixture: &Fixture, name: &str, archive: &Path) {
    fs::create_dir_all(archive.parent().unwrap()).unwrap();
    let status = Command::new("tar")
        .arg("-C")
        .arg(fixture.path("made"))
        .arg("-czf")
        .arg(archive)
        .arg(name)
        .status()
        .unwrap();
    assert!(status.success());
}

/// Publishes a crate that carries llama.cpp without the files in `left_out`, in a registry of files.
fn publish(fixture: &Fixture, version: &str, (from, to): (&str, &str), left_out: &[&str]) {
    let name = format!("carrier-sys-{version}");
    let top = fixture.path("made").join(&name);
    upstream(&top.join("llama.cpp"));
    fixture.replace(&format!("made/{name}/llama.cpp/{MMAP}"), from, to);
    for file in left_out {
        fs::remove_file(top.join("llama.cpp").join(file)).unwrap();
    }
    let manifest =
        format!("[package]\nname = \"carrier-sys\"\nversion = \"{version}\"\nedition = \"2024\"\n");
    write(&top.join("Cargo.toml"), &manifest);
    write(&top.join("src/lib.rs"), "");
    let archive = fixture.path(&format!("crates/{name}.crate"));
    pack(fixture, &name, &archive);

    let index = fixture.path("crates/index");
    let hash = Sha256::digest(fs::read(archive).unwrap())
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let entry = format!(
        "{{\"name\":\"carrier-sys\",\"vers\":\"{version}\",\"deps\":[],\"features\":{{}},\"cksum\":\"{hash}\",\"yanked\":false}}\n"
    );
    write(&index.join("ca/rr/carrier-sys"), &entry);
    let crates = fixture.path("crates");
    let place = format!(
        "{{\"dl\":\"file://{}/{{crate}}-{{version}}.crate\"}}",
        crates.display()
    );
    write(&index.join("config.json"), &place);
    git(&index, &["init", "--quiet"]);
    git(&index, &["add", "--all"]);
    git(&index, &["commit", "--quiet", "-m", "publish"]);
    let config = format!(
        "[registry]\ndefault = \"made\"\n[registries.made]\nindex = \"file://{}\"\n",
        index.display()
    );
    // A new home, so that cargo downloads again.
    let home = fixture.path("cargo-home");
    let _ = fs::remove_dir_all(&home);
    write(&home.join("config.toml"), &config);
}

fn index(fixture: &Fixture) -> PathBuf {
    fixture.path("index")
}

/// Runs `xtask` with a pip and a cargo that find only the made-up packages.
fn xtask(fixture: &Fixture, args: &[&str]) -> Run {
    let (index, home) = (index(fixture), fixture.path("cargo-home"));
    let env = [
        ("CARGO_HOME", home.to_str().unwrap()),
        ("PIP_NO_INDEX", "1"),
        ("PIP_FIND_LINKS", index.to_str().unwrap()),
        ("PIP_CONFIG_FILE", "/dev/null"),
    ];
    fixture.xtask_with(args, &env)
}

/// A repository with a series on the source of the carrier, which is pinned to 1.0.0.
fn pinned() -> Fixture {
    let fixture = Fixture::with_series();
    carrier(&fixture, "1.0.0", AS_IT_WAS, Commit::Told);
    fs::remove_dir_all(fixture.path("vendor/llama.cpp")).unwrap();
    fixture.replace(
        "vendor/llama.cpp.lock",
        "version = \"1.0.0\"",
        "version = \"0.0.0\"",
    );
    xtask(&fixture, &["vendor", "bump", "1.0.0"]).succeeds();
    fixture
}

fn cached(fixture: &Fixture) -> PathBuf {
    let hash = value(fixture, "sha256");
    fixture.path("vendor/cache").join(hash)
}

fn value(fixture: &Fixture, key: &str) -> String {
    let lock = fixture.read("vendor/llama.cpp.lock");
    let line = lock
        .lines()
        .find(|line| line.starts_with(&format!("{key} = ")))
        .unwrap();
    line.split('"').nth(1).unwrap().to_owned()
}

#[test]
fn bump_pins_what_the_carrier_tells_and_keeps_the_comments() {
    let fixture = pinned();
    let commit = carrier(
        &fixture,
        "2.0.0",
        ("line 1\n", "line 0\nline 1\n"),
        Commit::Told,
    );
    xtask(&fixture, &["vendor", "bump", "2.0.0"])
        .succeeds()
        .finds(&["llama-cpp-python 1.0.0 → llama-cpp-python 2.0.0"])
        .finds(&["0001", ": applies at offset +1"])
        .says("cargo xtask patches refresh");
    assert_eq!(value(&fixture, "version"), "2.0.0");
    assert_eq!(value(&fixture, "commit"), commit);
    let lock = fixture.read("vendor/llama.cpp.lock");
    assert!(
        lock.starts_with("# a comment that stays\n") && lock.contains("\n\n# another one\n"),
        "{lock}"
    );
    assert!(cached(&fixture).join(MMAP).is_file());
    xtask(&fixture, &["patches", "refresh"]).succeeds();
    xtask(&fixture, &["patches", "check"]).succeeds();
}

#[test]
fn bump_names_the_hunk_that_needs_a_person() {
    let fixture = pinned();
    carrier(
        &fixture,
        "2.0.0",
        ("line 31\n", "line thirty-one\n"),
        Commit::Told,
    );
    xtask(&fixture, &["vendor", "bump", "2.0.0"])
        .exits(1)
        .finds(&["0001", ": applies"])
        .finds(&["0002 src/llama-mmap.cpp:29: conflicts"])
        .says("cargo xtask patches refresh");
}

#[test]
fn bump_to_the_same_version_changes_nothing() {
    let fixture = pinned();
    let before = fixture.read("vendor/llama.cpp.lock");
    xtask(&fixture, &["vendor", "bump", "1.0.0"]).succeeds();
    assert_eq!(fixture.read("vendor/llama.cpp.lock"), before);
}

#[test]
fn bump_asks_for_the_commit_when_the_carrier_does_not_tell_it() {
    let fixture = pinned();
    let before = fixture.read("vendor/llama.cpp.lock");
    let commit = carrier(&fixture, "2.0.0", AS_IT_WAS, Commit::Untold);
    xtask(&fixture, &["vendor", "bump", "2.0.0"])
        .exits(3)
        .says("does not name")
        .says("hint: ");
    assert_eq!(fixture.read("vendor/llama.cpp.lock"), before);
    xtask(&fixture, &["vendor", "bump", "2.0.0", "--commit", &commit])
        .succeeds()
        .says("without verification");
    assert_eq!(value(&fixture, "commit"), commit);
}

#[test]
fn bump_refuses_a_commit_that_the_carrier_contradicts() {
    let fixture = pinned();
    let before = fixture.read("vendor/llama.cpp.lock");
    carrier(&fixture, "2.0.0", AS_IT_WAS, Commit::Told);
    xtask(
        &fixture,
        &["vendor", "bump", "2.0.0", "--commit", &"d".repeat(40)],
    )
    .exits(3)
    .says("contains upstream commit");
    assert_eq!(fixture.read("vendor/llama.cpp.lock"), before);
}

#[test]
fn bump_to_a_version_that_does_not_exist_changes_nothing() {
    let fixture = pinned();
    let before = fixture.read("vendor/llama.cpp.lock");
    xtask(&fixture, &["vendor", "bump", "3.0.0"])
        .exits(3)
        .says("llama-cpp-python 3.0.0");
    assert_eq!(fixture.read("vendor/llama.cpp.lock"), before);
}

/// Arguments that pin the made-up crate.
fn bump_to_crate(version: &str) -> Vec<&str> {
    const COMMIT: &str = "cccccccccccccccccccccccccccccccccccccccc";
    let carrier = ["--registry", "cargo", "--package", "carrier-sys"];
    let mut args = vec!["vendor", "bump", version, "--commit", COMMIT];
    args.extend(carrier);
    args
}

#[test]
fn bump_pins_a_carrier_of_cargo_and_later_commands_use_it() {
    let fixture = pinned();
    publish(&fixture, "0.4.0", ("line 33\n", "line 33, changed\n"), &[]);
    xtask(&fixture, &bump_to_crate("0.4.0"))
        .succeeds()
        .finds(&["llama-cpp-python 1.0.0 → carrier-sys 0.4.0"])
        .finds(&["0001 src/llama-mmap.cpp:8: applies"])
        .finds(&["0002 src/llama-mmap.cpp:29: merges"]);
    assert_eq!(value(&fixture, "registry"), "cargo");
    assert_eq!(value(&fixture, "subdir"), "llama.cpp");
    xtask(&fixture, &["patches", "refresh"]).succeeds();
    xtask(&fixture, &["patches", "check"]).succeeds();

    fs::remove_dir_all(cached(&fixture)).unwrap();
    xtask(&fixture, &["vendor", "fetch"]).succeeds();
    assert!(cached(&fixture).join(MMAP).is_file());
    xtask(&fixture, &["vendor", "verify"])
        .succeeds()
        .finds(&["carrier-sys 0.4.0: sha256 of the archive matches"]);
    publish(&fixture, "0.4.0", ("line 33\n", "line 33, again\n"), &[]);
    xtask(&fixture, &["vendor", "verify"])
        .exits(3)
        .says("cannot download carrier-sys 0.4.0: its hash differs");
}

#[test]
fn bump_refuses_a_carrier_of_a_part_of_llama_cpp() {
    let fixture = pinned();
    let before = fixture.read("vendor/llama.cpp.lock");
    publish(
        &fixture,
        "0.4.0",
        AS_IT_WAS,
        &["tools/server/server-context.cpp"],
    );
    xtask(&fixture, &bump_to_crate("0.4.0")).exits(3).says(
        "carrier-sys 0.4.0 contains only a part of llama.cpp: `tools/server/server-context.cpp`",
    );
    xtask(&fixture, &bump_to_crate("0.5.0"))
        .exits(3)
        .says("cannot download carrier-sys 0.5.0: could not find");
    assert_eq!(fixture.read("vendor/llama.cpp.lock"), before);
}

#[test]
fn fetch_unpacks_once() {
    let fixture = pinned();
    fs::remove_dir_all(cached(&fixture)).unwrap();
    let run = xtask(&fixture, &["vendor", "fetch"]).succeeds();
    assert_eq!(Path::new(run.stdout.trim()), cached(&fixture));
    fs::remove_dir_all(index(&fixture)).unwrap();
    xtask(&fixture, &["vendor", "fetch"])
        .succeeds()
        .finds(&["(already unpacked)"]);
}

#[test]
fn verify_proves_the_tree_by_the_hash_of_the_upstream_commit() {
    let fixture = pinned();
    let commit = value(&fixture, "commit");
    xtask(&fixture, &["vendor", "verify"])
        .succeeds()
        .finds(&[&commit, "matches the archive"]);
}

#[test]
fn verify_finds_a_file_that_was_changed_in_the_cache() {
    let fixture = pinned();
    write(&cached(&fixture).join("common/arg.cpp"), "tampered\n");
    xtask(&fixture, &["vendor", "verify"])
        .exits(1)
        .finds(&["common/arg.cpp", "differs from the archive"])
        .says("hint: ");
}

#[test]
fn verify_finds_a_commit_that_the_archive_does_not_carry() {
    let fixture = pinned();
    let commit = value(&fixture, "commit");
    fixture.replace("vendor/llama.cpp.lock", &commit, &"e".repeat(40));
    xtask(&fixture, &["vendor", "verify"]).exits(1).finds(&[
        &"e".repeat(40),
        "the archive contains",
        &commit,
    ]);
}

#[test]
fn verify_refuses_an_archive_with_another_hash() {
    let fixture = pinned();
    carrier(&fixture, "1.0.0", ("line 1\n", "line one\n"), Commit::Told);
    xtask(&fixture, &["vendor", "verify"])
        .exits(3)
        .says("its hash differs");
}
