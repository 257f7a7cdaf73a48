//! Stock's server in a container that starts as `docs/migrating.md` says, with podman and runc, and with as few rights as possible.
//! Lives here: the image and its containers. Not here: what the library does in a process (`preload.rs`), and our own image (`ours`).

mod ours;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::equality::answers;
use crate::preload::{library, pages, scratch, suspicious_lines};
use crate::support::guardian::Guardian;
use crate::support::pool::{PAGE, Pool};
use crate::support::server::{Ended, Launch, QUIET_THREADS, Server};
use crate::support::{debian, is_root, models, or_skip, programs, smaps};

/// The model in a container.
const MODEL: &str = "/model.gguf";
const IMAGE: &str = "localhost/llama-hugepages-test";
const CONTAINER: &str = "server";

/// Ends the containers, and removes their storage, which other programs of this machine do not know.
const REMOVE: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    read -r dir || exit 0
    cgroups=
    while read -r name; do cgroups="$cgroups $name"; done
    podman --root "$dir/root" --runroot "$dir/run" --tmpdir "$dir/tmp" --runtime=runc --cgroup-manager=cgroupfs \
        rm --all --force --time 0 >/dev/null 2>&1
    for name in $cgroups; do find /sys/fs/cgroup/*/"$name" -depth -type d -exec rmdir {} \; 2>/dev/null; done
    rm -rf "$dir"
"#;

/// The programs of the image.
fn contents() -> Result<[PathBuf; 3], String> {
    let stock = programs::stock("llama-server")?;
    Ok([stock, programs::hugepages(), library()])
}

/// The lines that the guide gives to the users of a container.
fn lines_of_the_guide() -> String {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/migrating.md");
    let guide = fs::read_to_string(guide).expect("a part of the repository");
    let (_, rest) = guide
        .split_once("```dockerfile\n")
        .expect("the guide has it");
    let (lines, _) = rest.split_once("```").expect("the block ends");
    lines.to_owned()
}

/// Images and containers in a place of their own.
struct Storage {
    dir: PathBuf,
    guardian: Guardian,
}

impl Storage {
    fn new() -> Result<Self, String> {
        if !is_root() {
            return Err("root is needed for containers and the pool".to_owned());
        }
        programs::found("podman")?;
        programs::found("runc")?;
        let dir = scratch().keep();
        let mut guardian = Guardian::start(REMOVE, None);
        guardian.tell(dir.to_str().expect("target/ has a plain name"));
        Ok(Self { dir, guardian })
    }

    fn podman(&self) -> Command {
        let mut command = Command::new("podman");
        for (option, name) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            command.arg(option).arg(self.dir.join(name));
        }
        command.args(["--runtime=runc", "--cgroup-manager=cgroupfs"]);
        command
    }

    /// `podman run` of a container whose server has quiet threads.
    fn run(&self, name: &str) -> Command {
        let (variable, value) = QUIET_THREADS;
        let mut command = self.podman();
        command
            .args(["run", "--rm", "--name", name, "--network=host"])
            // The defaults may be above the limits of this process.
            .args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"])
            .arg(format!("--env={variable}={value}"));
        command
    }

    /// Removes what podman leaves of a parent cgroup in the hierarchies of version 1.
    fn remove_later(&mut self, cgroup: &str) {
        self.guardian.tell(cgroup);
    }
}

/// An image with stock's server.
struct Image {
    storage: Storage,
}

impl Image {
    fn build() -> Result<Self, String> {
        let image = Self {
            storage: Storage::new()?,
        };
        let contents = contents()?;
        let base = debian::base("containers", "essential", &debian::libraries(&contents)?)?;
        let context = image.storage.dir.join("context");
        fs::create_dir(&context).expect("the folder is new");
        fs::hard_link(base, context.join("base.tar")).expect("both are in target/");
        for program in &contents {
            programs::copy_to(&context, program);
        }
        let lines = format!(
            "FROM scratch\nADD base.tar /\nCOPY llama-server /usr/bin/\n{}",
            lines_of_the_guide()
        );
        fs::write(context.join("Containerfile"), lines).expect("the folder is new");
        let mut build = image.storage.podman();
        programs::run(
            build
                .args(["build", "--quiet", "--tag", IMAGE])
                .arg(context),
        )?;
        Ok(image)
    }

    /// Starts a container whose server maps the model, and waits until the server is ready.
    fn start(&self, model: &Path, start: Start, rights: &Rights) -> Container<'_> {
        let mut command = self.storage.run(CONTAINER);
        command
            .arg(format!("--volume={}:{MODEL}:ro", model.display()))
            .args(rights.options)
            .args(start.options())
            .arg(IMAGE);
        let words: Vec<&OsStr> = command.get_args().collect();
        let launch = Launch::through(command.get_program().into(), words);
        Container {
            server: Some(launch.model(Path::new(MODEL)).start()),
            name: CONTAINER,
            storage: &self.storage,
        }
    }
}

/// How the library gets into the server.
#[derive(Clone, Copy, Debug)]
enum Start {
    /// The entry point of the image.
    Exec,
    /// The server, with the variables of the library.
    Variables,
}

impl Start {
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Exec => &[],
            Self::Variables => &[
                "--env=LD_PRELOAD=/usr/local/bin/libhugepages_preload.so",
                "--env=LLAMA_ARG_HUGEPAGES=1",
                "--env=LLAMA_ARG_HUGEPAGE_POLICY=prefer",
                "--entrypoint=/usr/bin/llama-server",
            ],
        }
    }
}

/// The rights of a container. The default profile of seccomp holds for all of them.
#[derive(Debug)]
struct Rights {
    user: u32,
    has_capabilities: bool,
    options: &'static [&'static str],
}

const RIGHTS: [Rights; 3] = [
    Rights {
        user: 0,
        has_capabilities: true,
        options: &[],
    },
    Rights {
        user: 0,
        has_capabilities: false,
        options: &["--read-only", "--read-only-tmpfs=false", "--cap-drop=all"],
    },
    Rights {
        // The image does not know this user.
        user: 4321,
        has_capabilities: false,
        options: &[
            "--user=4321:4321",
            "--read-only",
            "--read-only-tmpfs=false",
            "--cap-drop=all",
            "--security-opt=no-new-privileges",
        ],
    },
];

/// A running container.
struct Container<'a> {
    /// podman, which passes signals, output and the exit code on.
    server: Option<Server>,
    name: &'static str,
    storage: &'a Storage,
}

impl Container<'_> {
    fn server(&self) -> &Server {
        self.server.as_ref().expect("it runs")
    }

    /// The process of llama-server, as this machine numbers it.
    fn pid(&self) -> u32 {
        let mut inspect = self.storage.podman();
        inspect.args(["inspect", "--format", "{{.State.Pid}}", self.name]);
        let output = inspect.output().expect("podman ran before");
        let first = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children"));
        let children = children.expect("the container runs");
        let is_server = |pid: &&str| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim() == "llama-server")
        };
        let mut pids = std::iter::once(first.as_str()).chain(children.split_whitespace());
        let pid = pids.find(is_server).expect("llama-server runs in it");
        pid.parse().expect("a number")
    }

    fn stop(mut self) -> Ended {
        let server = self.server.take().expect("it runs");
        server.stop(Signal::TERM)
    }

    /// Kills the server, as `podman kill` does.
    fn kill(mut self) -> Ended {
        let mut kill = self.storage.podman();
        programs::run(kill.args(["kill", "--signal", "KILL", self.name])).expect("it runs");
        self.server.take().expect("it ran").wait()
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let mut remove = self.storage.podman();
        let _ = remove
            .args(["rm", "--force", "--time", "0", self.name])
            .output();
    }
}

/// Asserts that the server runs with these rights, so that its success means something.
fn assert_rights(pid: u32, rights: &Rights) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let first = line.and_then(|line| line.split_whitespace().next());
        first.unwrap_or_else(|| panic!("no {name}\n{status}"))
    };
    assert_eq!(value("Seccomp:"), "2", "a filter\n{status}");
    assert_eq!(value("Uid:"), rights.user.to_string());
    let has_capabilities = value("CapEff:").bytes().any(|digit| digit != b'0');
    assert_eq!(has_capabilities, rights.has_capabilities, "{status}");
    let root = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("it runs");
    let root = root
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/"));
    let mount_options = root.and_then(|line| line.split(' ').nth(5));
    let is_read_only = mount_options.is_some_and(|it| it.split(',').any(|it| it == "ro"));
    assert_eq!(is_read_only, rights.options.contains(&"--read-only"));
}

/// Runs the containers with a pool of so many pages, or with enough pages, and checks answers, huge pages, exit codes and the pool.
fn serve(pages_of_pool: Option<u64>) {
    let model = models::demo("100M", "Q8_0");
    let plain = or_skip!(Launch::stock()).model(&model).start();
    let expected = answers(&plain);
    drop(plain);
    let image = or_skip!(Image::build());
    let enough = pages(&model);
    let of_file = fs::metadata(&model).expect("made").len().div_ceil(PAGE);
    let pool = or_skip!(Pool::with(pages_of_pool.unwrap_or(enough)));
    for rights in &RIGHTS {
        for start in [Start::Exec, Start::Variables] {
            let what = format!("{start:?}, {rights:?}");
            let container = image.start(&model, start, rights);
            let pid = container.pid();
            assert_rights(pid, rights);
            let huge = smaps::hugetlb_bytes(pid) / PAGE;
            match pages_of_pool {
                Some(pages) => assert_eq!(huge, pages, "{what}"),
                None => assert!(huge >= of_file, "{huge} of {of_file} pages, {what}"),
            }
            assert_eq!(answers(container.server()), expected, "{what}");
            let ended = container.stop();
            assert_eq!(ended.status.code(), Some(0), "{what}\n{}", ended.log);
            assert_told(&ended.log, start, pages_of_pool.is_some());
            pool.assert_all_back();
        }
    }
}

/// Asserts that the log has the lines of the guide, and no warning but that of a shortage.
fn assert_told(log: &str, start: Start, is_short: bool) {
    let shortage = "the rest uses ordinary memory";
    assert_eq!(log.contains(shortage), is_short, "{log}");
    let others: Vec<_> = suspicious_lines(log)
        .into_iter()
        .filter(|line| !(is_short && line.contains("hint:")))
        .collect();
    assert_eq!(others, Vec::<&str>::new(), "{log}");
    let has_report = log.contains("exec: huge pages of the program");
    assert_eq!(has_report, matches!(start, Start::Exec), "{log}");
}

#[test]
#[ignore = "long: make test-full"]
fn a_container_serves_stocks_answers_from_huge_pages_and_returns_them() {
    serve(None);
}

#[test]
#[ignore = "long: make test-full"]
fn a_container_with_too_few_pages_uses_them_and_serves_stocks_answers() {
    serve(Some(20));
}
