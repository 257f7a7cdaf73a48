//! Servers in company: others fill, attach, drop, shrink the pool and die meanwhile, and no server that runs is hurt.
//!
//! Two walks share the pool, each with a store of its own, and take steps in random order at the same time. After each step the weights
//! of every living server equal the model file, no process died of a signal that the test did not send, and every huge page is accounted
//! for. `LLAMA_HUGEPAGES_COMPANY_SEED` repeats two walks, and no new ones start after `LLAMA_HUGEPAGES_COMPANY_SECONDS`.

use std::collections::HashMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::gguf::Gguf;
use crate::support::pool::{Counts, PAGE, Pool};
use crate::support::server::{Launch, Server};
use crate::support::store::{Mounted, Store};
use crate::support::{full, models, or_skip, programs, skip, smaps, wait_for};

const NR: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Neither owns the models nor the images of root.
const OTHER_USER: u32 = 65534;

/// Enough for three servers with pages of their own.
const PAGES: u64 = 90;

/// Enough for most servers of two walks, but not for all.
const PAGES_OF_WALKS: u64 = 150;

/// Steps of a walk.
const STEPS: usize = 14;

/// Only one walk at a time changes the size of the pool.
static RESIZE: Mutex<()> = Mutex::new(());

/// A model as servers load it.
struct Model {
    path: PathBuf,
    is_mapped: bool,
    /// Of stock.
    answer: Value,
}

impl Model {
    fn launch(&self, launch: Launch) -> Launch {
        if self.is_mapped {
            launch.model(&self.path)
        } else {
            launch.repacked_model(&self.path)
        }
    }
}

fn answer(server: &Server) -> Value {
    server.complete(
        "Once upon a time",
        &json!({ "temperature": 0, "n_predict": 6 }),
    )
}

/// Copies that every user may read.
fn models() -> Result<(TempDir, Vec<Model>), String> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("just made");
    let mut all = Vec::new();
    for (kind, is_mapped) in [("Q8_0", true), ("Q4_0", false)] {
        let copy = models::copy_to(dir.path(), &models::demo("20M", kind));
        let path = dir.path().join(format!("{}.gguf", kind.to_lowercase()));
        fs::rename(copy, &path).expect("the same folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("just made");
        let mut model = Model {
            path,
            is_mapped,
            answer: Value::Null,
        };
        let stock = model.launch(Launch::stock()?).start();
        model.answer = answer(&stock);
        all.push(model);
    }
    Ok((dir, all))
}

/// One walk: its store, its servers, and its steps so far.
struct Walk<'a> {
    store: Mounted,
    models: &'a [Model],
    servers: Vec<(usize, Server)>,
    random: Xoshiro256PlusPlus,
    history: Vec<String>,
}

impl<'a> Walk<'a> {
    fn new(models: &'a [Model], seed: u64) -> Result<Self, String> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        // Some mounts are smaller than the models.
        let limits = ["", ",size=8M", "", ",size=14M", ",size=24M"];
        let limit = limits[(random.next_u64() % 5) as usize];
        let store = Mounted::with(&format!("pagesize=2M,mode=1777{limit}"))?;
        Ok(Self {
            store,
            models,
            servers: Vec::new(),
            random,
            history: vec![format!("seed {seed}, a store with '{limit}'")],
        })
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random.next_u64() % n
    }

    fn fail(&self, what: &str) -> ! {
        panic!("{what}\n  {}", self.history.join("\n  "))
    }

    /// Starts a server with a random model, policy and user.
    fn spawn(&mut self) -> (usize, Server) {
        let model = self.below(2) as usize;
        let policy = ["require", "prefer"][self.below(2) as usize];
        let is_other = self.below(3) == 0;
        let threads = ["1", "4"][self.below(2) as usize];
        self.history
            .push(format!("start {model} {policy} other {is_other}"));
        let mut launch = self.models[model]
            .launch(Launch::ours())
            .hugepages(policy)
            .args(["--hugepage-store", self.store.arg()])
            .args(["--hugepage-threads", threads]);
        if is_other {
            launch = launch.under_uid(OTHER_USER);
        }
        (model, launch.spawn())
    }

    /// Waits until the server is ready, or has ended with exit code 1 or 3.
    fn settle(&mut self, model: usize, mut server: Server) {
        if server.is_ready_before_it_ends() {
            self.servers.push((model, server));
            return;
        }
        let log = server.log();
        let how = server.how_it_ended();
        let ended = server.wait();
        self.history.push(format!("it ended: {how}"));
        if ended.status.signal().is_some() || !matches!(ended.status.code(), Some(1 | 3)) {
            self.fail(&format!("a start ended with {how}\n{log}"));
        }
    }

    /// An administrator removes all free pages from the pool while a server starts.
    fn shrink_while_starting(&mut self) {
        let resize = RESIZE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = fs::read_to_string(NR).expect("it can be read");
        let free = Counts::read().free;
        let (model, mut server) = self.spawn();
        let part = self.below(20);
        wait_for(Duration::from_secs(20), || {
            server.has_ended() || server.is_ready() || Counts::read().free + part < free
        });
        self.history.push(format!("shrink after {part} pages"));
        if self.below(2) == 0 {
            fs::write(NR, "0").expect("root");
        } else {
            let state = tempfile::tempdir().expect("a temporary folder can be made");
            let mut tool = Command::new(programs::hugepages());
            tool.env("LLAMA_HUGEPAGES_STATE", state.path());
            self.run(tool.args(["pool", "release", "--force"]));
        }
        self.settle(model, server);
        self.check();
        fs::write(NR, before.trim()).expect("root");
        drop(resize);
    }

    fn store(&mut self, args: &[&str]) {
        let mut tool = Command::new(programs::hugepages());
        tool.arg("store").args(args);
        tool.args(["--store", self.store.arg()]);
        self.run(&mut tool);
    }

    /// A signal fails the test; an exit code does not.
    fn run(&mut self, tool: &mut Command) {
        let args: Vec<_> = tool
            .get_args()
            .map(|arg| arg.display().to_string())
            .collect();
        self.history.push(args.join(" "));
        let output = tool.stdin(Stdio::null()).output();
        let output = output.expect("the tool can be started");
        if output.status.code().is_none() {
            self.fail(&format!("{tool:?}: {output:?}"));
        }
    }

    fn step(&mut self) {
        match self.below(14) {
            0..=3 => {
                let (model, server) = self.spawn();
                self.settle(model, server);
            }
            4 => {
                let (first, one) = self.spawn();
                let (second, two) = self.spawn();
                self.settle(first, one);
                self.settle(second, two);
            }
            5 => {
                let (_, server) = self.spawn();
                let ms = self.below(120);
                thread::sleep(Duration::from_millis(ms));
                self.history.push(format!("kill it after {ms} ms"));
                drop(server.stop(Signal::KILL));
            }
            6 | 7 => self.shrink_while_starting(),
            8 => {
                let model = self.models[self.below(2) as usize].path.clone();
                self.store(&["load", model.to_str().expect("a plain path")]);
            }
            9 => self.store(&["gc", "--older-than", "0s"]),
            10 => self.store(&["verify"]),
            11 => self.store(&["drop", "--all"]),
            12 => self.store(&["drop", "--all", "--force"]),
            _ if !self.servers.is_empty() => {
                let i = self.below(self.servers.len() as u64) as usize;
                let (_, server) = self.servers.swap_remove(i);
                let signal = [Signal::TERM, Signal::KILL][self.below(2) as usize];
                self.history.push(format!("end one with {signal:?}"));
                let ended = server.stop(signal);
                if signal == Signal::TERM && ended.status.code() != Some(0) {
                    self.fail(&format!("SIGTERM: {:?}\n{}", ended.status, ended.log));
                }
            }
            _ => {}
        }
        while self.servers.len() > 3 {
            let (_, server) = self.servers.remove(0);
            drop(server.stop(Signal::TERM));
        }
        self.check();
    }

    /// Each server runs, with the model's weights, and answers as stock does.
    fn check(&mut self) {
        for i in 0..self.servers.len() {
            if self.servers[i].1.has_ended() {
                self.fail_for(
                    i,
                    &format!("it ended: {}", self.servers[i].1.how_it_ended()),
                );
            }
            // A server that reads lost weights dies, so the order of the two checks decides which finding comes first.
            if self.below(2) == 0 {
                self.check_weights(i);
                self.check_answer(i);
            } else {
                self.check_answer(i);
                self.check_weights(i);
            }
        }
    }

    fn check_weights(&self, i: usize) {
        let (model, server) = &self.servers[i];
        let model = &self.models[*model];
        if !model.is_mapped {
            return;
        }
        if let Err(why) = same_weights(server.pid(), &model.path) {
            self.fail_for(i, &why);
        }
    }

    fn check_answer(&mut self, i: usize) {
        let (model, server) = &self.servers[i];
        let expected = &self.models[*model].answer;
        // The signal distinguishes a server that dies during the answer from one that does not answer.
        let answered = panic::catch_unwind(AssertUnwindSafe(|| answer(server) == *expected));
        match answered {
            Ok(true) => {}
            Ok(false) => self.fail_for(i, "the answer is not stock's"),
            Err(_) => {
                let server = &mut self.servers[i].1;
                wait_for(Duration::from_secs(5), || server.has_ended());
                let how = server.how_it_ended();
                self.fail_for(i, &format!("while it answered: {how}"));
            }
        }
    }

    fn fail_for(&self, i: usize, what: &str) -> ! {
        let server = &self.servers[i].1;
        self.fail(&format!(
            "server {i}, {}: {what}\n{}",
            server.pid(),
            server.log()
        ))
    }

    /// Pages of servers, of files in the store, and of files that lost their name there; each page once.
    fn pages(&self) -> u64 {
        let store = self.store.arg();
        let mut nameless = HashMap::new();
        let mut bytes = 0;
        for (_, server) in &self.servers {
            let proc = PathBuf::from(format!("/proc/{}", server.pid()));
            // A file without a name also has pages that nobody maps: those of its manifest. Some servers only keep it open.
            let mut add = |path: PathBuf| {
                if let Ok(data) = fs::metadata(path) {
                    nameless.insert(data.ino(), data.blocks() * 512);
                }
            };
            for vma in smaps::read(server.pid()) {
                if !vma.is_huge() {
                    continue;
                }
                if !vma.path.starts_with(store) {
                    bytes += vma.size("Shared_Hugetlb") + vma.size("Private_Hugetlb");
                } else if vma.path.ends_with(" (deleted)") {
                    let range = format!("{:x}-{:x}", vma.addresses.start, vma.addresses.end);
                    add(proc.join("map_files").join(range));
                }
            }
            let open = fs::read_dir(proc.join("fd")).expect("root, and the server waits");
            for file in open.flatten().map(|entry| entry.path()) {
                let name = fs::read_link(&file).unwrap_or_default();
                let name = name.to_string_lossy();
                if name.starts_with(store) && name.ends_with(" (deleted)") {
                    add(file);
                }
            }
        }
        self.store.pages() + (bytes + nameless.values().sum::<u64>()) / PAGE
    }
}

/// Compares all weights that a process has mapped or copied with the model file.
fn same_weights(pid: u32, model: &Path) -> Result<(), String> {
    let file = File::open(model).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    // llama.cpp unmaps the header of the file if no huge page holds it.
    let weights = Gguf::read(model).data..length;
    let name = model.to_str().expect("a plain path");
    let mut seen = 0;
    for vma in smaps::read(pid) {
        let is_ours = vma.path == name
            || vma.path == "/memfd:llama-weights (deleted)"
            || vma.path.contains(".weights-");
        if is_ours && vma.offset < length {
            let bytes = vma.offset..length.min(vma.offset + vma.len());
            seen += bytes.end.saturating_sub(bytes.start.max(weights.start));
            if !smaps::same_bytes(pid, vma.addresses.start, &file, bytes) {
                return Err(format!("the weights of {pid} changed: {vma:?}"));
            }
        }
    }
    let all = weights.end - weights.start;
    if seen < all {
        return Err(format!(
            "{seen} of {all} bytes of weights are mapped in {pid}"
        ));
    }
    Ok(())
}

pub fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// Every page in use belongs to a server or to a file of a store.
fn assert_all_pages_accounted_for(pool: &Pool, walks: &[Mutex<Walk>]) {
    let walks = walks.iter().map(|walk| walk.lock().expect("between steps"));
    let walks: Vec<_> = walks.collect();
    let in_use = |counts: &Counts| counts.total - counts.free;
    let others = in_use(&pool.counts);
    let mut last = (0, 0);
    let is_right = wait_for(Duration::from_secs(5), || {
        let pages = walks.iter().map(|walk| walk.pages()).sum();
        last = (in_use(&Counts::read()) - others, pages);
        last.0 == last.1
    });
    let steps = walks.iter().map(|walk| walk.history.join("\n  "));
    let steps = steps.collect::<Vec<_>>().join("\n  ");
    // A panic with a lock held would add the panics of both threads to the output.
    drop(walks);
    assert!(
        is_right,
        "{} pages are in use, {} are accounted for\n  {steps}",
        last.0, last.1
    );
}

fn walk_together(models: &[Model], seed: u64) -> Result<(), String> {
    let pool = Pool::with(PAGES_OF_WALKS)?;
    let walks = [Walk::new(models, seed)?, Walk::new(models, !seed)?].map(Mutex::new);
    thread::scope(|scope| {
        // A server dies with the thread that started it, so each walk keeps its thread.
        let threads = walks.each_ref().map(|walk| {
            let (start, starts) = mpsc::channel::<()>();
            let (end, ends) = mpsc::channel();
            scope.spawn(move || {
                for () in starts {
                    walk.lock().expect("not shared during a step").step();
                    let _ = end.send(());
                }
                let mut walk = walk.lock().expect("not shared during a step");
                walk.servers.clear();
                walk.store.empty();
            });
            (start, ends)
        });
        for _ in 0..STEPS {
            for (start, _) in &threads {
                start.send(()).expect("the thread waits");
            }
            // Waits for both threads, before a panic of one ends the test.
            let ends = threads.each_ref().map(|(_, ends)| ends.recv());
            if ends.iter().any(Result::is_err) {
                return;
            }
            assert_all_pages_accounted_for(&pool, &walks);
        }
    });
    pool.assert_all_back();
    Ok(())
}

#[test]
fn no_order_of_steps_hurts_a_server() {
    let (_dir, models) = or_skip!(models());
    let given = number("LLAMA_HUGEPAGES_COMPANY_SEED");
    let seconds =
        number("LLAMA_HUGEPAGES_COMPANY_SECONDS").unwrap_or(if full() { 3600 } else { 100 });
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut seed = given.unwrap_or_else(|| now.expect("after 1970").as_secs() << 12);
    let (start, mut walks) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(seconds) {
        println!("LLAMA_HUGEPAGES_COMPANY_SEED={seed}");
        or_skip!(walk_together(&models, seed));
        walks += 2;
        if given.is_some() {
            break;
        }
        seed += 1;
    }
    let minutes = start.elapsed().as_secs() / 60;
    println!("{walks} walks of {STEPS} steps in {minutes} minutes");
}

#[test]
fn two_servers_share_a_store_that_is_smaller_than_the_model() {
    let (_dir, models) = or_skip!(models());
    for model in &models {
        let store = or_skip!(Store::with_options(PAGES, "size=10M"));
        let launch = |policy| {
            model
                .launch(Launch::ours())
                .hugepages(policy)
                .args(["--hugepage-store", store.arg()])
        };
        let one = launch("prefer").start();
        assert_eq!(answer(&one), model.answer);
        let two = launch("prefer").start();
        assert_eq!(answer(&two), model.answer);
        assert_eq!(answer(&one), model.answer);
        // A start that fails changes nothing either.
        let three = launch("require").run();
        three.assert_clean_failure();
        assert_eq!(three.status.code(), Some(3), "{}", three.log);
        if model.is_mapped {
            for server in [&one, &two] {
                same_weights(server.pid(), &model.path).expect("as before");
            }
        }
        assert_eq!(answer(&one), model.answer);
        assert_eq!(answer(&two), model.answer);
        drop((one, two));
        store.empty();
        store.pool.assert_all_back();
    }
}

/// Read locks need no more than the right to read.
#[test]
fn a_reader_who_locks_an_image_keeps_nobody_from_filling_it() {
    let (_dir, models) = or_skip!(models());
    let model = &models[0];
    let store = or_skip!(Store::with_options(PAGES, "size=10M"));
    let launch = |policy| {
        model
            .launch(Launch::ours())
            .hugepages(policy)
            .args(["--hugepage-store", store.arg()])
    };
    // The mount has no room for the rest, so the image is not complete.
    drop(launch("prefer").start());
    let image = OpenOptions::new()
        .read(true)
        .open(store.image())
        .expect("root");
    // SAFETY: numbers only, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_RDLCK as i16;
    lock.l_len = 1 << 20;
    // SAFETY: an open file, and a lock that outlives the call.
    let locked = unsafe { libc::fcntl(image.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    assert_eq!(locked, 0);
    let server = launch("prefer").start();
    assert_eq!(answer(&server), model.answer);
    drop((server, image));
    store.empty();
    store.pool.assert_all_back();
}

/// A process that stands still while it fills is named by the one that waits.
#[test]
fn a_server_that_waits_for_a_filler_names_it() {
    if !crate::support::is_root() {
        return skip("root is needed for the pool");
    }
    let (_dir, models) = or_skip!(models());
    let model = &models[0];
    let store = or_skip!(Store::with_options(PAGES, ""));
    let launch = || {
        model
            .launch(Launch::ours())
            .hugepages("require")
            .args(["--hugepage-store", store.arg()])
    };
    let mut filler = launch().spawn();
    let is_filling =
        || store.names().iter().any(|name| name.starts_with('.')) && !store.images().is_empty();
    wait_for(Duration::from_secs(20), || {
        is_filling() || filler.has_ended()
    });
    filler.signal(Signal::STOP);
    if !is_filling() {
        // It was faster than this test, which shows nothing then.
        filler.signal(Signal::CONT);
        return skip("the fill was over before it could be stopped");
    }
    let waiting = launch().spawn();
    let text = format!("waiting for process {}", filler.pid());
    assert!(
        wait_for(Duration::from_secs(30), || waiting.log().contains(&text)),
        "{}",
        waiting.log()
    );
    filler.signal(Signal::CONT);
    let mut waiting = waiting;
    waiting.wait_until_ready();
    filler.wait_until_ready();
    assert_eq!(answer(&waiting), model.answer);
    drop((filler, waiting));
    store.empty();
    store.pool.assert_all_back();
}
