//! `hugepages store mount` and `unmount`.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{PAGES, copies_of_the_programs, run, small, tool};
use crate::support::pool::{Counts, Pool};
use crate::support::{is_root, or_skip, skip};

/// A mount point. Its mount goes away however the test ends.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder can be made"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("a/b")
    }

    fn mount(&self, args: &[&str]) -> Command {
        let mut command = tool(["mount", "--size", "2M"]);
        command.arg(self.path()).args(args);
        command
    }

    fn unmount(&self, args: &[&str]) -> Command {
        let mut command = tool(["unmount"]);
        command.arg(self.path()).args(args);
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.path().exists() {
            let mut unmount = Command::new("umount");
            let _ = unmount.arg(self.path()).stderr(Stdio::null()).status();
        }
    }
}

#[test]
fn a_mount_is_made_once_and_other_options_are_refused() {
    let _pool = or_skip!(Pool::with(4));
    let place = Place::new();
    let args = [
        "--limit", "5M", "--mode", "0750", "--uid", "65534", "--gid", "65534",
    ];
    let (said, _) = run(place.mount(&args), 0);
    assert!(
        said.contains("pagesize=2M,size=6291456,mode=0750,uid=65534,gid=65534"),
        "{said}"
    );
    let data = fs::metadata(place.path()).expect("the place is mounted");
    assert_eq!(data.permissions().mode() & 0o7777, 0o750);
    let (said, _) = run(place.mount(&args), 0);
    assert!(said.contains("already mounted"), "{said}");
    let (_, said) = run(place.mount(&["--limit", "7M"]), 1);
    assert!(
        said.contains("size=6291456") && said.contains("hint: "),
        "{said}"
    );
    run(place.unmount(&[]), 0);
    assert!(!place.path().exists());
    let (_, said) = run(place.unmount(&[]), 1);
    assert!(said.contains("no hugetlbfs is mounted"), "{said}");
    let (_, said) = run(place.mount(&["--limit", "0"]), 1);
    assert!(said.contains("at least one page of 2 MiB"), "{said}");
    assert!(!place.path().exists());
}

#[test]
fn a_mount_hides_no_files_and_leaves_no_folder_when_it_fails() {
    let _pool = or_skip!(Pool::with(4));
    let place = Place::new();
    fs::create_dir_all(place.path()).expect("the folder is ours");
    fs::write(place.path().join("file"), "").expect("the file is ours");
    let (_, said) = run(place.mount(&[]), 1);
    assert!(said.contains("is not empty"), "{said}");
    fs::remove_dir_all(place.0.path().join("a")).expect("the folder is ours");
    // The mount needs more pages than the pool has.
    let (_, said) = run(place.mount(&["--min", "64M"]), 3);
    assert!(said.contains("hint: "), "{said}");
    assert!(!place.0.path().join("a").exists());
    // The mount reserves pages of the pool, and returns them.
    let before = Counts::read();
    run(place.mount(&["--min", "4M"]), 0);
    assert_eq!(Counts::read().reserved, before.reserved + 2);
    run(place.unmount(&[]), 0);
    assert_eq!(Counts::read(), before);
    symlink("/etc", place.0.path().join("a/b")).expect("the file is ours");
    let (_, said) = run(place.mount(&[]), 1);
    assert!(said.contains("is not a directory"), "{said}");
    fs::remove_file(place.path()).expect("the file is ours");
}

#[test]
fn unmount_refuses_what_holds_models_and_never_drops_files_of_others() {
    let pool = or_skip!(Pool::with(PAGES));
    let place = Place::new();
    run(place.mount(&[]), 0);
    let mut copy = tool(["load", "--as-file", "--store"]);
    copy.arg(place.path()).arg(small());
    run(copy, 0);
    let (_, said) = run(place.unmount(&[]), 1);
    assert!(
        said.contains("`demo.gguf`") && said.contains("hint: --force"),
        "{said}"
    );
    let theirs = place.path().join("notes.txt");
    File::create(&theirs).expect("the file is ours");
    let (_, said) = run(place.unmount(&["--force"]), 1);
    assert!(said.contains("`notes.txt`"), "{said}");
    assert!(place.path().join("demo.gguf").exists());
    fs::remove_file(theirs).expect("the file is ours");
    // A directory is no image, whatever its name.
    let theirs = place.path().join("x.weights-0000000000000000.resident");
    fs::create_dir(&theirs).expect("the store is ours");
    let (_, said) = run(place.unmount(&["--force"]), 1);
    assert!(said.contains("`x.weights-"), "{said}");
    assert!(place.path().join("demo.gguf").exists());
    fs::remove_dir(theirs).expect("the directory is ours");
    run(place.unmount(&["--force"]), 0);
    assert!(!place.path().exists());
    pool.assert_all_back();
}

#[test]
fn others_come_to_a_store_whatever_the_umask_was() {
    let _pool = or_skip!(Pool::with(0));
    let place = Place::new();
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"umask 077; exec "$@""#, "sh"]);
    let mount = place.mount(&[]);
    shell.arg(mount.get_program()).args(mount.get_args());
    run(shell, 0);
    let parent = place
        .path()
        .parent()
        .expect("the place has a parent")
        .to_owned();
    let mode = fs::metadata(parent)
        .expect("just made")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o755);
    run(place.unmount(&[]), 0);
}

#[test]
fn who_may_not_mount_is_told_what_to_run() {
    if !is_root() {
        return skip("only root can become another user");
    }
    let dir = copies_of_the_programs();
    let place = dir.path().join("store");
    fs::create_dir(&place).expect("the folder is ours");
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(dir.path().join("hugepages"))
        .args(["store", "mount", "--size", "2M"])
        .arg(&place);
    let (_, said) = run(command, 1);
    assert!(said.contains("hint: sudo hugepages store mount"), "{said}");
}
