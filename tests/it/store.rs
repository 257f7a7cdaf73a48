//! `hugepages store` against this machine's pool, its kernel and real servers. What a server makes of a store is in `resident.rs`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::pool::{Counts, PAGE, Pool};
use crate::support::server::Launch;
use crate::support::store::{Store, patch};
use crate::support::{is_root, models, or_skip, programs, skip, wait_for};

/// Enough for the small demo model as images, whatever its manifests take.
const PAGES: u64 = 80;

/// `hugepages store ARGS`
fn tool<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(programs::hugepages());
    command.arg("store").args(args).stdin(Stdio::null());
    command.env_remove("LLAMA_ARG_HUGEPAGE_STORE");
    command
}

/// The same of one store.
fn on<A: AsRef<OsStr>>(store: &Store, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = tool(args);
    command.env("LLAMA_ARG_HUGEPAGE_STORE", store.path());
    command
}

#[track_caller]
fn run(mut command: Command, code: i32) -> (String, String) {
    let output = command.output().expect("the tool can be started");
    assert_eq!(output.status.code(), Some(code), "{command:?}: {output:?}");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (text(output.stdout), text(output.stderr))
}

#[track_caller]
fn json(store: &Store, args: &[&str], code: i32) -> Value {
    let mut command = on(store, args);
    command.args(["--format", "json"]);
    let (text, _) = run(command, code);
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(value["schema"], 1);
    value
}

/// The images of a listing, of all models.
fn images(list: &Value) -> Vec<Value> {
    let models = list["models"].as_array().expect("a list").iter();
    models
        .flat_map(|model| model["images"].as_array().expect("a list").clone())
        .collect()
}

fn small() -> PathBuf {
    models::demo("100M", "Q8_0")
}

fn load(store: &Store, model: &Path) -> Command {
    let mut command = on(store, ["load"]);
    command.arg(model).args(["--", "--no-repack"]);
    command
}

#[test]
fn a_model_is_loaded_listed_verified_and_dropped_and_every_page_is_back() {
    let store = or_skip!(Store::with(PAGES));
    let model = small();
    let (said, _) = run(load(&store, &model), 0);
    assert!(said.contains("MiB are in "), "{said}");
    store.assert_only_files_hold_pages();
    let held = store.pages();
    assert!(held > 40, "{held} pages");

    let list = json(&store, &["list"], 0);
    assert_eq!(list["store"], store.arg());
    assert_eq!(
        (&list["page_bytes"], &list["others"]),
        (&PAGE.into(), &0.into())
    );
    let image = &images(&list)[0];
    assert_eq!(
        image["source"],
        model
            .canonicalize()
            .expect("it is there")
            .to_str()
            .expect("a plain path")
    );
    assert_eq!(
        (&image["problem"], &image["is_stale"]),
        (&Value::Null, &false.into())
    );
    assert_eq!(
        (&image["kind"], &image["bytes"]),
        (&"weights".into(), &(held * PAGE).into())
    );
    assert_eq!(image["attached"], serde_json::json!([]));
    let (table, _) = run(on(&store, ["list"]), 0);
    assert!(
        table.contains("live") && table.contains("weights"),
        "{table}"
    );

    let verified = json(&store, &["verify"], 0);
    assert_eq!(verified["images"][0]["result"], "equal");
    // Again: there is nothing to do, and no page is taken.
    run(load(&store, &model), 0);
    assert_eq!(store.pages(), held);

    let dropped = json(&store, &["drop", model.to_str().expect("a plain path")], 0);
    assert_eq!(dropped["bytes"], held * PAGE);
    assert_eq!(store.names(), [""; 0]);
    store.pool.assert_all_back();
}

#[test]
fn a_load_that_does_not_fit_is_3_with_a_hint_and_leaves_nothing() {
    let store = or_skip!(Store::with(20));
    let (_, said) = run(load(&store, &small()), 3);
    assert!(
        said.contains("too few huge pages: ") && said.contains("hint: "),
        "{said}"
    );
    assert_eq!(store.pages(), 0);
    store.pool.assert_all_back();
    let (_, said) = run(load(&store, Path::new("/no/such/model.gguf")), 1);
    assert!(said.contains("/no/such/model.gguf"), "{said}");
    store.pool.assert_all_back();
}

#[test]
fn load_adds_the_pages_that_are_missing_and_gives_them_back_when_it_fails() {
    let store = or_skip!(Store::with(3));
    let state = tempfile::tempdir().expect("a temporary folder can be made");
    let with_pool = |model: &Path| {
        let mut command = load(&store, model);
        // In front of the server's arguments.
        let args: Vec<_> = command.get_args().map(OsStr::to_owned).collect();
        command = on(&store, ["load", "--pool"]);
        command.args(&args[2..]);
        command.env("LLAMA_HUGEPAGES_STATE", state.path());
        command
    };
    let before = Counts::read();
    run(with_pool(Path::new("/no/such/model.gguf")), 1);
    assert_eq!(Counts::read(), before);
    let (_, said) = run(with_pool(&small()), 0);
    assert!(said.contains("added "), "{said}");
    assert!(Counts::read().total > before.total);
    run(on(&store, ["drop", "--all"]), 0);
    let restored = Command::new(programs::hugepages())
        .args(["pool", "restore"])
        .env("LLAMA_HUGEPAGES_STATE", state.path())
        .output()
        .expect("the tool can be started");
    assert!(restored.status.success(), "{restored:?}");
    assert_eq!(Counts::read(), before);
}

/// Processes of a program whose arguments name a store.
fn servers_of(store: &Store) -> usize {
    let entries = fs::read_dir("/proc").expect("it is mounted").flatten();
    entries
        .filter(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("llama-server") && line.contains(store.arg())
        })
        .count()
}

#[test]
fn a_load_that_is_interrupted_or_killed_takes_its_server_along() {
    let store = or_skip!(Store::with(PAGES));
    let model = small();
    for (signal, code) in [("INT", Some(130)), ("TERM", Some(130)), ("KILL", None)] {
        for delay in [0, 30, 120] {
            let mut child = load(&store, &model)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("the tool can be started");
            wait_for(Duration::from_secs(5), || servers_of(&store) > 0);
            std::thread::sleep(Duration::from_millis(delay));
            let pid = child.id().to_string();
            let killed = Command::new("kill").args(["-s", signal, &pid]).status();
            let killed = killed.expect("kill is there").success();
            let status = child.wait().expect("it is ours");
            // It may have been done by then.
            assert!(
                !killed || status.success() || status.code() == code,
                "{signal}: {status}"
            );
            let gone = || servers_of(&store) == 0;
            assert!(
                wait_for(Duration::from_secs(10), gone),
                "a server is left after SIG{signal}"
            );
            run(on(&store, ["gc", "--older-than", "0s"]), 0);
            run(on(&store, ["gc"]), 0);
            run(on(&store, ["drop", "--all"]), 0);
            store.pool.assert_all_back();
        }
    }
}

#[test]
fn a_store_that_is_none_is_1_and_says_how_to_get_one() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    for args in [&["list"][..], &["verify"], &["gc"], &["drop", "--all"]] {
        let mut command = tool(args);
        command.arg("--store").arg(dir.path());
        let (out, said) = run(command, 1);
        assert!(
            out.is_empty() && said.contains("hugetlbfs") && said.contains("hint: "),
            "{said}"
        );
    }
}

#[test]
fn a_copy_is_the_file_byte_by_byte_and_any_server_maps_it() {
    let store = or_skip!(Store::with(PAGES * 2));
    let model = small();
    let mut copy = on(&store, ["load", "--as-file"]);
    copy.arg(&model);
    run(copy, 0);
    let file = store.path().join("demo.gguf");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    File::open(&file)
        .and_then(|mut f| f.read_to_end(&mut ours))
        .expect("it is there");
    File::open(&model)
        .and_then(|mut f| f.read_to_end(&mut theirs))
        .expect("it is there");
    assert_eq!(
        ours.len() as u64,
        (theirs.len() as u64).next_multiple_of(PAGE)
    );
    assert!(ours[..theirs.len()] == theirs && ours[theirs.len()..].iter().all(|byte| *byte == 0));
    assert_eq!(store.pages(), ours.len() as u64 / PAGE);

    let list = json(&store, &["list"], 0);
    assert_eq!(
        (&list["files"][0]["name"], &list["others"]),
        (&"demo.gguf".into(), &0.into())
    );
    let mut again = on(&store, ["load", "--as-file"]);
    again.arg(&model);
    let (_, said) = run(again, 1);
    assert!(said.contains("is in the store already\nhint: "), "{said}");

    let server = Launch::ours().model(&file).start();
    server.assert_answers();
    let list = json(&store, &["list"], 0);
    let who = &list["files"][0]["attached"][0]["name"];
    assert_eq!(who, "llama-server");
    let (_, said) = run(on(&store, ["drop", "demo"]), 1);
    assert!(
        said.contains("in use by llama-server (pid ") && said.contains("hint: --force"),
        "{said}"
    );
    run(on(&store, ["drop", "demo", "--force"]), 0);
    server.assert_answers();
    drop(server);
    store.pool.assert_all_back();
}

#[test]
fn a_copy_that_does_not_fit_leaves_nothing() {
    // The pool, and then the limit of the mount.
    for (pages, options, hint) in [
        (10, "", "hugepages pool reserve"),
        (PAGES, "size=20M", "limit"),
    ] {
        let store = or_skip!(Store::with_options(pages, options));
        let mut copy = on(&store, ["load", "--as-file"]);
        copy.arg(small());
        let (_, said) = run(copy, 3);
        assert!(said.contains("demo.gguf") && said.contains(hint), "{said}");
        assert_eq!(store.names(), [""; 0]);
        store.pool.assert_all_back();
    }
}

#[test]
fn pages_that_a_cgroup_refuses_end_a_copy_without_a_signal() {
    use crate::support::cgroup::Cgroup;

    let store = or_skip!(Store::with(PAGES));
    let cgroup = or_skip!(Cgroup::with_limit(20));
    let mut copy = Command::new("sh");
    copy.args([
        "-c",
        r#"echo $$ > "$1/cgroup.procs" && shift && exec "$@""#,
        "sh",
    ])
    .arg(&cgroup.dir)
    .arg(programs::hugepages())
    .args(["store", "load", "--as-file", "--store", store.arg()])
    .arg(small());
    run(copy, 3);
    assert!(cgroup.refusals() > 0);
    assert_eq!(store.names(), [""; 0]);
    store.pool.assert_all_back();
}

#[test]
fn what_a_killed_copy_leaves_is_seen_and_collected() {
    let store = or_skip!(Store::with(PAGES * 6));
    let model = models::demo("900M", "Q8_0");
    for signal in ["KILL", "INT"] {
        let mut copy = on(&store, ["load", "--as-file"]);
        let mut child = copy
            .arg(&model)
            .stderr(Stdio::null())
            .spawn()
            .expect("it can be started");
        assert!(
            wait_for(Duration::from_secs(20), || store.pages() > 2),
            "it never began"
        );
        let (_, unfinished) = (run(on(&store, ["gc"]), 0), json(&store, &["list"], 0));
        assert_eq!(unfinished["unfinished"], 1, "one that lives is left alone");
        let pid = child.id().to_string();
        let killed = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(killed.expect("kill is there").success());
        let status = child.wait().expect("it is ours");
        if signal == "INT" {
            assert_eq!(status.code(), Some(130));
        } else {
            assert_eq!(json(&store, &["list"], 0)["unfinished"], 1);
            let gone = json(&store, &["gc"], 0);
            assert_eq!(gone["dropped"][0]["name"], ".demo.gguf.filling");
        }
        assert_eq!(store.names(), [""; 0]);
        store.pool.assert_all_back();
    }
}

#[test]
fn a_model_in_use_is_dropped_by_force_alone_and_goes_on() {
    let store = or_skip!(Store::with(PAGES * 2));
    let launch = Launch::ours()
        .model(&small())
        .hugepages("require")
        .args(["--hugepage-store", store.arg()]);
    let server = launch.start();
    let list = json(&store, &["list"], 0);
    let image = &images(&list)[0];
    assert_eq!(
        (&image["is_attached"], &image["attached"][0]["name"]),
        (&true.into(), &"llama-server".into())
    );
    let before = store.names();
    let (_, said) = run(on(&store, ["drop", "--all"]), 1);
    assert!(
        said.contains("by llama-server (pid ") && said.contains("hint: --force"),
        "{said}"
    );
    let kept = json(&store, &["gc", "--older-than", "0s"], 0);
    assert_eq!(kept["dropped"], serde_json::json!([]));
    assert_eq!(store.names(), before);
    run(on(&store, ["drop", "--all", "--force"]), 0);
    assert_eq!(store.names(), [""; 0]);
    server.assert_answers();
    drop(server);
    store.pool.assert_all_back();
}

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

#[test]
fn a_model_that_has_changed_is_stale_and_collected() {
    let store = or_skip!(Store::with(PAGES));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let model = models::copy_to(dir.path(), &small());
    run(load(&store, &model), 0);
    assert_eq!(json(&store, &["gc"], 0)["dropped"], serde_json::json!([]));
    fs::remove_file(&model).expect("it is ours");
    assert_eq!(images(&json(&store, &["list"], 0))[0]["is_stale"], true);
    let would = json(&store, &["gc", "--dry-run"], 0);
    assert_eq!((&would["dry_run"], store.images().len()), (&true.into(), 1));
    let (said, _) = run(on(&store, ["gc", "--stale"]), 0);
    assert!(said.contains("its model is gone or has changed"), "{said}");
    store.pool.assert_all_back();
}

#[test]
fn a_need_is_met_with_what_was_not_used_for_longest_or_is_3() {
    let store = or_skip!(Store::with(PAGES));
    run(load(&store, &small()), 0);
    let free = PAGES - store.pages();
    let nothing = json(&store, &["gc", "--need", &free.to_string()], 0);
    assert_eq!(nothing["dropped"], serde_json::json!([]));
    let (_, said) = run(on(&store, ["gc", "--need", "100T"]), 3);
    assert!(
        said.contains("hint: ") && store.images().len() == 1,
        "{said}"
    );
    let some = json(&store, &["gc", "--need", &(free + 1).to_string()], 0);
    assert_eq!(some["dropped"].as_array().map(Vec::len), Some(1));
    store.pool.assert_all_back();
}

const NAME: &str = "evil.weights-0123456789abcdef.resident";

/// What somebody may have put there under the name of an image. No link: this kernel's hugetlbfs has none.
fn hostile(store: &Store, what: &str) {
    let path = store.path().join(NAME);
    let sized = |bytes| {
        let file = File::create(&path).expect("it is ours");
        file.set_len(bytes).expect("a sparse file takes no page");
    };
    match what {
        "pipe" => mkfifo(&path),
        "folder" => fs::create_dir(&path).expect("it is ours"),
        "empty" => sized(0),
        "hole" => sized(4 * PAGE),
        "huge" => sized(1 << 50),
        "group" => {
            sized(2 * PAGE);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).expect("it is ours");
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
    assert!(made.expect("mkfifo is there").success());
}

/// Runs it, and ends the test if that takes too long: who opens a pipe may wait forever.
fn run_in_time(mut command: Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tool can be started");
    let ended = wait_for(Duration::from_secs(30), || {
        child.try_wait().expect("it is ours").is_some()
    });
    if !ended {
        child.kill().expect("it is ours");
    }
    let output = child.wait_with_output().expect("it is ours");
    assert!(ended, "{command:?} stands still: {output:?}");
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
        // One of another user is that user's; a folder is not removed as a file.
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
    let length = fs::metadata(&image).expect("it is there").len();
    // The last 4 KiB are the header: a bit of each of its parts.
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
        .expect("it is ours");
    let list = json(&store, &["list"], 0);
    assert_ne!(images(&list)[0]["problem"], Value::Null);
    let gone = json(&store, &["gc"], 0);
    assert_eq!(gone["dropped"].as_array().map(Vec::len), Some(1));
    store.pool.assert_all_back();
}

#[test]
fn files_of_others_are_counted_and_stay() {
    let store = or_skip!(Store::with(4));
    let file = |name: &str| File::create(store.path().join(name)).expect("it is ours");
    for name in ["notes.txt", ".hidden", "short.resident", "a.gguf.bak"] {
        file(name).set_len(PAGE).expect("a sparse file");
    }
    fs::create_dir(store.path().join("folder.gguf")).expect("it is ours");
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

/// A place for a mount, unmounted however the test ends.
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
    let data = fs::metadata(place.path()).expect("it is mounted");
    assert_eq!(data.permissions().mode() & 0o7777, 0o750);
    let (said, _) = run(place.mount(&args), 0);
    assert!(said.contains("is mounted already"), "{said}");
    let (_, said) = run(place.mount(&["--limit", "7M"]), 1);
    assert!(
        said.contains("size=6291456") && said.contains("hint: "),
        "{said}"
    );
    run(place.unmount(&[]), 0);
    assert!(!place.path().exists());
    let (_, said) = run(place.unmount(&[]), 1);
    assert!(said.contains("no hugetlbfs is mounted"), "{said}");
}

#[test]
fn a_mount_hides_no_files_and_leaves_no_folder_when_it_fails() {
    let _pool = or_skip!(Pool::with(4));
    let place = Place::new();
    fs::create_dir_all(place.path()).expect("it is ours");
    fs::write(place.path().join("file"), "").expect("it is ours");
    let (_, said) = run(place.mount(&[]), 1);
    assert!(said.contains("which a mount would hide"), "{said}");
    fs::remove_dir_all(place.0.path().join("a")).expect("it is ours");
    // More than the pool has, at once.
    let (_, said) = run(place.mount(&["--min", "64M"]), 3);
    assert!(said.contains("hint: "), "{said}");
    assert!(!place.0.path().join("a").exists());
    // What the pool has is taken, and is back afterwards.
    let before = Counts::read();
    run(place.mount(&["--min", "4M"]), 0);
    assert_eq!(Counts::read().reserved, before.reserved + 2);
    run(place.unmount(&[]), 0);
    assert_eq!(Counts::read(), before);
    symlink("/etc", place.0.path().join("a/b")).expect("it is ours");
    let (_, said) = run(place.mount(&[]), 1);
    assert!(said.contains("is no folder"), "{said}");
    fs::remove_file(place.path()).expect("it is ours");
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
    File::create(&theirs).expect("it is ours");
    let (_, said) = run(place.unmount(&["--force"]), 1);
    assert!(said.contains("`notes.txt`"), "{said}");
    assert!(place.path().join("demo.gguf").exists());
    fs::remove_file(theirs).expect("it is ours");
    run(place.unmount(&["--force"]), 0);
    assert!(!place.path().exists());
    pool.assert_all_back();
}

#[test]
fn who_may_not_mount_is_told_what_to_run() {
    if !is_root() {
        return skip("root is needed to be somebody else");
    }
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let copy = dir.path().join("hugepages");
    fs::copy(programs::hugepages(), &copy).expect("there is space");
    for path in [dir.path(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }
    let place = dir.path().join("store");
    fs::create_dir(&place).expect("it is ours");
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["store", "mount", "--size", "2M"])
        .arg(&place);
    let (_, said) = run(command, 1);
    assert!(said.contains("hint: sudo hugepages store mount"), "{said}");
}
