//! The units in `deploy/systemd/`, and the notifications that a server sends to its service manager.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::time::Duration;

use hugepages::port::Port;
use serde_json::json;

use crate::support::guardian::Guardian;
use crate::support::pool::{Counts, Pool};
use crate::support::server::Launch;
use crate::support::{http, is_root, models, or_skip, programs, wait_for};

/// systemd's complaints about our units, which should be none.
fn verify(dir: &Path, names: &[String]) -> String {
    let output = Command::new("systemd-analyze")
        .arg("verify")
        .args(names.iter().map(|name| dir.join(name)))
        .env("SYSTEMD_LOG_LEVEL", "notice")
        .output()
        .expect("systemd-analyze ran before");
    let said = String::from_utf8_lossy(&output.stderr);
    // systemd-analyze reads the machine's units too, whose faults are not ours.
    let ours = said
        .lines()
        .filter(|line| line.contains("llama") || line.contains("hugepages"));
    ours.collect::<Vec<_>>().join("\n")
}

/// A unit with the paths of the programs, because systemd-analyze checks that they exist.
fn with_paths(unit: &str, bin: &str) -> String {
    let with_path = |line: &str| match line.split_once('=') {
        Some((key, command)) if key.starts_with("Exec") => {
            let (plus, command) = command.split_at(usize::from(command.starts_with('+')));
            format!("{key}={plus}{bin}/{command}\n")
        }
        _ => format!("{line}\n"),
    };
    unit.lines().map(with_path).collect()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let found = Command::new("systemd-analyze").arg("--version").output();
    or_skip!(found.map_err(|error| format!("systemd-analyze cannot be run: {error}")));
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let bin = programs::hugepages();
    let bin = bin
        .parent()
        .expect("the program is in a folder")
        .display()
        .to_string();
    let mut names = Vec::new();
    for entry in fs::read_dir(units).expect("the units exist").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".service") {
            let text = fs::read_to_string(entry.path()).expect("a text");
            let text = with_paths(&text, &bin);
            fs::write(dir.path().join(&name), text).expect("just made");
            // systemd-analyze checks a template through one of its instances.
            let instance = name.replace('@', "@demo");
            if instance != name {
                fs::copy(dir.path().join(&name), dir.path().join(&instance)).expect("just made");
            }
            names.push(instance);
        }
    }
    assert_eq!(names.len(), 4, "{names:?}");
    assert_eq!(verify(dir.path(), &names), "");

    // A test of the test: a wrong unit causes a complaint.
    let unit = dir.path().join("llama-hugepages-pool.service");
    let text = fs::read_to_string(&unit).expect("just made");
    fs::write(&unit, text.replace("Type=oneshot", "Type=oneshoot")).expect("just made");
    assert!(verify(dir.path(), &names).contains("oneshoot"));
}

/// Starts a server with a notification socket, and asserts that it is ready when it notifies.
fn tells(socket: &UnixDatagram, name: &str) {
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("not zero");
    let server = Launch::ours()
        .model(&models::demo("100M", "Q8_0"))
        .env("NOTIFY_SOCKET", name)
        .spawn();
    let mut message = [0; 256];
    let n = socket
        .recv(&mut message)
        .unwrap_or_else(|error| panic!("no notification: {error}\n{}", server.log()));
    assert!(server.is_ready(), "notified too soon\n{}", server.log());
    let message = String::from_utf8_lossy(&message[..n]).into_owned();
    assert!(message.starts_with("READY=1\n"), "{message}");
    socket.set_nonblocking(true).expect("the socket is ours");
    assert!(socket.recv(&mut [0; 256]).is_err(), "notified twice");
}

#[test]
fn a_service_manager_is_told_when_the_model_answers_and_not_before() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("just made");
    tells(&socket, path.to_str().expect("a plain path"));

    let name = format!("llama-hugepages-test-{}", process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("the name is short");
    let socket = UnixDatagram::bind_addr(&address).expect("the address is free");
    tells(&socket, &format!("@{name}"));
}

/// Removes the cgroups that systemd made.
const REMOVE: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    read -r dir || exit 0
    while read -r _; do :; done
    for i in 1 2 3 4 5 6 7 8 9 10; do
        find "$dir" -depth -type d -exec rmdir {} ';' 2>/dev/null
        [ -d "$dir" ] || exit 0
        sleep 0.3
    done
    exit 1
"#;

/// systemd as process 1 of namespaces of its own, with our units.
struct Machine {
    // In the order of their drop.
    unshare: Child,
    _guardian: Guardian,
    dir: tempfile::TempDir,
    port: Port,
}

/// The settings of a machine.
struct Boot {
    pages: u64,
    model: PathBuf,
    /// Whether the model is loaded into the store before the server starts.
    is_filled: bool,
    /// One more line for the server's unit.
    line: &'static str,
}

impl Machine {
    fn boot(with: &Boot) -> Result<Self, String> {
        if !Path::new("/lib/systemd/systemd").exists() {
            return Err("systemd is not installed".to_owned());
        }
        let worker = programs::patched("ggml-rpc-server")?;
        let mut unshare = Command::new("unshare");
        programs::run(unshare.args(["--mount", "--pid", "--cgroup", "--fork", "true"]))?;
        let table = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
        let unified = table.lines().find(|line| line.contains(" - cgroup2 "));
        let unified = unified.and_then(|line| line.split(' ').nth(4));
        let unified = unified.ok_or("no cgroup v2 hierarchy is mounted")?;
        let cgroup = PathBuf::from(unified).join(format!("llama-hugepages-test-{}", process::id()));
        let mut guardian = Guardian::start(REMOVE, None);
        guardian.tell(&cgroup.display().to_string());
        fs::create_dir(&cgroup).map_err(|error| format!("no right to make a cgroup: {error}"))?;

        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let scratch = dir.path().join("scratch");
        fs::create_dir(&scratch).expect("just made");
        let log = File::create(dir.path().join("log")).expect("just made");
        let port = Port::reserve().expect("a port is free");
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let programs = programs::hugepages();
        let unshare = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "sh", "-c"])
            .arg(r#"echo $$ > "$1/cgroup.procs" && shift && exec "$@""#)
            .arg("sh")
            .arg(&cgroup)
            .args([
                "unshare", "--mount", "--pid", "--cgroup", "--ipc", "--uts", "--fork",
            ])
            .args(["--kill-child", "sh"])
            .arg(source.join("tests/it/systemd_boot.sh"))
            .arg(&scratch)
            .arg(source.join("deploy/systemd"))
            .arg(programs.parent().expect("the program is in a folder"))
            .arg(&with.model)
            .args([port.number.to_string(), with.pages.to_string()])
            .args([if with.is_filled { "filled" } else { "empty" }, with.line])
            .arg(worker)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .map_err(|error| format!("setpriv: {error}"))?;
        Ok(Self {
            unshare,
            _guardian: guardian,
            dir,
            port,
        })
    }

    fn log(&self) -> String {
        let log = fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    fn is_ready(&self) -> bool {
        let health = http::try_get(&format!("http://127.0.0.1:{}/health", self.port.number));
        health.is_some_and(|(status, _)| status == 200)
    }

    fn wait_until_ready(&self) {
        let ready = wait_for(Duration::from_secs(60), || self.is_ready());
        assert!(
            ready,
            "{}\n{}",
            self.log(),
            self.run(&["systemctl", "status", "llama*"])
        );
    }

    /// Shuts the machine down.
    fn power_off(&mut self) {
        self.run(&["systemctl", "poweroff"]);
        let ended = wait_for(Duration::from_secs(60), || {
            self.unshare
                .try_wait()
                .expect("the child is ours")
                .is_some()
        });
        assert!(ended, "{}", self.log());
    }

    /// Bytes of the server's last load, as the server reports them.
    fn load(&self, how: &str) -> u64 {
        let props = http::get_json(&format!("http://127.0.0.1:{}/props", self.port.number));
        let bytes = &props["hugepages"]["load"][how];
        bytes.as_u64().unwrap_or_else(|| panic!("{how}: {props}"))
    }

    /// Runs a command in the machine, and returns its output.
    fn run(&self, args: &[&str]) -> String {
        let pid = self.unshare.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let init = children.expect("the process lives").trim().to_owned();
        let output = Command::new("nsenter")
            .args(["-t", &init, "--mount", "--pid", "--cgroup", "--"])
            .args(args)
            .output()
            .expect("nsenter is installed");
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    }
}

/// A machine whose server answers, and its pages. An error is the reason to skip the test.
fn booted(boot: &Boot) -> Result<(Pool, Machine), String> {
    if !is_root() {
        return Err("root is needed for namespaces".to_owned());
    }
    let pool = Pool::with(boot.pages)?;
    let machine = Machine::boot(boot)?;
    machine.wait_until_ready();
    Ok((pool, machine))
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The machine's processes end with `unshare`.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

#[test]
#[ignore = "long: make test-full"]
fn under_systemd_models_are_loaded_before_the_server_and_outlive_its_restart() {
    let boot = Boot {
        pages: 120,
        model: models::demo("100M", "Q8_0"),
        is_filled: true,
        line: "",
    };
    let (pool, mut machine) = or_skip!(booted(&boot));
    let active = [
        "systemctl",
        "is-active",
        "llama-hugepages-store",
        "llama-server@a",
    ];
    let is_active = || machine.run(&active) == "active\nactive\n";
    assert!(
        wait_for(Duration::from_secs(10), is_active),
        "{}",
        machine.run(&active)
    );
    let show = ["systemctl", "show", "-P", "StatusText", "llama-server@a"];
    assert_eq!(machine.run(&show), "ready to answer\n");
    let list = machine.run(&[
        "hugepages",
        "store",
        "list",
        "--store",
        "/run/llama-hugepages/store/2M",
    ]);
    assert!(
        list.contains("/srv/models/a") && list.contains("llama-server"),
        "{list}"
    );

    machine.run(&["systemctl", "restart", "llama-server@a"]);
    assert!(
        machine.is_ready(),
        "a restart returns when the model answers"
    );
    // The server continues without the store.
    machine.run(&["systemctl", "stop", "llama-hugepages-store"]);
    assert!(machine.is_ready());
    assert_eq!(
        machine
            .run(&["ls", "/run/llama-hugepages/store"])
            .matches("No such file")
            .count(),
        1
    );
    machine.power_off();
    pool.assert_all_back();
}

/// Asserts that the server reads and repacks a model under its filter, and attaches to the image after a restart.
fn reads_under_its_filter(line: &'static str, is_killing: bool) {
    let boot = Boot {
        pages: 200,
        model: models::demo("100M", "Q4_0"),
        is_filled: false,
        line,
    };
    let (pool, mut machine) = or_skip!(booted(&boot));
    let show = |property| machine.run(&["systemctl", "show", "-P", property, "llama-server@a"]);
    let eperm = libc::EPERM.to_string();
    assert_eq!(show("SystemCallErrorNumber").trim() == eperm, !is_killing);
    assert_eq!(show("NRestarts").trim(), "0", "{}", machine.log());
    let pid = show("MainPID");
    let status = machine.run(&["cat", &format!("/proc/{}/status", pid.trim())]);
    assert!(status.contains("Seccomp:\t2"), "{status}");

    let read = |machine: &Machine| {
        ["bytes_direct", "bytes_cached", "bytes_buffered"]
            .map(|how| machine.load(how))
            .iter()
            .sum::<u64>()
    };
    let size = fs::metadata(&boot.model).expect("the model exists").len();
    let first = (read(&machine), machine.load("bytes_attached"));
    assert!(
        first.0 > size / 2 && first.1 == 0,
        "read and attached: {first:?} of {size} bytes"
    );
    machine.run(&["systemctl", "restart", "llama-server@a"]);
    machine.wait_until_ready();
    let second = (read(&machine), machine.load("bytes_attached"));
    assert!(
        second.0 < size / 2 && second.1 > size / 2,
        "read and attached: {second:?} of {size} bytes"
    );
    machine.power_off();
    pool.assert_all_back();
}

#[test]
#[ignore = "long: make test-full"]
fn under_systemd_a_server_reads_a_repacked_model_into_an_empty_store() {
    reads_under_its_filter("", false);
}

#[test]
#[ignore = "long: make test-full"]
fn under_systemd_a_server_outlives_a_filter_that_kills() {
    reads_under_its_filter("SystemCallErrorNumber=kill", true);
}

#[test]
#[ignore = "long: make test-full"]
fn under_systemd_a_worker_keeps_its_share_and_returns_after_a_kill() {
    let boot = Boot {
        pages: 200,
        model: models::demo("100M", "Q8_0"),
        is_filled: false,
        line: "",
    };
    let (pool, mut machine) = or_skip!(booted(&boot));
    machine.run(&[
        "systemctl",
        "stop",
        "llama-server@a",
        "llama-hugepages-store",
    ]);
    let free = Counts::read().free;

    let port = Port::reserve().expect("a port is free");
    let address = format!("127.0.0.1:{}", port.number);
    let settings = format!(
        "WORKER_ARGS=--host 127.0.0.1 --port {} --threads 2",
        port.number
    );
    let write = format!("echo '{settings}' > /etc/llama-hugepages/w.env");
    machine.run(&["sh", "-c", &write]);
    let listens = || TcpStream::connect(&address).is_ok();
    let status = ["systemctl", "status", "ggml-rpc-server@w"];
    for _ in 0..2 {
        machine.run(&["systemctl", "start", "ggml-rpc-server@w"]);
        // systemd restarts a worker after five seconds.
        assert!(
            wait_for(Duration::from_secs(60), listens),
            "{}",
            machine.run(&status)
        );
        assert_eq!(Counts::read().free, free);
        let server = or_skip!(Launch::tool("llama-server"))
            .model(&boot.model)
            .args(["--rpc", &address])
            .start();
        let said = http::post_json(
            &server.url("/completion"),
            &json!({ "prompt": "A", "n_predict": 4, "ignore_eos": true }),
        );
        assert_eq!(said["tokens_predicted"], 4, "{said}");
        assert!(Counts::read().free < free, "{}", machine.run(&status));
        // llama.cpp keeps tensors from 10 MiB on, and this model has none.
        let owner = ["stat", "--format=%U", "/var/cache/llama-hugepages/rpc"];
        assert_eq!(machine.run(&owner), "llama\n");
        machine.run(&["systemctl", "kill", "--signal", "KILL", "ggml-rpc-server@w"]);
        assert!(wait_for(Duration::from_secs(60), || Counts::read().free == free));
    }
    machine.power_off();
    pool.assert_all_back();
}
