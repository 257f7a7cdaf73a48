//! `hugepages store load --as-file` writes a complete plain file, or nothing.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{PAGES, json, on, run, small};
use crate::support::cgroup::Cgroup;
use crate::support::pool::PAGE;
use crate::support::server::Launch;
use crate::support::store::Store;
use crate::support::{models, or_skip, programs, wait_for};

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
        .expect("the file exists");
    File::open(&model)
        .and_then(|mut f| f.read_to_end(&mut theirs))
        .expect("the model exists");
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
    assert!(said.contains("is already in the store\nhint: "), "{said}");

    let server = Launch::ours().model(&file).start();
    server.assert_answers();
    let list = json(&store, &["list"], 0);
    let who = &list["files"][0]["attached"][0]["name"];
    assert_eq!(who, "llama-server");
    let (_, said) = run(on(&store, ["drop", "demo"]), 1);
    assert!(
        said.contains("in use by llama-server (pid ") && said.contains("use --force"),
        "{said}"
    );
    run(on(&store, ["drop", "demo", "--force"]), 0);
    server.assert_answers();
    drop(server);
    store.pool.assert_all_back();
}

#[test]
fn a_copy_that_does_not_fit_leaves_nothing() {
    // First the pool is too small, then the limit of the mount.
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
            .expect("the tool can be started");
        assert!(
            wait_for(Duration::from_secs(20), || store.pages() > 2),
            "the copy never began"
        );
        let (_, unfinished) = (run(on(&store, ["gc"]), 0), json(&store, &["list"], 0));
        assert_eq!(
            unfinished["unfinished"], 1,
            "gc leaves a running copy alone"
        );
        let pid = child.id().to_string();
        let killed = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(killed.expect("kill is installed").success());
        let status = child.wait().expect("the child is ours");
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
