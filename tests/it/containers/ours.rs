//! The image of `deploy/image`: containers that share one copy of a model, limits of huge pages, and a switch of `deploy/compose`.

use std::env;
use std::ffi::OsStr;
use std::fmt::Write;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hugepages::port::Port;
use serde_json::json;

use crate::deploy::{SERVERS, copy_of_compose, limits, plan};
use crate::equality::answers;
use crate::support::cgroup::Cgroup;
use crate::support::pool::{PAGE, Pool};
use crate::support::server::{Launch, QUIET_THREADS};
use crate::support::store::Store;
use crate::support::{debian, http, models, or_skip, programs, python, skip, smaps, wait_for};

use super::{Container, Rights, Storage, assert_rights};

const IMAGE: &str = "localhost/llama-hugepages";
const BASE: &str = "localhost/base";
const MODEL: &str = "/models/model.gguf";
const STORE: &str = "/run/llama-hugepages/store/2M";

const OPTIONS: [&str; 4] = [
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
];

/// A user of the image, one that it does not know, and root.
const SERVED: [(&str, u32); 3] = [("server-1", 10001), ("server-2", 4321), ("server-3", 0)];

/// Our image, built as `make image` does.
struct Image {
    storage: Storage,
}

impl Image {
    fn build() -> Result<Self, String> {
        let image = Self {
            storage: Storage::new()?,
        };
        // as in deploy/image/README.md
        let packages = ["curl", "libgomp1", "libssl3", "libstdc++6"].map(str::to_owned);
        let base = debian::base("containers-ours", "minbase", &packages)?;
        image.write_settings();
        let mut import = image.storage.podman();
        programs::run(import.arg("import").arg(base).arg(BASE))?;
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["run", "--quiet", "--release", "--package", "xtask", "--"])
            .args(["image", "--base", BASE, "--programs"])
            .arg(programs::portable()?)
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        programs::run(image.for_others(&mut build))?;
        Ok(image)
    }

    /// The settings of `Storage::podman`, for programs that start podman or buildah themselves.
    fn write_settings(&self) {
        let dir = self.storage.dir.display();
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{dir}/root\"\nrunroot = \"{dir}/run\"\n"
        );
        // The defaults for limits may be above the limits of this process.
        let containers = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\nnetns = \"host\"\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\ntmp_dir = \"{dir}/tmp\"\n\
             [network]\nnetwork_config_dir = \"{dir}/networks\"\n"
        );
        for (name, text) in [("storage.conf", storage), ("containers.conf", containers)] {
            fs::write(self.storage.dir.join(name), text).expect("the folder is ours");
        }
    }

    fn for_others<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let dir = &self.storage.dir;
        command
            .env("CONTAINERS_STORAGE_CONF", dir.join("storage.conf"))
            .env("CONTAINERS_CONF", dir.join("containers.conf"))
            .env("BUILDAH_ISOLATION", "chroot")
    }
}

/// A model and a store that containers share.
struct Shared<'a> {
    image: &'a Image,
    model: &'a Path,
    store: &'a Store,
}

impl<'a> Shared<'a> {
    fn run(&self, name: &str, user: u32, options: &[&str]) -> Command {
        let mut command = self.image.storage.run(name);
        command
            .args(OPTIONS)
            .arg(format!("--user={user}:{user}"))
            .arg(format!("--volume={}:{MODEL}:ro", self.model.display()))
            .args(options);
        command
    }

    /// Fills the store as root, whose images all users trust.
    fn load(&self, options: &[&str]) -> Output {
        let mut command = self.run("loader", 0, options);
        command
            .arg(format!("--volume={}:{STORE}", self.store.arg()))
            .args(["--entrypoint=/app/hugepages", IMAGE])
            .args(["store", "load", "--store", STORE, MODEL])
            .args(["--", "--no-repack"]);
        command.output().expect("podman ran before")
    }

    fn launch(&self, name: &str, user: u32, options: &[&str]) -> Launch {
        let mut command = self.run(name, user, options);
        command
            .arg(format!("--volume={}:{STORE}:ro", self.store.arg()))
            .arg(IMAGE);
        let words: Vec<&OsStr> = command.get_args().collect();
        with_small_cache(Launch::through("podman".into(), words).model(Path::new(MODEL)))
            .hugepages("require")
            .args(["--hugepage-store", STORE])
    }

    fn serve(&self, name: &'static str, user: u32, options: &[&str]) -> Container<'a> {
        Container {
            server: Some(self.launch(name, user, options).start()),
            name,
            storage: &self.image.storage,
        }
    }
}

fn with_small_cache(launch: Launch) -> Launch {
    launch.args(["--cache-ram", "64"])
}

/// Asserts that a server maps the store's image read-only, and has so many pages of its own.
fn assert_shares(pid: u32, image: &Path, own: u64) {
    let inode = fs::metadata(image).expect("it is in the store").ino();
    let vmas = smaps::read(pid);
    let shared: Vec<_> = vmas
        .iter()
        .filter(|vma| vma.is_huge() && vma.inode == inode)
        .collect();
    assert!(!shared.is_empty(), "{vmas:?}");
    assert!(shared.iter().all(|vma| vma.perms == "r--s"), "{shared:?}");
    let of_store: u64 = shared
        .iter()
        .map(|vma| vma.size("Shared_Hugetlb") + vma.size("Private_Hugetlb"))
        .sum();
    assert!(of_store > 0, "{shared:?}");
    assert_eq!((smaps::hugetlb_bytes(pid) - of_store) / PAGE, own);
}

#[test]
#[ignore = "long: make test-full"]
fn three_containers_share_one_copy_and_a_killed_one_attaches_again() {
    let model = models::demo("100M", "Q8_0");
    let launch = with_small_cache(Launch::ours().model(&model));
    let plain = launch.clone().start();
    let expected = answers(&plain);
    drop(plain);
    let limits = limits(&launch);
    let own = limits["SERVER_HUGEPAGES_2M"] / PAGE;
    let weights = limits["LOADER_HUGEPAGES_2M"] / PAGE;
    let image = or_skip!(Image::build());
    let store = or_skip!(Store::with(weights + SERVERS * own));
    let shared = Shared {
        image: &image,
        model: &model,
        store: &store,
    };
    let loaded = shared.load(&[]);
    assert!(loaded.status.success(), "{loaded:?}");
    assert_eq!(store.pool.taken(), weights, "{limits:?}");

    let mut containers = SERVED.map(|(name, user)| shared.serve(name, user, &[]));
    assert_eq!(store.pool.taken(), weights + SERVERS * own, "{limits:?}");
    for (container, (_, user)) in containers.iter().zip(SERVED) {
        let pid = container.pid();
        let rights = Rights {
            user,
            has_capabilities: false,
            options: &OPTIONS,
        };
        assert_rights(pid, &rights);
        assert_shares(pid, &store.image(), own);
        assert_eq!(answers(container.server()), expected, "user {user}");
    }

    let [first, second, third] = containers;
    let ended = second.kill();
    assert_eq!(ended.status.code(), Some(128 + 9), "{}", ended.log);
    let is_back = || store.pool.taken() == weights + 2 * own;
    assert!(wait_for(Duration::from_secs(5), is_back));
    assert_eq!(answers(first.server()), expected);
    let (name, user) = SERVED[1];
    containers = [first, shared.serve(name, user, &[]), third];
    assert_shares(containers[1].pid(), &store.image(), own);
    for container in containers {
        assert_eq!(answers(container.server()), expected);
        let ended = container.stop();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    }
    store.assert_only_files_hold_pages();
    store.empty();
    store.pool.assert_all_back();
}

#[test]
#[ignore = "long: make test-full"]
fn a_container_below_its_limit_exits_with_3_and_names_the_limit_that_suffices() {
    let model = models::demo("100M", "Q8_0");
    let limits = limits(&with_small_cache(Launch::ours().model(&model)));
    let [own, weights] = ["SERVER", "LOADER"].map(|it| limits[&format!("{it}_HUGEPAGES_2M")]);
    let mut image = or_skip!(Image::build());
    // Pages are enough. Only the limit is not.
    let store = or_skip!(Store::with((weights + own) / PAGE + 8));
    let cgroup = or_skip!(Cgroup::with_limit(own / PAGE - 1));
    image.storage.remove_later(cgroup.name());
    let parent = format!("--cgroup-parent=/{}", cgroup.name());
    let shared = Shared {
        image: &image,
        model: &model,
        store: &store,
    };
    let sufficient = |bytes: u64| format!("to at least {bytes} bytes");

    // Not in the cgroup, which would count the pages of the store, too.
    let loaded = shared.load(&[]);
    assert!(loaded.status.success(), "{loaded:?}");
    let ended = shared.launch("below", 10001, &[&parent]).run();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.log);
    assert!(ended.log.contains(&sufficient(own)), "{}", ended.log);
    store.assert_only_files_hold_pages();
    cgroup.set("max", own / PAGE);
    let container = shared.serve("enough", 10001, &[&parent]);
    container.server().assert_answers();
    let ended = container.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);

    store.empty();
    cgroup.set("max", weights / PAGE - 1);
    let loaded = shared.load(&[&parent]);
    let said = String::from_utf8_lossy(&loaded.stderr);
    assert_eq!(loaded.status.code(), Some(3), "{said}");
    assert!(said.contains(&sufficient(weights)), "{said}");
    store.pool.assert_all_back();
    cgroup.set("max", weights / PAGE);
    let loaded = shared.load(&[&parent]);
    assert!(loaded.status.success(), "{loaded:?}");
}

//
// deploy/compose
//

const OLD: &str = "a.gguf";
const NEW: &str = "b.gguf";
/// As in the plans below.
const SETTINGS: &str = "CTX_SIZE=512\nCACHE_RAM=64\n";
const CLIENTS: usize = 4;
/// The user of the containers in compose.yaml.
const USER: &str = "uid=10001,gid=10001,mode=0755";

/// The lines that `hugepages plan --format env` prints.
fn printed_plan(model: &Path) -> String {
    let model = model.to_str().expect("target/ has a plain name");
    let output = plan("env", ["-m", model, "-c", "512", "--cache-ram", "64"]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn pages_in(plan: &str, name: &str) -> u64 {
    let name = format!("{name}_HUGEPAGES_2M=");
    let bytes = plan.lines().find_map(|line| line.strip_prefix(&name));
    bytes.expect("a line").parse::<u64>().expect("bytes") / PAGE
}

/// A copy of `deploy/compose` whose servers listen on free ports of this machine.
struct Compose<'a> {
    dir: tempfile::TempDir,
    program: PathBuf,
    ports: Vec<Port>,
    image: &'a Image,
}

impl<'a> Compose<'a> {
    fn new(image: &'a Image, program: PathBuf, plan: &str, store: &Store) -> Self {
        let ports: Vec<Port> = (0..SERVERS)
            .map(|_| Port::reserve().expect("a port is free"))
            .collect();
        let (variable, value) = QUIET_THREADS;
        let mut settings = format!("STORE={}\n", store.arg());
        let mut services = "services:\n  loader: { network_mode: host }\n".to_owned();
        for (number, port) in (1..).zip(&ports) {
            writeln!(settings, "PORT_{number}={}", port.number).expect("a text");
            writeln!(
                services,
                "  server-{number}:\n    network_mode: host\n    stop_grace_period: 2s\n    environment: {{ {variable}: {value} }}"
            )
            .expect("a text");
        }
        Self::with(image, program, plan, ports, &settings, &services)
    }

    /// The server of the profile `rpc`, and its workers. Their ports are in this order.
    fn of_workers(image: &'a Image, program: PathBuf, plan: &str) -> Self {
        let ports: Vec<Port> = (0..3)
            .map(|_| Port::reserve().expect("a port is free"))
            .collect();
        let [port, workers @ ..] = &ports[..] else {
            unreachable!("three ports");
        };
        let (variable, value) = QUIET_THREADS;
        let mut services = format!(
            "services:\n  rpc: {{ network_mode: host, stop_grace_period: 2s, environment: {{ {variable}: {value} }} }}\n"
        );
        let mut addresses = Vec::new();
        for (number, port) in (1..).zip(workers) {
            let port = port.number;
            addresses.push(format!("127.0.0.1:{port}"));
            writeln!(
                services,
                "  worker-{number}:\n    network_mode: host\n    stop_grace_period: 2s\n    \
                 entrypoint: [\"/app/ggml-rpc-server\", \"--host\", \"127.0.0.1\", \"--port\", \"{port}\"]"
            )
            .expect("a text");
        }
        let workers = addresses.join(",");
        let settings = format!("RPC_PORT={}\nWORKERS={workers}\n", port.number);
        Self::with(image, program, plan, ports, &settings, &services)
    }

    fn with(
        image: &'a Image,
        program: PathBuf,
        plan: &str,
        ports: Vec<Port>,
        settings: &str,
        services: &str,
    ) -> Self {
        let dir = copy_of_compose(plan);
        // The user of the containers must reach the models.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("just made");
        let env = dir.path().join(".env");
        let text = fs::read_to_string(&env).expect("just made");
        let models = dir.path().display();
        let settings = format!("{text}{SETTINGS}MODEL={OLD}\nMODELS={models}\n{settings}");
        fs::write(env, settings).expect("just made");
        fs::write(dir.path().join("compose.override.yaml"), services).expect("just made");
        Self {
            dir,
            program,
            ports,
            image,
        }
    }

    /// A program in the folder, with podman-compose in its PATH.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let bin = self.program.parent().expect("it is in a folder").display();
        let path = env::var("PATH").expect("a PATH");
        let mut command = Command::new(program);
        command
            .current_dir(self.dir.path())
            .env("PATH", format!("{bin}:{path}"));
        self.image.for_others(&mut command);
        command
    }

    fn compose(&self, args: &[&str]) {
        programs::run(self.command(&self.program).args(args))
            .unwrap_or_else(|said| panic!("{said}"));
    }

    fn script(&self, name: &str) -> Command {
        self.command(self.dir.path().join(name))
    }

    /// The commands for podman-compose in `deploy/compose/README.md`.
    fn up(&self) {
        self.compose(&["run", "--rm", "-T", "loader"]);
        let servers = ["server-1", "server-2", "server-3"];
        self.compose(&[&["up", "--detach", "--no-deps"][..], &servers].concat());
        for port in &self.ports {
            assert!(is_ready(port), "{}", self.logs());
        }
    }

    fn logs(&self) -> String {
        let output = self
            .command(&self.program)
            .args(["--profile", "rpc", "logs"])
            .output();
        format!("{:?}", output.expect("it ran before"))
    }

    fn pid(&self, server: &str) -> String {
        let name = format!("llama-hugepages_{server}_1");
        let mut inspect = self.image.storage.podman();
        inspect.args(["inspect", "--format", "{{.State.Pid}}", &name]);
        let output = inspect.output().expect("podman ran before");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn url(port: &Port, path: &str) -> String {
    format!("http://127.0.0.1:{}{path}", port.number)
}

fn is_ready(port: &Port) -> bool {
    let is_healthy = || http::try_get(&url(port, "/health")).is_some_and(|it| it.0 == 200);
    wait_for(Duration::from_secs(60), is_healthy)
}

/// What became of a request that clients sent to one server after the other, as a proxy does. At its end, a server cuts its running
/// answers, as stock does, so a proxy repeats them.
#[derive(Debug, PartialEq)]
enum Request {
    AnsweredBy(String),
    Failed(String),
}

/// Asks until `is_done`.
fn ask(ports: &[Port], is_done: &AtomicBool) -> Vec<Request> {
    let body = json!({ "prompt": "Once upon a time", "n_predict": 16, "ignore_eos": true });
    let one = || {
        for port in ports.iter().chain(ports) {
            match http::try_post(&url(port, "/completion"), &body) {
                Ok((200, answer)) if answer["tokens_predicted"] == 16 => {
                    return Request::AnsweredBy(answer["model"].to_string());
                }
                Ok((503, _)) | Err(_) => {}
                other => return Request::Failed(format!("{}: {other:?}", port.number)),
            }
        }
        Request::Failed("no server answers".to_owned())
    };
    let mut requests = Vec::new();
    while !is_done.load(Ordering::Relaxed) {
        requests.push(one());
    }
    requests
}

#[test]
#[ignore = "long: make test-full"]
fn a_switch_behind_a_proxy_that_repeats_requests_fails_none_and_a_dead_server_starts_again() {
    let docker = Command::new("docker").args(["compose", "version"]).output();
    if docker.is_ok_and(|output| output.status.success()) {
        return skip("the scripts prefer Docker Compose, whose containers the test cannot remove");
    }
    let program = or_skip!(python::podman_compose());
    let image = or_skip!(Image::build());
    let (old, new) = (models::demo("100M", "Q8_0"), models::demo("100M", "Q4_K"));
    let plans = [printed_plan(&old), printed_plan(&new)];
    let weights: u64 = plans.iter().map(|plan| pages_in(plan, "LOADER")).sum();
    let own = plans.iter().map(|plan| pages_in(plan, "SERVER")).max();
    let pages = weights + SERVERS * own.expect("two plans");
    let store = or_skip!(Store::with_options(pages, USER));
    let compose = Compose::new(&image, program, &plans[0], &store);
    for (model, name) in [(&old, OLD), (&new, NEW)] {
        fs::copy(model, compose.dir.path().join(name)).expect("the disk has space");
    }
    let checked = compose.script("check").output().expect("a script");
    assert!(checked.status.success(), "{checked:?}");
    compose.up();
    let taken = pages_in(&plans[0], "LOADER") + SERVERS * pages_in(&plans[0], "SERVER");
    assert_eq!(store.pool.taken(), taken, "{plans:?}");

    let is_done = AtomicBool::new(false);
    let (switched, requests) = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| ask(&compose.ports, &is_done)))
            .collect();
        let switched = compose.script("switch").arg(NEW).output();
        is_done.store(true, Ordering::Relaxed);
        let requests = clients.into_iter().map(thread::ScopedJoinHandle::join);
        let requests: Vec<_> = requests.flat_map(|it| it.expect("no panic")).collect();
        (switched.expect("a script"), requests)
    });
    assert!(switched.status.success(), "{switched:?}");
    println!("{} requests during the switch", requests.len());
    let is_failed = |request: &&Request| matches!(request, Request::Failed(_));
    let failed: Vec<_> = requests.iter().filter(is_failed).collect();
    assert_eq!(failed, Vec::<&Request>::new(), "of {}", requests.len());
    for name in [OLD, NEW] {
        let is_by = |it: &Request| matches!(it, Request::AnsweredBy(model) if model.contains(name));
        assert!(requests.iter().any(is_by), "{name}: {requests:?}");
    }
    for port in &compose.ports {
        let props = http::get_json(&url(port, "/props"));
        assert_eq!(props["model_path"], format!("/models/{NEW}"), "{props}");
    }
    let taken = pages_in(&plans[1], "LOADER") + SERVERS * pages_in(&plans[1], "SERVER");
    assert!(wait_for(Duration::from_secs(5), || store.pool.taken() == taken));

    let pid = compose.pid("server-2");
    programs::run(Command::new("kill").args(["-KILL", &pid])).expect("it runs");
    // podman-compose does not always restart it.
    compose.compose(&["up", "--detach", "--no-deps", "server-2"]);
    let has_new = || !["", "0", &pid].contains(&compose.pid("server-2").as_str());
    assert!(
        wait_for(Duration::from_secs(30), has_new),
        "{}",
        compose.logs()
    );
    assert!(is_ready(&compose.ports[1]), "{}", compose.logs());

    compose.compose(&["down"]);
    store.assert_only_files_hold_pages();
    store.empty();
    store.pool.assert_all_back();
}

#[test]
#[ignore = "long: make test-full"]
fn the_workers_of_the_profile_rpc_hold_one_model_and_return_after_a_kill() {
    let program = or_skip!(python::podman_compose());
    let image = or_skip!(Image::build());
    let model = models::demo("100M", "Q8_0");
    let plan = printed_plan(&model);
    let alone = pages_in(&plan, "ALONE");
    // Each of the three processes rounds its buffers up.
    let pool = or_skip!(Pool::with(alone + 64));
    let compose = Compose::of_workers(&image, program, &plan);
    fs::copy(&model, compose.dir.path().join(OLD)).expect("the disk has space");
    let up = ["--profile", "rpc", "up", "--detach"];
    compose.compose(&[&up[..], &["rpc"]].concat());
    let port = &compose.ports[0];
    assert!(is_ready(port), "{}", compose.logs());
    let answer = || {
        let body =
            json!({ "prompt": "Once", "n_predict": 4, "ignore_eos": true, "temperature": 0 });
        let answer = http::try_post(&url(port, "/completion"), &body).ok()?;
        (answer.0 == 200).then(|| answer.1["content"].clone())
    };
    let first = answer().expect("an answer");
    // The weights are on the workers: nearly half of them on each.
    let weights = pages_in(&plan, "LOADER") * PAGE;
    for worker in ["worker-1", "worker-2"] {
        let pid = compose.pid(worker).parse().expect("it runs");
        let held = smaps::status_bytes(pid, "HugetlbPages");
        assert!(held >= weights / 4, "{worker}: {held} of {weights}");
    }
    let pid = compose.pid("worker-1");
    programs::run(Command::new("kill").args(["-KILL", &pid])).expect("it runs");
    // The next request finds that the worker is gone, and `rpc` ends. Podman does not start it again, because it requires the worker.
    assert_eq!(answer(), None);
    let has_ended = || ["", "0"].contains(&compose.pid("rpc").as_str());
    assert!(wait_for(Duration::from_secs(10), has_ended));
    let all = ["--no-deps", "worker-1", "worker-2", "rpc"];
    compose.compose(&[&up[..], &all].concat());
    let again = wait_for(Duration::from_secs(60), || {
        answer().as_ref() == Some(&first)
    });
    assert!(again, "{}", compose.logs());
    compose.compose(&["--profile", "rpc", "down"]);
    assert!(wait_for(Duration::from_secs(10), || pool.taken() == 0));
    pool.assert_all_back();
}
