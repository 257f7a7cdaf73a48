//! `hugepages status` and `hugepages doctor` against recorded kernels and against this one.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::ptr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use serde_json::Value;

use crate::support::kernels::{self, Kernel};
use crate::support::models;
use crate::support::pool::{PAGE, Pool};
use crate::support::server::Launch;
use crate::support::{is_root, or_skip, programs, skip, snapshot, wait_for};

fn tool(args: &[&str]) -> assert_cmd::Command {
    let mut command = assert_cmd::Command::new(programs::hugepages());
    command
        .args(args)
        .env_remove("NO_COLOR")
        .env_remove("COLUMNS")
        .env_remove("LLAMA_ARG_MODEL")
        .env_remove("LLAMA_ARG_NUMA");
    command
}

fn on(kernel: &Kernel, args: &[&str]) -> assert_cmd::Command {
    let mut command = tool(args);
    command.arg("--root").arg(kernel.path());
    command
}

fn stdout(command: &mut assert_cmd::Command) -> String {
    let output = command.output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(command: &mut assert_cmd::Command) -> Value {
    serde_json::from_str(&stdout(command)).unwrap()
}

fn as_recorded(command: &str) {
    for (name, kernel) in kernels::all() {
        for columns in ["80", "120"] {
            let text = stdout(on(&kernel, &[command]).env("COLUMNS", columns));
            assert!(!text.contains('\x1b'), "escapes through a pipe: {text:?}");
            snapshot::assert(&format!("{command}/{name}-{columns}.txt"), &text);
        }
        let text = stdout(&mut on(&kernel, &[command, "--format", "json"]));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["schema"], 1);
        snapshot::assert(&format!("{command}/{name}.json"), &text);
    }
}

#[test]
fn status_of_each_recorded_kernel_is_as_it_was() {
    as_recorded("status");
}

#[test]
fn doctor_of_each_recorded_kernel_is_as_it_was() {
    as_recorded("doctor");
}

#[test]
fn a_limit_of_an_ancestor_is_the_tightest() {
    let status = json(&mut on(
        &kernels::container_v2(),
        &["status", "--format", "json"],
    ));
    let limits = status["limits"].as_array().unwrap();
    assert_eq!(limits.len(), 2, "{limits:?}");
    let tightest: Vec<&Value> = limits
        .iter()
        .filter(|limit| limit["tightest"] == true)
        .collect();
    assert_eq!(tightest.len(), 1);
    assert_eq!(
        (&tightest[0]["cgroup"], &tightest[0]["limit_bytes"]),
        (&"/pods".into(), &0.into())
    );
}

#[test]
fn a_container_of_version_1_has_the_limit_of_its_mount() {
    let status = json(&mut on(
        &kernels::container_v1(),
        &["status", "--format", "json"],
    ));
    let limits = status["limits"].as_array().unwrap();
    assert_eq!(
        limits.len(),
        1,
        "the tool leaves out cgroups without a limit: {limits:?}"
    );
    assert_eq!(limits[0]["limit_bytes"], 512 << 20);
}

#[test]
fn what_hvo_gives_back_is_measured() {
    let status = json(&mut on(
        &kernels::with_1g(),
        &["status", "--format", "json"],
    ));
    // 64 GiB need 262,144 pages for struct page. Each of 512 huge pages gave back 7 of them.
    assert_eq!(status["hvo"]["given_back_bytes"], 512 * 7 * 4096);
}

#[test]
fn doctor_exits_with_3_where_huge_pages_cannot_be_used() {
    for (kernel, code) in [
        (kernels::no_hugetlb(), 3),
        (kernels::with_1g(), 0),
        (kernels::two_nodes(), 0),
        (kernels::container_v2(), 3),
    ] {
        on(&kernel, &["doctor"]).assert().code(code);
    }
}

/// The finding of one check, or nothing. `numa`: the value of `--numa`, as the server's variable.
fn finding(kernel: &Kernel, id: &str, numa: Option<&str>) -> Value {
    let mut command = on(kernel, &["doctor", "--format", "json"]);
    if let Some(numa) = numa {
        command.env("LLAMA_ARG_NUMA", numa);
    }
    let found = json(&mut command);
    let findings = found["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["id"] == id);
    finding.cloned().unwrap_or_default()
}

#[test]
fn doctor_finds_several_nodes_without_numa() {
    let kernel = kernels::two_nodes();
    let without = finding(&kernel, "numa", None);
    assert_eq!(without["severity"], "note");
    assert_eq!(without["found"], "2 nodes with CPUs, and no --numa");
    let with = finding(&kernel, "numa", Some("distribute"));
    assert_eq!(with["severity"], "ok");
    assert_eq!(with["found"], "--numa distribute, on 2 nodes with CPUs");

    // With arguments, the command has them.
    let path = models::demo("100M", "Q8_0");
    let path = path.to_str().unwrap();
    let mut command = on(&kernel, &["doctor", "--format", "json"]);
    let found = json(command.args(["--", "-m", path]));
    let findings = found["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["id"] == "numa");
    let finding = finding.expect("the check applies to two nodes");
    assert_eq!(finding["severity"], "warning");
    assert_eq!(
        finding["command"],
        format!("llama-server -m {path} --numa distribute")
    );
}

#[test]
fn doctor_needs_no_numa_for_one_node_or_for_memory_without_cpus() {
    let kernel = kernels::two_nodes();
    kernel.write("sys/devices/system/node/node1/cpulist", "\n");
    assert_eq!(finding(&kernel, "numa", None), Value::Null);
    assert_eq!(finding(&kernels::only_2m(), "numa", None), Value::Null);
}

#[test]
fn doctor_finds_a_policy_that_interleaves_the_weights() {
    let kernel = kernels::two_nodes();
    let policy = |name: &str| {
        kernel.write(
            "proc/self/numa_maps",
            &format!("55d8e7200000 {name} file=/bin/hugepages mapped=3 N0=3 kernelpagesize_kB=4\n"),
        );
    };
    for harmless in ["default", "bind:1", "prefer:0"] {
        policy(harmless);
        assert_eq!(finding(&kernel, "numa-policy", None), Value::Null);
    }
    policy("interleave:0-1");
    for numa in [None, Some("distribute")] {
        let found = finding(&kernel, "numa-policy", numa);
        assert_eq!(found["severity"], "warning", "{numa:?}");
        assert_eq!(
            found["found"],
            "the memory policy of this process is interleave:0-1"
        );
    }
    // These bind the pages, whatever the policy.
    assert_eq!(
        finding(&kernel, "numa-policy", Some("isolate"))["severity"],
        "ok"
    );
}

#[test]
fn doctor_names_the_model_that_the_pool_is_too_small_for() {
    // The file fits into the pool, but the cache of a long context does not.
    let path = models::demo("100M", "Q8_0");
    let path = path.to_str().unwrap();
    let kernel = kernels::only_2m();
    let mut command = on(&kernel, &["doctor", "--format", "json"]);
    let found = json(command.args(["--", "-m", path, "-c", "262144", "-np", "1"]));
    let of = |id: &str| {
        let findings = found["findings"].as_array().unwrap();
        findings
            .iter()
            .find(|finding| finding["id"] == id)
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(found["usable"], false);
    assert_eq!(of("pool")["severity"], "problem", "{found}");
    assert_eq!(
        of("pool")["command"],
        format!("sudo hugepages pool reserve --for -- -m {path} -c 262144 -np 1")
    );
    assert_eq!(of("model-file")["severity"], "ok", "{found}");
    // The severity depends on the file system of target/.
    assert!(["ok", "warning"].contains(&of("model-direct-io")["severity"].as_str().unwrap()));
    assert!(
        of("model-mapping")["found"]
            .as_str()
            .unwrap()
            .contains("of a sample of 64 MiB")
    );
}

#[test]
fn a_model_that_is_not_there_is_a_problem() {
    let kernel = kernels::with_1g();
    let mut command = on(&kernel, &["doctor"]);
    let assert = command
        .args(["--", "--model", "/no/such/model.gguf"])
        .assert();
    assert
        .code(3)
        .stdout(predicates::str::contains("/no/such/model.gguf"));
}

#[test]
fn names_of_processes_cannot_steer_the_terminal() {
    let kernel = kernels::with_1g();
    kernel.write("proc/4242/cmdline", "llama-server\0-m\0\x1b[2J.gguf\0");
    assert!(!stdout(&mut on(&kernel, &["status"])).contains('\x1b'));
}

/// Not a test: the process that the test below looks for.
#[test]
#[ignore = "started by `who_maps_huge_pages_is_listed_with_its_bytes`"]
fn hold_three_huge_pages() {
    let size = usize::try_from(3 * PAGE).unwrap();
    let file = rustix::fs::memfd_create("status-test", MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)
        .unwrap();
    rustix::fs::ftruncate(&file, size as u64).unwrap();
    let (access, flags) = (
        ProtFlags::READ | ProtFlags::WRITE,
        MapFlags::SHARED | MapFlags::POPULATE,
    );
    // SAFETY: a new mapping at a place that the kernel chooses.
    unsafe { rustix::mm::mmap(ptr::null_mut(), size, access, flags, file.as_fd(), 0) }.unwrap();
    println!("holding");
    loop {
        std::thread::park();
    }
}

#[test]
fn who_maps_huge_pages_is_listed_with_its_bytes() {
    let pool = or_skip!(Pool::with(3));
    let mut holder = Command::new(env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "status::hold_three_huge_pages",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let held = lines.any(|line| line.unwrap().contains("holding"));
    let status = json(&mut tool(&["status", "--format", "json"]));
    // Another user may see the holder's bytes, but not their page size.
    let nobody = is_root().then(|| as_nobody(&["status", "--format", "json"]));
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(held);

    let find = |status: &Value| {
        let users = status["users"].as_array().unwrap();
        users
            .iter()
            .find(|user| user["pid"] == holder.id())
            .cloned()
            .unwrap()
    };
    let user = find(&status);
    assert_eq!(user["bytes"], 3 * PAGE);
    let share = &user["shares"][0];
    assert_eq!(share["page_size"], PAGE);
    assert_eq!(
        share["private_bytes"].as_u64().unwrap() + share["shared_bytes"].as_u64().unwrap(),
        3 * PAGE
    );
    let pools = status["pools"].as_array().unwrap();
    let of_2m = pools.iter().find(|pool| pool["page_size"] == PAGE).unwrap();
    assert_eq!(of_2m["usable"], 0);
    if let Some(nobody) = nobody {
        let nobody: Value = serde_json::from_str(&nobody).unwrap();
        let user = find(&nobody);
        assert_eq!(
            (&user["bytes"], &user["shares"]),
            (&(3 * PAGE).into(), &Value::Null)
        );
        let unread = nobody["unread"].as_array().unwrap();
        let about = format!("page sizes of process {}", holder.id());
        assert!(
            unread
                .iter()
                .any(|it| it["what"].as_str().unwrap().starts_with(&about)),
            "{unread:?}"
        );
    }
    pool.assert_all_back();
}

/// The tool's output for a user without rights.
fn as_nobody(args: &[&str]) -> String {
    // That user may not be able to enter the build folder.
    let dir = tempfile::tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), mode).unwrap();
    let program = programs::copy_to(dir.path(), &programs::hugepages());
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program)
        .args(args)
        .current_dir("/")
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn files_on_hugetlbfs_are_listed_with_the_bytes_that_they_hold() {
    if !is_root() {
        return skip("a mount needs root");
    }
    let pool = or_skip!(Pool::with(2));
    let script = r#"
        mount -t hugetlbfs -o pagesize=2M none "$1" && mkdir "$1/dir" && fallocate -l 4M "$1/dir/image" && "$2" status --format json
        status=$?; rm -r "$1/dir"; umount "$1"; exit $status"#;
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(programs::hugepages())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mounts = status["mounts"].as_array().unwrap();
    let ours = mounts
        .iter()
        .find(|mount| Path::new(mount["path"].as_str().unwrap()) == dir.path());
    let ours = ours.unwrap_or_else(|| panic!("{mounts:?}"));
    assert_eq!(
        (&ours["bytes"], &ours["page_size"]),
        (&(2 * PAGE).into(), &PAGE.into())
    );
    assert!(
        ours["files"][0]["path"]
            .as_str()
            .unwrap()
            .ends_with("/dir/image")
    );
    pool.assert_all_back();
}

#[test]
fn watch_through_a_pipe_prints_one_object_per_line() {
    let kernel = kernels::only_2m();
    let mut child = Command::new(programs::hugepages())
        .args(["status", "--format", "json", "--watch", "0.1", "--root"])
        .arg(kernel.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(3);
    for line in lines {
        let value: Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(value["schema"], 1);
    }
    // The reader is gone, so the tool must end by itself, and without an error.
    let mut code = None;
    wait_for(Duration::from_secs(5), || {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    let _ = child.kill();
    assert_eq!(code.and_then(|status| status.code()), Some(0));
}

/// Runs the tool on a terminal and presses a key after three frames. Returns the frames, and the text after them: the exit code, and
/// whether the terminal modes are the same as before.
fn on_a_terminal(keys: &[u8]) -> (String, String) {
    let kernel = kernels::only_2m();
    let script = format!(
        // Ctrl-C reaches the shell too, which must survive to print the code.
        "trap : INT; stty cols 80 rows 40; before=$(stty -g); {} status --watch 0.1 --root {}; echo \"code $?\"; [ \"$before\" = \"$(stty -g)\" ] && echo same modes",
        programs::hugepages().display(),
        kernel.path().display()
    );
    // `script` provides a terminal, and passes its input on.
    let mut child = Command::new("script")
        .args(["-qec", &script, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let drawn = Arc::new(Mutex::new(Vec::new()));
    let reader = std::thread::spawn({
        let drawn = Arc::clone(&drawn);
        move || {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut part) {
                drawn.lock().unwrap().extend_from_slice(&part[..count]);
            }
        }
    });
    let text = || String::from_utf8_lossy(&drawn.lock().unwrap()).into_owned();
    let three = wait_for(Duration::from_secs(10), || {
        text().matches("\x1b[H").count() > 2
    });
    stdin.write_all(keys).unwrap();
    let ended = wait_for(Duration::from_secs(10), || {
        child.try_wait().unwrap().is_some()
    });
    if !ended {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    reader.join().unwrap();
    let text = text();
    assert!(three, "fewer than three frames: {text:?}");
    assert!(ended, "the tool does not end: {text:?}");
    let (drawn, after) = text
        .rsplit_once("\x1b[?1049l")
        .expect("the first screen is back");
    (drawn.to_owned(), after.to_owned())
}

#[test]
fn q_and_ctrl_c_leave_a_clean_terminal() {
    for (key, code) in [(b"q", 0), (b"\x03", 130)] {
        let (drawn, after) = on_a_terminal(key);
        assert!(drawn.contains("\x1b[?1049h"), "{drawn:?}");
        assert!(
            drawn.ends_with("\x1b[?25h"),
            "the cursor is back: {drawn:?}"
        );
        assert_eq!(
            after.replace('\r', ""),
            format!("code {code}\nsame modes\n")
        );
    }
}

#[test]
fn a_server_is_listed_with_its_model_and_its_own_report() {
    let pool = or_skip!(Pool::with(150));
    let model = models::demo("100M", "Q8_0");
    let server = Launch::ours()
        .model(&model)
        .hugepages("require")
        .args(["--ctx-size", "512"])
        .start();
    let status = json(&mut tool(&["status", "--format", "json"]));
    let text = stdout(&mut tool(&["status"]));
    let quiet = json(&mut tool(&["status", "--format", "json", "--no-ask"]));
    let pid = server.pid();
    drop(server);

    let find = |status: &Value| {
        let users = status["users"].as_array().unwrap();
        users
            .iter()
            .find(|user| user["pid"] == pid)
            .cloned()
            .unwrap()
    };
    let server = &find(&status)["server"];
    assert_eq!(server["model"], model.to_str().unwrap());
    assert_eq!(server["report"]["policy"], "require", "{server}");
    assert!(text.contains("on huge pages"), "{text}");
    assert_eq!(find(&quiet)["server"]["no_report"], "not asked");
    pool.assert_all_back();
}

#[test]
fn a_closed_size_beside_an_open_one_is_no_problem() {
    let kernel = kernels::with_1g();
    kernel.write(
        "proc/self/mountinfo",
        "31 1 0:27 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
    );
    kernel.write("sys/fs/cgroup/hugetlb.1GB.max", "0\n");
    on(&kernel, &["doctor"]).assert().code(0);
    kernel.write("sys/fs/cgroup/hugetlb.2MB.max", "0\n");
    on(&kernel, &["doctor"]).assert().code(3);
}
