//! `hugepages plan` as a user runs it. `coverage.rs` checks, for every model and every set of arguments, that the plan equals the pages
//! that a load takes.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::fs::Mode;
use serde_json::Value;

use crate::support::pool::{Counts, PAGE, Pool};
use crate::support::server::Launch;
use crate::support::{
    is_root, is_running, models, or_skip, plan, programs, skip, snapshot, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn launch(model: &Path) -> Launch {
    Launch::ours().model(model)
}

fn human(launch: &Launch, columns: &str) -> Output {
    let mut command = std::process::Command::new(programs::hugepages());
    command
        .arg("plan")
        .arg("--")
        .args(launch.arguments())
        .env("COLUMNS", columns);
    command.output().expect("the tool can be started")
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is not a number"))
}

#[test]
fn a_plan_that_fits_is_0_and_one_that_does_not_is_3_with_the_way_there() {
    let launch = launch(&models::demo_in_shards("100M", "Q8_0", 3));
    let need = plan::pages_by_kind(&plan::of(&launch)).values().sum();
    let mut pool = or_skip!(Pool::with(need));
    let output = plan::command(&launch)
        .output()
        .expect("the tool can be started");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let fits: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&fits["fits"], &fits["schema"]),
        (&Value::Bool(true), &Value::from(1))
    );
    assert_eq!(fits["commands"], serde_json::json!([]));
    let files: Vec<_> = fits["needs"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|need| need["file"].as_u64())
        .collect();
    assert_eq!(files, [0, 1, 2], "a row for each shard");
    pool.assert_all_back();

    pool.set(need - 7);
    let output = plan::command(&launch)
        .output()
        .expect("the tool can be started");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let short: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let two = &short["pools"][0];
    assert_eq!(
        (
            number(&two["page_size"]),
            number(&two["needed"]),
            number(&two["missing"])
        ),
        (PAGE, need, 7)
    );
    let total = Counts::read().total + 7;
    assert_eq!(
        short["commands"],
        serde_json::json!([format!("sysctl vm.nr_hugepages={total}")])
    );
    assert!(
        short["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("the model needs ")),
        "{short}"
    );
    pool.assert_all_back();

    // A hint that is not followed yet, and one that is.
    let prefer = plan::of(&launch.clone().args(["--hugepage-policy", "prefer"]));
    for (plan, is_hinted) in [(&short, true), (&prefer, false)] {
        let hint = plan["hint"].as_str().expect("a text");
        let hints = hint.contains("--hugepage-policy prefer");
        assert!(hint.contains(&total.to_string()), "{plan}");
        assert_eq!(hints, is_hinted, "{plan}");
    }
}

#[test]
fn what_others_use_is_part_of_the_new_total() {
    let model = models::demo("20M", "Q8_0");
    let launch = launch(&model);
    let need = plan::pages_by_kind(&plan::of(&launch))
        .values()
        .sum::<u64>();
    let pool = or_skip!(Pool::with(need));
    let others = launch.clone().hugepages("require").start();
    let short = plan::of(&launch);
    assert_eq!(number(&short["pools"][0]["missing"]), need, "{short}");
    let total = Counts::read().total + need;
    assert_eq!(
        short["persistent"][0][1],
        format!("vm.nr_hugepages = {total}")
    );
    drop(others);
    pool.assert_all_back();
}

#[test]
fn a_user_without_rights_is_told_the_same_and_nothing_is_taken() {
    if !is_root() {
        return skip("only root can become another user");
    }
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    fs::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("the folder is ours");
    let model = models::copy_to(dir.path(), &models::demo("20M", "Q8_0"));
    // Another user may not be able to enter the folders of a checkout.
    let [tool, server] = [programs::hugepages(), programs::server()]
        .map(|program| programs::copy_to(dir.path(), &program));
    let pool = or_skip!(Pool::with(0));
    let output = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(tool)
        .args(["plan", "--format", "json", "--server"])
        .arg(server)
        .arg("--")
        .args(launch(&model).arguments())
        .output()
        .expect("setpriv is installed");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let theirs: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(theirs["needs"], plan::of(&launch(&model))["needs"]);
    pool.assert_all_back();
}

#[test]
fn what_the_server_refuses_is_1_with_its_words() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let pipe = dir.path().join("model.gguf");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("coreutils").success());
    let pipe = pipe.to_str().expect("a plain path");
    let model = models::demo("20M", "Q8_0");
    let model = model.to_str().expect("a plain path");
    for (args, cause, hint) in [
        (vec!["-m", pipe], "is no regular file", ""),
        (
            vec!["-m", model, "-c", "512", "-ctv", "q4_0", "-fa", "off"],
            "quantized V cache requires flash_attn",
            "",
        ),
        (
            vec!["-m", model, "-c", "512", "--spec-type", "draft-mtp"],
            "refuses a context of",
            "",
        ),
        (
            vec!["-m", "/no/such/model.gguf"],
            "/no/such/model.gguf",
            "hint: cannot open",
        ),
        (
            vec!["--no-such-option"],
            "invalid argument: --no-such-option",
            "",
        ),
        (
            vec!["-m", "/dev/null", "--hugepage-size", "3M"],
            "--hugepage-size",
            "",
        ),
        (
            vec!["-c", "512"],
            "need a model",
            "hint: add -m FILE or another option that names one model",
        ),
        (
            vec!["--models-dir", "/proc/sys/vm"],
            "need a model",
            "hint: add -m FILE or another option that names one model",
        ),
    ] {
        let mut command = std::process::Command::new("timeout");
        let output = command
            .arg("60")
            .arg(programs::hugepages())
            .arg("plan")
            .arg("--")
            .args(&args)
            .output()
            .expect("the tool can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(cause) && said.contains(hint),
            "{args:?}: {said}"
        );
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn a_killed_plan_leaves_no_server() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    // The server waits for a writer of this FIFO.
    let model = dir.path().join("model.gguf");
    rustix::fs::mkfifoat(rustix::fs::CWD, &model, Mode::RWXU).expect("the folder is ours");
    let mut plan = plan::command(&launch(&model))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the tool can be started");
    let server = || {
        let children = format!("/proc/{0}/task/{0}/children", plan.id());
        let children = fs::read_to_string(children).unwrap_or_default();
        children.trim().parse::<u32>().ok()
    };
    assert!(
        wait_for(PATIENCE, || server().is_some()),
        "the tool starts a server"
    );
    let server = server().expect("just seen");
    plan.kill().expect("it runs");
    plan.wait().expect("it was killed");
    assert!(
        wait_for(PATIENCE, || !is_running(&server.to_string())),
        "the server ends with the tool"
    );
}

/// The snapshot contains only figures of the model, because those of the machine differ.
#[test]
fn tables_fit_the_terminal() {
    let launch = launch(&models::demo_in_shards("100M", "Q8_0", 3));
    let _pool = or_skip!(Pool::with(0));
    for columns in ["80", "120"] {
        let output = human(&launch, columns);
        let text = String::from_utf8(output.stdout).expect("text");
        let table = text.split("\n\n").next().expect("a table");
        snapshot::assert(&format!("plan-{columns}.txt"), &format!("{table}\n"));
        assert!(
            !text.contains('\u{1b}'),
            "escape sequences without a terminal"
        );
        assert!(
            table
                .lines()
                .all(|line| line.len() <= columns.parse().expect("a number"))
        );
    }
}
