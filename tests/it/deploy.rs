//! The limits of containers that `hugepages plan` prints, and the files in `deploy/compose/`.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use crate::support::cgroup::MemoryCgroup;
use crate::support::pool::{self, PAGE, Pool};
use crate::support::server::Launch;
use crate::support::store::Store;
use crate::support::weights::Weights::{Mapped, Repacked};
use crate::support::{models, or_skip, programs, python};

const FORMATS: [&str; 2] = ["helm", "env"];
pub const SERVERS: u64 = 3;

pub fn plan<A: AsRef<OsStr>>(format: &str, arguments: impl IntoIterator<Item = A>) -> Output {
    let mut command = Command::new(programs::hugepages());
    command
        .args(["plan", "--format", format, "--server"])
        .arg(programs::server())
        .arg("--")
        .args(arguments);
    pool::alone(|| command.output()).expect("the tool can be started")
}

fn printed(format: &str, launch: &Launch) -> String {
    let output = plan(format, launch.arguments());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The lines after the comment.
fn without_comment(text: &str) -> &str {
    let (comment, rest) = text.split_once('\n').expect("several lines");
    assert!(comment.starts_with("# hugepages plan --format "), "{text}");
    rest
}

/// The variables of `--format env`.
pub fn limits(launch: &Launch) -> BTreeMap<String, u64> {
    let text = printed("env", launch);
    let lines = without_comment(&text).lines();
    let values = lines.map(|line| line.split_once('=').expect("NAME=BYTES"));
    values
        .map(|(name, bytes)| (name.to_owned(), bytes.parse().expect("bytes")))
        .collect()
}

fn in_cgroup(cgroup: &MemoryCgroup, program: &Path) -> Command {
    let mut command = Command::new("sh");
    let enter = r#"echo $$ > "$1/cgroup.procs" && shift && exec "$@""#;
    command
        .args(["-c", enter, "sh"])
        .arg(&cgroup.dir)
        .arg(program);
    command
}

#[test]
fn a_loader_and_three_servers_run_within_the_printed_limits() {
    let shards = models::demo_in_shards("100M", "Q8_0", 3);
    for (weights, model) in [
        (Mapped, Mapped.demo()),
        (Mapped, shards),
        (Repacked, Repacked.demo()),
    ] {
        let launch = weights.with(Launch::ours(), &model);
        let launch = launch.args(["--cache-ram", "64"]);
        let limits = limits(&launch);
        let pages = |name: &str| limits[&format!("{name}_HUGEPAGES_2M")] / PAGE;
        let own = pages("SERVER");
        let mut store = or_skip!(Store::with(pages("LOADER") + SERVERS * own));

        let cgroup = or_skip!(MemoryCgroup::with_limit(limits["LOADER_MEMORY"]));
        let loaded = in_cgroup(&cgroup, &programs::hugepages())
            .args(["store", "load", "--store", store.arg(), "--server"])
            .arg(programs::server())
            .arg(&model)
            .arg("--")
            .args(launch.arguments())
            .output()
            .expect("sh can be started");
        assert!(loaded.status.success(), "{loaded:?}");
        let kept = store.pages();
        println!("{}: {kept} pages, {limits:?}", model.display());
        // The plan does not list which pages of a file are repacked, so one for the manifest may be counted twice.
        let most = kept + u64::from(weights == Repacked);
        assert!((kept..=most).contains(&pages("LOADER")), "{limits:?}");
        drop(cgroup);

        let cgroups: Vec<_> = (0..SERVERS)
            .map(|_| MemoryCgroup::with_limit(limits["SERVER_MEMORY"]).expect("as above"))
            .collect();
        let with_store = launch
            .clone()
            .hugepages("require")
            .args(["--hugepage-store", store.arg()]);
        let servers: Vec<_> = cgroups
            .iter()
            .map(|cgroup| with_store.clone().in_cgroup(&cgroup.dir).start())
            .collect();
        for server in &servers {
            server.assert_answers();
        }
        assert_eq!(store.pool.taken(), kept + SERVERS * own, "{limits:?}");
        drop(servers);
        drop(cgroups);
        store.empty();
        store.pool.assert_all_back();

        store.pool.set(pages("ALONE"));
        let cgroup = MemoryCgroup::with_limit(limits["ALONE_MEMORY"]).expect("as above");
        let alone = launch.hugepages("require").in_cgroup(&cgroup.dir).start();
        alone.assert_answers();
        assert_eq!(store.pool.taken(), pages("ALONE"), "{limits:?}");
        drop(alone);
        store.pool.assert_all_back();
    }
}

#[test]
fn the_limits_depend_neither_on_the_pool_nor_on_policy_and_store() {
    let launch = Launch::ours().model(&models::demo("20M", "Q8_0"));
    let mut pool = or_skip!(Pool::with(0));
    for format in FORMATS {
        let expected = printed(format, &launch);
        let expected = without_comment(&expected);
        pool.set(40);
        for args in [
            vec![],
            vec!["--hugepage-policy", "prefer"],
            vec!["--hugepage-store", "/no/such/store"],
            vec!["--hugepage-size", "2M"],
        ] {
            let text = printed(format, &launch.clone().args(&args));
            assert_eq!(without_comment(&text), expected, "{args:?}");
        }
        pool.set(0);
    }
    pool.assert_all_back();
}

#[test]
fn helm_values_are_the_limits_in_units_of_kubernetes() {
    let launch = Launch::ours().model(&models::demo("20M", "Q8_0"));
    let limits = limits(&launch);
    let sections = ["loader", "server", "alone"].map(|name| {
        let mib = |what: &str| limits[&format!("{}_{what}", name.to_uppercase())] >> 20;
        format!(
            "  {name}:\n    hugepages-2Mi: {}Mi\n    memory: {}Mi\n",
            mib("HUGEPAGES_2M"),
            mib("MEMORY")
        )
    });
    let expected = format!("plan:\n{}", sections.concat());
    assert_eq!(without_comment(&printed("helm", &launch)), expected);
}

#[test]
fn a_plan_without_a_bound_is_refused_with_2_and_a_hint() {
    let model = models::demo("20M", "Q8_0");
    let dir = model.parent().expect("a folder").to_owned();
    let model = |args: &[&str]| -> Vec<PathBuf> {
        let args = args.iter().map(PathBuf::from);
        ["-m".into(), model.clone()]
            .into_iter()
            .chain(args)
            .collect()
    };
    let router = vec!["--models-dir".into(), dir];
    for (args, cause, hint) in [
        (model(&[]), "the context depends on", "hint: add -c N"),
        (router, "the context depends on", "hint: add -c N"),
        (
            model(&["-c", "512", "--hugepage-size", "thp"]),
            "transparent huge pages have no limit",
            "hint: use --hugepage-size",
        ),
        (
            model(&["-c", "512", "--cache-ram", "-1"]),
            "the prompt cache has no limit",
            "hint: use --cache-ram",
        ),
    ] {
        for format in FORMATS {
            let output = plan(format, &args);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
            assert!(said.contains(cause) && said.contains(hint), "{said}");
            assert!(output.stdout.is_empty(), "{output:?}");
        }
    }
}

//
// deploy/compose
//

fn compose() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/compose")
}

/// A copy whose `.env` is the example with the lines of a plan.
pub fn copy_of_compose(plan: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    for name in ["compose.yaml", "lib.sh"] {
        fs::copy(compose().join(name), dir.path().join(name)).expect("the file exists");
    }
    for name in ["check", "switch"] {
        programs::copy_to(dir.path(), &compose().join(name));
    }
    let example = fs::read_to_string(compose().join(".env.example")).expect("the file exists");
    fs::write(dir.path().join(".env"), example + plan).expect("just made");
    dir
}

#[test]
fn podman_compose_accepts_the_compose_file() {
    let compose = or_skip!(python::podman_compose());
    let dir = copy_of_compose("LOADER_MEMORY=1\nSERVER_MEMORY=1\nALONE_MEMORY=1\n");
    let output = Command::new(compose)
        // It asks for the version of podman otherwise, and podman is not needed to read a file.
        .args(["--dry-run", "--profile", "router", "--profile", "rpc"])
        .arg("config")
        .current_dir(dir.path())
        .output()
        .expect("just found");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    for service in ["loader:", "server-1:", "server-3:", "router:", "worker-1:"] {
        assert!(text.contains(service), "{text}");
    }
}

#[test]
fn the_check_of_a_host_names_what_is_missing_and_the_command() {
    let pages = u64::MAX / PAGE / 8;
    let bytes = pages * PAGE;
    let dir = copy_of_compose(&format!(
        "LOADER_HUGEPAGES_2M={bytes}\nSERVER_HUGEPAGES_2M={PAGE}\nLOADER_MEMORY=1\nSERVER_MEMORY=1\nALONE_MEMORY=1\n\
         STORE=/no/such/store\nMODELS=/no/such/folder\nMODEL=a.gguf\n"
    ));
    let output = Command::new(dir.path().join("check"))
        .output()
        .expect("the script can be started");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    for line in [
        "missing: hugetlbfs at /no/such/store",
        "sudo hugepages store mount",
        "missing: /no/such/folder/a.gguf",
        "pages of 2M",
        "sudo hugepages pool reserve",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

/// Runs `switch` with a `docker` that only notes its calls, and plans `missing` pages of weights. Returns the calls.
fn switched(dir: &Path, missing: u64) -> (Output, String) {
    let calls = dir.join("calls");
    fs::write(&calls, "").expect("the folder is ours");
    let docker = format!(
        r#"#!/bin/sh
case "$*" in
    *version) ;;
    *"--format env"*) printf 'LOADER_MEMORY=7\nSERVER_MEMORY=8\n' ;;
    *"--format json"*)
        printf '"kind": "weights",\n"pages": {missing},\n"kind": "kv",\n"pages": 3,\n'
        exit 3
        ;;
    *) echo "$MODEL $LOADER_MEMORY $*" >> "{}" ;;
esac
"#,
        calls.display()
    );
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).expect("the folder is ours");
    fs::write(dir.join("docker"), docker).expect("the folder is ours");
    programs::copy_to(&bin, &dir.join("docker"));
    let path = env::var("PATH").expect("a PATH");
    let output = Command::new(dir.join("switch"))
        .arg("next.gguf")
        .env("PATH", format!("{}:{path}", bin.display()))
        .output()
        .expect("the script can be started");
    let calls = fs::read_to_string(&calls).expect("just made");
    (output, calls)
}

/// Answers every request with 200.
fn healthy_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("just bound").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    port
}

fn copy_with_two_models() -> tempfile::TempDir {
    let port = healthy_port();
    let dir = copy_of_compose(&format!(
        "MODEL=a.gguf\nLOADER_MEMORY=1\nPORT_1={port}\nPORT_2={port}\nPORT_3={port}\n"
    ));
    let env = dir.path().join(".env");
    let text = fs::read_to_string(&env).expect("just made");
    fs::write(env, format!("{text}MODELS={}\n", dir.path().display())).expect("just made");
    for model in ["a.gguf", "next.gguf"] {
        fs::write(dir.path().join(model), "").expect("just made");
    }
    dir
}

#[test]
fn a_switch_without_room_changes_nothing() {
    let dir = copy_with_two_models();
    let before = fs::read_to_string(dir.path().join(".env")).expect("just made");
    let (output, calls) = switched(dir.path(), 1 << 40);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("nothing was changed"), "{said}");
    assert!(
        said.contains("hint: sudo hugepages pool reserve "),
        "{said}"
    );
    assert_eq!(calls, "");
    let after = fs::read_to_string(dir.path().join(".env")).expect("just made");
    assert_eq!(after, before);
}

#[test]
fn a_switch_loads_the_model_and_restarts_one_server_after_the_other() {
    let dir = copy_with_two_models();
    let (output, calls) = switched(dir.path(), 0);
    assert!(output.status.success(), "{output:?}");
    let run = "next.gguf 7 compose run --rm --no-deps -T loader store";
    let up = "next.gguf 7 compose up --detach --no-deps --force-recreate server";
    assert_eq!(
        calls,
        format!(
            "{run} load /models/next.gguf\n{up}-1\n{up}-2\n{up}-3\n{run} drop /models/a.gguf\n"
        )
    );
    let settings = fs::read_to_string(dir.path().join(".env")).expect("just made");
    let line = |line: &str| settings.lines().filter(|it| *it == line).count();
    assert_eq!(
        [
            line("MODEL=next.gguf"),
            line("SERVER_MEMORY=8"),
            line("MODEL=a.gguf"),
            line("CTX_SIZE=8192")
        ],
        [1, 1, 0, 1]
    );
}
