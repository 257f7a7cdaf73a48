//! Hostile files in a store, and failing memory.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{PAGES, images, json, load, on, run, small};
use crate::support::pool::{Counts, PAGE};
use crate::support::server::Launch;
use crate::support::store::{Store, patch};
use crate::support::{is_root, or_skip, skip, wait_for};

#[test]
fn a_byte_that_flips_is_found_and_the_code_is_5() {
    let store = or_skip!(Store::with(PAGES));
    run(load(&store, &small()), 0);
    patch(&store.image(), 3 * PAGE + 12345, |bytes| bytes[0] ^= 4, 1);
    let verified = json(&store, &["verify", "demo"], 5);
    assert_eq!(verified["images"][0]["result"], "differs");
    let (out, said) = run(on(&store, ["verify"]), 5);
    assert!(
        out.contains(": differs: ") && said.contains("hint: "),
        "{out}{said}"
    );
}

const NAME: &str = "evil.weights-0123456789abcdef.resident";

/// Puts a hostile file under the name of an image. No link, because this kernel's hugetlbfs does not support links.
fn hostile(store: &Store, what: &str) {
    let path = store.path().join(NAME);
    let sized = |bytes| {
        let file = File::create(&path).expect("the file is ours");
        file.set_len(bytes).expect("a sparse file takes no page");
    };
    match what {
        "pipe" => mkfifo(&path),
        "folder" => fs::create_dir(&path).expect("the folder is ours"),
        "empty" => sized(0),
        "hole" => sized(4 * PAGE),
        "huge" => sized(1 << 50),
        "group" => {
            sized(2 * PAGE);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o660))
                .expect("the file is ours");
        }
        "owner" => {
            sized(2 * PAGE);
            chown(&path, Some(65534), None).expect("root may do so");
        }
        "noise" => {
            sized(2 * PAGE);
            let noise = |bytes: &mut [u8]| {
                let mut state = 1_u64;
                for byte in bytes {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    *byte = (state >> 56) as u8;
                }
            };
            patch(&path, PAGE, noise, PAGE as usize);
        }
        _ => unreachable!("{what}"),
    }
}

fn mkfifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.expect("mkfifo is installed").success());
}

/// Runs a command, and fails after a time limit, because opening a pipe may block forever.
fn run_in_time(mut command: Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tool can be started");
    let ended = wait_for(Duration::from_secs(30), || {
        child.try_wait().expect("the child is ours").is_some()
    });
    if !ended {
        child.kill().expect("the child is ours");
    }
    let output = child.wait_with_output().expect("the child is ours");
    assert!(ended, "{command:?} hangs: {output:?}");
    output
}

#[test]
fn what_is_no_image_is_refused_with_a_reason_and_nobody_waits_for_it() {
    let store = or_skip!(Store::with(8));
    for what in [
        "pipe", "folder", "empty", "hole", "huge", "group", "owner", "noise",
    ] {
        hostile(&store, what);
        let before = Counts::read();
        let list = json(&store, &["list"], 0);
        let image = &images(&list)[0];
        let reason = image["problem"]["message"].as_str().unwrap_or_default();
        assert!(!reason.is_empty(), "{what}: {image}");
        let (table, _) = run(on(&store, ["list"]), 0);
        assert!(table.contains("refused"), "{what}: {table}");
        let verify = run_in_time(on(&store, ["verify"]));
        assert_eq!(verify.status.code(), Some(1), "{what}: {verify:?}");
        assert_eq!(Counts::read(), before, "{what} took a page");
        // gc leaves the files of other users alone, and cannot remove a folder as a file.
        let stays = matches!(what, "owner" | "folder");
        let gc = run_in_time(on(&store, ["gc"]));
        assert_eq!(
            gc.status.code(),
            Some(i32::from(what == "folder")),
            "{what}: {gc:?}"
        );
        let path = store.path().join(NAME);
        assert_eq!(fs::symlink_metadata(&path).is_ok(), stays, "{what}");
        store.empty();
        store.pool.assert_all_back();
    }
}

#[test]
fn a_manifest_that_is_cut_or_damaged_is_refused() {
    let store = or_skip!(Store::with(PAGES));
    run(load(&store, &small()), 0);
    let image = store.image();
    let length = fs::metadata(&image).expect("the file exists").len();
    // The header is in the last 4 KiB. The test flips a bit in each of its parts.
    for offset in [0, 9, 17, 40, 100, 1500] {
        patch(&image, length - 4096 + offset, |bytes| bytes[0] ^= 1, 1);
        let list = json(&store, &["list"], 0);
        assert_ne!(images(&list)[0]["problem"], Value::Null, "at {offset}");
        run(on(&store, ["verify"]), 1);
        patch(&image, length - 4096 + offset, |bytes| bytes[0] ^= 1, 1);
    }
    run(on(&store, ["verify"]), 0);
    File::options()
        .write(true)
        .open(&image)
        .and_then(|file| file.set_len(length - PAGE))
        .expect("the file is ours");
    let list = json(&store, &["list"], 0);
    assert_ne!(images(&list)[0]["problem"], Value::Null);
    let gone = json(&store, &["gc"], 0);
    assert_eq!(gone["dropped"].as_array().map(Vec::len), Some(1));
    store.pool.assert_all_back();
}

#[test]
fn files_of_others_are_counted_and_stay() {
    let store = or_skip!(Store::with(4));
    let file = |name: &str| File::create(store.path().join(name)).expect("the file is ours");
    for name in ["notes.txt", ".hidden", "short.resident", "a.gguf.bak"] {
        file(name).set_len(PAGE).expect("a sparse file");
    }
    fs::create_dir(store.path().join("folder.gguf")).expect("the folder is ours");
    mkfifo(&store.path().join("pipe.gguf"));
    let before = store.names();
    let list = json(&store, &["list"], 0);
    assert_eq!(
        (&list["others"], &list["files"]),
        (&6.into(), &serde_json::json!([]))
    );
    run(on(&store, ["gc"]), 0);
    run(on(&store, ["drop", "--all", "--force"]), 0);
    for name in ["notes.txt", "../x", "/etc/passwd", ""] {
        let (_, said) = run(on(&store, ["drop", name]), 1);
        assert!(said.contains("hint: "), "{name}: {said}");
    }
    assert_eq!(store.names(), before);
}

#[test]
fn a_verify_that_compares_nothing_says_so() {
    let store = or_skip!(Store::with(PAGES));
    run(load(&store, &small()), 0);
    let image = store.image();
    let length = fs::metadata(&image).expect("it is there").len();
    // The checksums of this image and its header take 4 KiB each.
    patch(&image, length - 8192, |sums| sums.fill(0), 4096);
    let (said, _) = run(on(&store, ["verify"]), 0);
    assert!(
        said.contains(": empty: none of ") && said.contains(" segments is complete"),
        "{said}"
    );
    store.empty();
}

/// In a store for all users, everybody can make a file with the name of a lock.
#[test]
fn a_lock_of_another_user_is_named_and_stops_no_server_that_may_go_on_without_a_store() {
    const OTHER: u32 = 65534;
    if !is_root() {
        return skip("only root can give a file to another user");
    }
    let store = or_skip!(Store::with_options(2 * PAGES, "mode=1777"));
    run(load(&store, &small()), 0);
    let name = store.names().pop().expect("an image");
    store.empty();
    let lock = store.path().join(format!(".{name}.lock"));
    let launch = |policy: &str| {
        let launch = Launch::ours().model(&small()).hugepages(policy);
        launch.args(["--hugepage-store", store.arg()])
    };
    let take = || {
        let file = File::create(&lock).expect("the store is ours");
        chown(&lock, Some(OTHER), Some(OTHER)).expect("root");
        file
    };
    let file = take();
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive)
        .expect("nobody has it");
    let ended = launch("require").run();
    ended.assert_clean_failure();
    let cause = ended.line_with("cannot lock resident image");
    assert!(cause.contains("user 65534 owns its lock file"), "{cause}");
    let hint = ended.line_with("hint: ");
    assert!(
        hint.contains(lock.to_str().expect("a plain path")),
        "{hint}"
    );
    let server = launch("prefer").start();
    server.assert_answers();
    drop((server, file));
    assert_eq!(store.images().len(), 0);

    // Nobody holds this one.
    drop(take());
    let server = launch("require").start();
    server.assert_answers();
    assert_eq!(store.images().len(), 1);
    drop(server);
    assert!(!lock.exists());
    store.empty();
    store.pool.assert_all_back();
}
