//! `hugepages pool` against this machine's pool.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, starts_with};
use tempfile::TempDir;

use crate::support::pool::{Counts, Pool};
use crate::support::{is_root, or_skip, programs, skip, wait_for};

/// The tool with a journal of its own.
struct Tool {
    state: TempDir,
}

impl Tool {
    fn new() -> Self {
        Self {
            state: tempfile::tempdir().unwrap(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(programs::hugepages());
        command
            .arg("pool")
            .args(args)
            .args(["--size", "2M"].iter().filter(|_| args[0] != "restore"))
            .env("LLAMA_HUGEPAGES_STATE", self.state.path());
        command
    }

    fn run(&self, args: &[&str]) -> assert_cmd::assert::Assert {
        assert_cmd::Command::from_std(self.command(args)).assert()
    }

    /// Starts a lease, and returns the first line that it prints.
    fn lease(&self, amount: &[&str]) -> (Child, String) {
        let mut command = self.command(&[&["reserve"], amount, &["--lease"]].concat());
        // The tool keeps ignoring signals that its caller ignores, and these tests may run under `nohup` or in the background of
        // a script.
        // SAFETY: `signal` may be called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            });
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        (child, line)
    }
}

fn kill(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    let killed = Command::new("kill").args(["-s", signal, &pid]).status();
    assert!(killed.unwrap().success());
}

/// A failed test must not leave pages behind.
impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.command(&["restore"]).output();
    }
}

#[test]
fn what_is_reserved_is_there_and_restore_gives_it_back() {
    let pool = or_skip!(Pool::with(0));
    let tool = Tool::new();
    let total = pool.counts.total;
    tool.run(&["reserve", "9M"])
        .success()
        .stdout(contains("added 5 pages of 2 MiB (10 MiB)"))
        .stderr(contains("1 MiB more than requested"));
    assert_eq!(Counts::read().total, total + 5);
    tool.run(&["reserve", "7", "--usable"]).success();
    assert_eq!(Counts::read().usable(), 7);
    tool.run(&["restore"]).success().stdout(contains(
        "returned 2 pages of 2 MiB\nreturned 5 pages of 2 MiB\n",
    ));
    pool.assert_all_back();
    assert_eq!(Counts::read().total, total);
    tool.run(&["restore"]).success().stdout("nothing to undo\n");
}

#[test]
fn pages_of_others_stay_when_ours_go() {
    let mut pool = or_skip!(Pool::with(3));
    let tool = Tool::new();
    tool.run(&["reserve", "4"]).success();
    // Another process adds two pages.
    pool.set(9);
    tool.run(&["release"])
        .success()
        .stdout(contains("returned 4 pages"));
    assert_eq!(Counts::read().usable(), 5);
    tool.run(&["release", "1"])
        .code(3)
        .stderr(contains("this tool added only 0").and(contains("hint: --force")));
    assert_eq!(Counts::read().usable(), 5);
}

#[test]
fn pages_that_others_took_away_need_no_return_and_theirs_stay() {
    let pool = or_skip!(Pool::with(3));
    let before = Counts::read();
    // Not with the pool of the test, which would count the pages as its own.
    let others_set = |usable: u64| {
        let now = Counts::read();
        let total = now.total + usable - now.usable();
        fs::write("/proc/sys/vm/nr_hugepages", total.to_string()).unwrap();
    };
    let tool = Tool::new();
    tool.run(&["reserve", "4"]).success();
    // Another process makes the pool smaller. Two of our pages are left.
    others_set(5);
    tool.run(&["release", "3"])
        .code(3)
        .stderr(contains("this tool added only 2"));
    tool.run(&["release", "1"])
        .success()
        .stdout(contains("returned 1 page"));
    assert_eq!(Counts::read().usable(), 4);
    tool.run(&["release"])
        .success()
        .stdout(contains("returned 1 page"));
    assert_eq!(Counts::read().usable(), 3);
    // Pages that are added later are not ours.
    others_set(9);
    tool.run(&["restore"]).success().stdout("nothing to undo\n");
    assert_eq!(Counts::read().usable(), 9);

    // Fewer than there were before ours.
    tool.run(&["reserve", "4"]).success();
    others_set(2);
    tool.run(&["release", "1"])
        .code(3)
        .stderr(contains("this tool added only 0"));
    tool.run(&["release"]).success();
    assert_eq!(Counts::read().usable(), 2);
    others_set(3);
    assert_eq!(Counts::read().total, before.total);
    pool.assert_all_back();
}

#[test]
fn pages_in_use_are_refused_with_who_uses_them() {
    let pool = or_skip!(Pool::with(0));
    let tool = Tool::new();
    tool.run(&["reserve", "3"]).success();
    let mut user = or_skip!(user_of_two_pages());
    let before = Counts::read();
    tool.run(&["release", "all"]).code(3).stderr(
        contains("1 are idle; in use by python3")
            .and(contains(format!("pid {}, 4 MiB", user.id())))
            .and(contains("or release 1 pages")),
    );
    assert_eq!(Counts::read(), before);
    tool.run(&["release", "1"]).success();
    user.kill().unwrap();
    user.wait().unwrap();
    assert!(wait_for(Duration::from_secs(5), || Counts::read().usable() == 2));
    tool.run(&["release"]).success();
    assert_eq!(Counts::read().total, pool.counts.total);
}

/// A process with two pages of 2 MiB.
fn user_of_two_pages() -> Result<Child, String> {
    const SCRIPT: &str = "import mmap,sys
m = mmap.mmap(-1, 4 << 20, flags=0x02 | 0x20 | 0x40000 | 21 << 26)
m[0] = 1
m[2 << 20] = 1
print('there', flush=True)
sys.stdin.read()";
    let child = Command::new("python3")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| format!("python3: {error}"))?;
    let mut line = String::new();
    let out = child.stdout.as_mut().expect("piped");
    BufReader::new(out)
        .read_line(&mut line)
        .expect("the process prints a line");
    assert_eq!(line, "there\n");
    Ok(child)
}

#[test]
fn a_lease_ends_with_its_input() {
    let pool = or_skip!(Pool::with(1));
    let tool = Tool::new();
    let (mut child, line) = tool.lease(&["6", "--usable"]);
    assert_eq!(line, "ok 5\n");
    assert_eq!(Counts::read().usable(), 6);
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let total = pool.counts.total;
    let expected = format!(
        "pool: 6 pages of 2048 kB are needed, 1 are free: nr_hugepages {total} -> {}\n\
         pool: nr_hugepages is {}, 6 pages are usable\n\
         pool: returned 5 pages: nr_hugepages is {total}\n",
        total + 5,
        total + 5
    );
    assert_eq!(said, expected);
    assert_eq!(Counts::read(), pool.counts);
}

#[test]
fn signals_end_a_lease_and_what_was_ignored_does_not() {
    let pool = or_skip!(Pool::with(0));
    for signal in ["INT", "TERM", "HUP"] {
        let tool = Tool::new();
        let (mut child, line) = tool.lease(&["2"]);
        assert_eq!(line, "ok 2\n");
        // `wait` closes the input, which would end the lease in another way.
        let input = child.stdin.take();
        kill(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        drop(input);
        assert_eq!(Counts::read(), pool.counts, "after SIG{signal}");
    }
    let tool = Tool::new();
    let script = format!(
        "trap '' INT; exec {} pool reserve 2 --size 2M --lease",
        programs::hugepages().display()
    );
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .env("LLAMA_HUGEPAGES_STATE", tool.state.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = [0; 5];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .unwrap();
    kill(&child, "INT");
    sleep(Duration::from_millis(200));
    assert_eq!(Counts::read().usable(), 2);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(Counts::read(), pool.counts);
}

#[test]
fn two_leases_give_back_in_any_order() {
    let pool = or_skip!(Pool::with(0));
    let tool = Tool::new();
    let (mut first, _) = tool.lease(&["2"]);
    let (mut second, _) = tool.lease(&["3"]);
    assert_eq!(Counts::read().usable(), 5);
    tool.run(&["restore"])
        .success()
        .stdout(contains("2 leases"));
    tool.run(&["release"]).success();
    assert_eq!(Counts::read().usable(), 5);
    drop(first.stdin.take());
    first.wait().unwrap();
    assert_eq!(Counts::read().usable(), 3);
    drop(second.stdin.take());
    second.wait().unwrap();
    assert_eq!(Counts::read(), pool.counts);
}

#[test]
fn the_pages_of_a_killed_lease_are_given_back_by_the_next_command() {
    let pool = or_skip!(Pool::with(0));
    let tool = Tool::new();
    for next in [&["restore"][..], &["reserve", "1"]] {
        let (mut child, _) = tool.lease(&["4"]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(Counts::read().usable(), 4);
        tool.run(next).success();
        let left = u64::from(next[0] == "reserve");
        assert_eq!(Counts::read().usable(), left, "{next:?}");
    }
    tool.run(&["restore"]).success();
    assert_eq!(Counts::read(), pool.counts);
}

#[test]
fn two_reserves_at_once_both_get_theirs() {
    let pool = or_skip!(Pool::with(0));
    let tool = Tool::new();
    let start = || {
        tool.command(&["reserve", "3"])
            .stdout(Stdio::null())
            .spawn()
    };
    let children: Vec<_> = (0..4).map(|_| start().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(Counts::read().usable(), 12);
    tool.run(&["restore"]).success();
    assert_eq!(Counts::read(), pool.counts);
}

#[test]
fn restore_mends_what_sigkill_left_at_any_moment() {
    let pool = or_skip!(Pool::with(2));
    for (round, command) in ["reserve", "release", "restore"]
        .iter()
        .cycle()
        .take(45)
        .enumerate()
    {
        let tool = Tool::new();
        if *command != "reserve" {
            tool.run(&["reserve", "16"]).success();
        }
        let args: &[&str] = if *command == "reserve" {
            &["reserve", "64", "--try-hard"]
        } else {
            &[command]
        };
        let mut child = tool.command(args).stdout(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_micros(400 * (round as u64 / 3)));
        let _ = child.kill();
        child.wait().unwrap();
        tool.run(&["restore"]).success();
        assert_eq!(Counts::read(), pool.counts, "round {round}: {command}");
    }
}

#[test]
fn a_reservation_that_leaves_too_little_memory_is_refused() {
    let pool = or_skip!(Pool::with(0));
    let tool = Tool::new();
    tool.run(&["reserve", "900T"])
        .code(3)
        .stdout("")
        .stderr(contains("471859200 pages takes 900 TiB").and(contains("hint: --force")));
    tool.run(&["reserve", "900T", "--lease"])
        .code(3)
        .stdout(starts_with("memory "));
    assert_eq!(Counts::read(), pool.counts);
}

#[test]
fn without_rights_it_says_what_to_run() {
    if !is_root() {
        return skip("only root can become another user");
    }
    let tool = Tool::new();
    let dir = tempfile::tempdir().unwrap();
    // Another user can run the tool from this folder.
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), anybody).unwrap();
    let copy = programs::copy_to(dir.path(), &programs::hugepages());
    assert_cmd::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["pool", "reserve", "3", "--size", "2M"])
        .env("LLAMA_HUGEPAGES_STATE", tool.state.path())
        .assert()
        .code(1)
        .stdout("")
        .stderr(contains(
            "Permission denied (os error 13)\nhint: sudo hugepages pool reserve 3 --size 2M\n",
        ));
}

/// Runs a script in a mount namespace of its own.
fn unshared(tool: &Tool, script: &str) -> assert_cmd::assert::Assert {
    assert_cmd::Command::new("unshare")
        .args(["--mount", "sh", "-ec", script])
        .env("TOOL", programs::hugepages())
        .env("LLAMA_HUGEPAGES_STATE", tool.state.path())
        .assert()
}

#[test]
fn a_read_only_sysfs_is_named() {
    let pool = or_skip!(Pool::with(0));
    let tool = Tool::new();
    unshared(
        &tool,
        "mount --bind /sys /sys; mount -o remount,ro,bind /sys; exec \"$TOOL\" pool reserve 3 --size 2M",
    )
    .code(1)
    .stderr(contains("Read-only file system").and(contains("hint: run this command on the host")));
    assert_eq!(Counts::read(), pool.counts);
}

#[test]
fn a_full_disk_changes_nothing() {
    let pool = or_skip!(Pool::with(0));
    let tool = Tool::new();
    unshared(
        &tool,
        r#"mount -t tmpfs -o size=4k,mode=0755 none "$LLAMA_HUGEPAGES_STATE"
           : > "$LLAMA_HUGEPAGES_STATE/lock"
           head -c 4096 /dev/zero > "$LLAMA_HUGEPAGES_STATE/full"
           exec "$TOOL" pool reserve 3 --size 2M"#,
    )
    .code(1)
    .stderr(contains("cannot write `").and(contains("No space left on device")));
    assert_eq!(Counts::read(), pool.counts);
}
