//! `hugepages store` against this machine's pool, its kernel and real servers. `resident.rs` tests how a server uses a store.

mod copy;
mod hostile;
mod identity;
mod mount;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::pool::{Counts, PAGE};
use crate::support::server::Launch;
use crate::support::store::Store;
use crate::support::{is_root, models, or_skip, programs, skip, wait_for};

/// Enough pages for the images of the small demo model and their manifests.
const PAGES: u64 = 80;

/// `hugepages store ARGS`
fn tool<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(programs::hugepages());
    command.arg("store").args(args).stdin(Stdio::null());
    command.env_remove("LLAMA_ARG_HUGEPAGE_STORE");
    command
}

/// `hugepages store ARGS` for one store.
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
    assert!(said.contains(" MiB in "), "{said}");
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
            .expect("the model exists")
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

    let status = Command::new(programs::hugepages())
        .args(["status", "--no-ask"])
        // The table must not wrap paths.
        .env("COLUMNS", "400")
        .output();
    let status = String::from_utf8(status.expect("the tool can be started").stdout).expect("text");
    assert!(
        status.contains("of /") && status.contains("demo.gguf"),
        "{status}"
    );

    let verified = json(&store, &["verify"], 0);
    assert_eq!(verified["images"][0]["result"], "equal");
    // A second load does nothing and takes no page.
    run(load(&store, &model), 0);
    assert_eq!(store.pages(), held);

    // The name of the model in the table.
    let shown = model.canonicalize().expect("the model exists");
    let shown = shown.with_extension("");
    assert!(
        json(
            &store,
            &["verify", shown.to_str().expect("a plain path")],
            0
        )["images"][0]
            .is_object()
    );

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
        // `--pool` must precede the server's arguments.
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

/// The number of server processes whose arguments name the store.
fn servers_of(store: &Store) -> usize {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
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
            let killed = killed.expect("kill is installed").success();
            let status = child.wait().expect("the child is ours");
            // The load may have ended before the signal.
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

/// `TOOL store ARGS` as a user without rights.
fn as_nobody(tool: &Path, store: &Store, args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(tool)
        .arg("store")
        .args(args)
        .env("LLAMA_ARG_HUGEPAGE_STORE", store.path())
        .stdin(Stdio::null());
    command
}

/// A folder with copies of the tool and a server that every user can run.
fn copies_of_the_programs() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let anybody = fs::Permissions::from_mode(0o755);
    fs::set_permissions(dir.path(), anybody).expect("the folder is ours");
    for program in [programs::hugepages(), programs::server()] {
        programs::copy_to(dir.path(), &program);
    }
    dir
}

#[test]
fn a_user_without_rights_has_a_store_of_its_own() {
    if !is_root() {
        return skip("only root can become another user");
    }
    let store = or_skip!(Store::with_options(PAGES, "uid=65534,mode=0755"));
    let dir = copies_of_the_programs();
    let model = models::copy_to(dir.path(), &small());
    let as_nobody = |args: &[&str]| as_nobody(&dir.path().join("hugepages"), &store, args);
    run(
        as_nobody(&["load", model.to_str().expect("a plain path")]),
        0,
    );
    let (list, _) = run(as_nobody(&["list", "--format", "json"]), 0);
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let image = &images(&list)[0];
    assert_eq!(
        (&image["problem"], &image["uid"]),
        (&Value::Null, &65534.into())
    );
    assert!(
        list["unread"].as_u64() > Some(0),
        "the maps of other processes: {list}"
    );
    run(as_nobody(&["verify"]), 0);
    // Root sees the owner of the image, but does not validate it for that owner.
    let (table, _) = run(on(&store, ["list"]), 0);
    assert!(table.contains("live, of user 65534"), "{table}");
    run(as_nobody(&["gc"]), 0);
    assert_eq!(store.images().len(), 1);
    run(as_nobody(&["drop", "demo"]), 0);
    store.pool.assert_all_back();
}

#[test]
fn the_plan_of_a_user_who_may_not_fill_the_store_fails_as_the_load_does() {
    if !is_root() {
        return skip("only root can become another user");
    }
    let store = or_skip!(Store::with(PAGES));
    let dir = copies_of_the_programs();
    let model = models::copy_to(dir.path(), &small());
    let as_nobody = |line: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(dir.path().join(line[0]))
            .args(&line[1..])
            .args(["--no-repack", "--ctx-size", "512", "--hugepages"])
            .args(["--hugepage-store", store.arg(), "--model"])
            .arg(&model)
            .stdin(Stdio::null());
        command
    };
    let words = |line: &[&str]| {
        let (_, said) = run(as_nobody(line), 1);
        ["cannot lock ", "hint: "].map(|start| {
            let of = said.lines().find_map(|line| line.split_once(start));
            of.unwrap_or_else(|| panic!("{said}")).1.to_owned()
        })
    };
    let plan = ["hugepages", "plan", "--"];
    assert_eq!(words(&plan), words(&["llama-server", "--port", "0"]));
    // Root may.
    run(load(&store, &model), 0);
    run(as_nobody(&plan), 0);
    run(on(&store, ["drop", "--all"]), 0);
    store.pool.assert_all_back();
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
        said.contains("by llama-server (pid ") && said.contains("use --force"),
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
fn a_model_that_has_changed_is_stale_and_collected() {
    let store = or_skip!(Store::with(PAGES));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let model = models::copy_to(dir.path(), &small());
    run(load(&store, &model), 0);
    assert_eq!(json(&store, &["gc"], 0)["dropped"], serde_json::json!([]));
    fs::remove_file(&model).expect("the file is ours");
    assert_eq!(images(&json(&store, &["list"], 0))[0]["is_stale"], true);
    let would = json(&store, &["gc", "--dry-run"], 0);
    assert_eq!((&would["dry_run"], store.images().len()), (&true.into(), 1));
    let (said, _) = run(on(&store, ["gc", "--stale"]), 0);
    assert!(said.contains("its model file changed"), "{said}");
    store.pool.assert_all_back();
}

#[test]
fn a_model_whose_name_is_no_utf8_is_planned_loaded_listed_and_dropped() {
    let store = or_skip!(Store::with(PAGES));
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let copy = models::copy_to(dir.path(), &small());
    let model = dir.path().join(OsStr::from_bytes(b"mod\xe8le.gguf"));
    fs::rename(copy, &model).expect("the same folder");
    let mut plan = Command::new(programs::hugepages());
    plan.args(["plan", "--", "--no-repack", "-c", "512", "-m"]);
    let output = plan.arg(&model).output().expect("the tool can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("weights"), "{output:?}");
    for name in [
        model.as_os_str(),
        OsStr::from_bytes(b"mod\xe8le"),
        OsStr::from_bytes(b"mod\xe8le.gguf"),
    ] {
        run(load(&store, &model), 0);
        let list = json(&store, &["list"], 0);
        let source = images(&list)[0]["source"].as_str().map(str::to_owned);
        assert!(
            source.is_some_and(|source| source.ends_with("mod\u{fffd}le.gguf")),
            "{list}"
        );
        let verify = [OsStr::new("verify"), name];
        assert!(run(on(&store, verify), 0).0.contains(": equal"), "{name:?}");
        run(on(&store, [OsStr::new("drop"), name]), 0);
        assert_eq!(store.images().len(), 0);
    }
    store.pool.assert_all_back();
}

/// Another container has the store without the models, and another user has no right to their folder.
#[test]
fn a_model_file_that_cannot_be_seen_is_not_a_removed_one() {
    if !is_root() {
        return skip("only root can hide a folder");
    }
    let store = or_skip!(Store::with(PAGES));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let model = models::copy_to(dir.path(), &small());
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("ours");
    run(load(&store, &model), 0);
    let programs = copies_of_the_programs();
    let tool = programs.path().join("hugepages");
    let elsewhere = |args: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec"]);
        command.arg(format!(
            r#"mount -t tmpfs none "$1"; "$2" store {args} --format json"#
        ));
        command.arg("sh").arg(dir.path()).arg(&tool);
        command.env("LLAMA_ARG_HUGEPAGE_STORE", store.path());
        let (text, _) = run(command, 0);
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    let as_nobody = |args: &[&str]| {
        let (text, _) = run(as_nobody(&tool, &store, args), 0);
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    for list in [elsewhere("list"), as_nobody(&["list", "--format", "json"])] {
        let image = &images(&list)[0];
        let seen = (&image["is_stale"], &image["is_hidden"]);
        assert_eq!(seen, (&false.into(), &true.into()), "{list}");
    }
    for gc in ["gc", "gc --stale"] {
        let kept = elsewhere(gc);
        assert_eq!(kept["dropped"], serde_json::json!([]), "{gc}");
    }
    assert_eq!(store.images().len(), 1);
    // Ages are whole seconds.
    let is_dropped = || elsewhere("gc --older-than 0s")["dropped"] != serde_json::json!([]);
    assert!(wait_for(Duration::from_secs(10), is_dropped));
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

/// In the cache of the Hugging Face hub, shards are links to files that are named after their hashes.
#[test]
fn shards_behind_links_are_one_model() {
    let store = or_skip!(Store::with(PAGES));
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let [blobs, snapshot] = ["blobs", "snapshot"].map(|name| dir.path().join(name));
    for folder in [&blobs, &snapshot] {
        fs::create_dir(folder).expect("the folder is ours");
    }
    let first = models::demo_in_shards("100M", "Q8_0", 3);
    for (hash, index) in ["9f", "07", "c3"].into_iter().zip(1..) {
        let name = format!("demo-{index:05}-of-00003.gguf");
        fs::copy(first.with_file_name(&name), blobs.join(hash)).expect("the disk has space");
        std::os::unix::fs::symlink(blobs.join(hash), snapshot.join(name))
            .expect("the folder is ours");
    }
    let model = snapshot.join("demo-00001-of-00003.gguf");
    let mut command = on(&store, ["load", "--format", "json"]);
    command.arg(&model).args(["--", "--no-repack"]);
    let (said, _) = run(command, 0);
    let loaded: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(loaded["loaded"][0]["bytes"], store.pages() * PAGE, "{said}");
    assert_eq!(store.images().len(), 3);

    // The list shows the names of the user.
    let list = json(&store, &["list"], 0);
    let listed = list["models"].as_array().expect("a list");
    assert_eq!(listed.len(), 1, "{list}");
    assert_eq!(listed[0]["name"], "demo");
    let folder = listed[0]["folder"].as_str().expect("a plain path");
    assert_eq!(Path::new(folder), snapshot);

    // A link that leads to another file has another content.
    let other = blobs.join("other");
    fs::copy(models::demo("20M", "Q8_0"), &other).expect("the disk has space");
    fs::remove_file(&model).expect("the folder is ours");
    std::os::unix::fs::symlink(&other, &model).expect("the folder is ours");
    let list = json(&store, &["list"], 0);
    let stale = |list: &Value| {
        images(list)
            .iter()
            .filter(|it| it["is_stale"] == true)
            .count()
    };
    assert_eq!(stale(&list), 1, "{list}");
    fs::remove_file(&model).expect("the folder is ours");
    std::os::unix::fs::symlink(blobs.join("9f"), &model).expect("the folder is ours");
    assert_eq!(stale(&json(&store, &["list"], 0)), 0);

    let mut command = on(&store, ["drop"]);
    command.arg(&model);
    run(command, 0);
    assert_eq!(store.images().len(), 0, "{:?}", store.names());
    store.assert_only_files_hold_pages();
}
