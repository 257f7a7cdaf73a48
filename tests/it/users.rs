//! The same claims for the owner of a model, for a user who may only read it, and for root.
//! Lives here: effects of a user's rights. Not here: a model's content (`bad_input`).

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::equality::answers;
use crate::support::device::Device;
use crate::support::file_system::{FileSystem, Kind};
use crate::support::load::Load;
use crate::support::page_cache;
use crate::support::pool::Pool;
use crate::support::seen::{Before, Seen};
use crate::support::server::{Launch, Server};
use crate::support::store::{Mounted, Store};
use crate::support::weights::BOTH;
use crate::support::weights::Weights::{self, Mapped, Repacked};
use crate::support::{is_root, models, need, or_skip, wait_for};

const MIB: u64 = 1 << 20;

/// Reads beside the header: the kernel's readahead, and a first read that probes the file system.
const SLACK: u64 = 4 * MIB;

/// More pages than any model here needs.
const PAGES: u64 = 260;

/// The kernel's smallest page.
const PAGE: u64 = 4096;

const NOBODY: u32 = 65534;
/// The group that owns the volume, as with Kubernetes' `fsGroup`.
const FS_GROUP: u32 = 65500;

const NAME: &str = "model.gguf";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    Root,
    /// An ordinary user who owns the model.
    Owner,
    /// An ordinary user, as in the shipped unit, whose model belongs to root.
    Reader,
}

const USERS: [User; 3] = [User::Root, User::Owner, User::Reader];

impl User {
    /// Gives the model to its owner, readable by all.
    fn prepare(self, model: &Path) {
        fs::set_permissions(model, Permissions::from_mode(0o644)).expect("root may");
        let owner = if self == Self::Owner { NOBODY } else { 0 };
        chown(model, Some(owner), Some(owner)).expect("root may");
    }

    fn with(self, launch: Launch) -> Launch {
        match self {
            Self::Root => launch,
            Self::Owner | Self::Reader => launch.under_uid(NOBODY),
        }
    }
}

fn root() -> Result<(), String> {
    if is_root() {
        Ok(())
    } else {
        Err("only root can become another user".to_owned())
    }
}

//
// reading
//

/// What the page cache holds before a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cache {
    Cold,
    Warm,
    /// Three quarters of each MiB: most reads begin in the page cache and end behind it.
    Patchy,
    /// All but one page of each 8 MiB, as after the kernel reclaimed a few pages.
    Holes,
}

impl Cache {
    fn prepare(self, model: &Path) {
        let size = fs::metadata(model).expect("the model exists").len();
        match self {
            Self::Cold => {}
            Self::Warm => page_cache::warm_all(model, model),
            Self::Patchy => {
                for begin in (0..size).step_by(MIB as usize) {
                    page_cache::warm(model, begin..size.min(begin + MIB / 4 * 3));
                }
            }
            Self::Holes => {
                page_cache::warm_all(model, model);
                for begin in (4 * MIB..size - PAGE).step_by(8 * MIB as usize) {
                    page_cache::drop_range(model, begin..begin + PAGE);
                }
            }
        }
    }

    fn is_right(self, cached: u64, size: u64) -> bool {
        match self {
            Self::Cold => cached < MIB,
            Self::Warm => cached >= size,
            Self::Patchy => (size / 2..size / 10 * 9).contains(&cached),
            Self::Holes => (size - size / 50..size).contains(&cached),
        }
    }
}

/// Loads as a user, and asserts that the report is true.
fn load(user: User, weights: Weights, cache: Cache) -> Result<(Seen, String), String> {
    root()?;
    let expected = weights.stock_answers()?;
    let demo = weights.demo();
    let need = need::of(&weights.with(Launch::ours(), &demo));
    let pool = Pool::with(need)?;
    let file_system = FileSystem::with(Kind::Ext4, &[(&demo, NAME)])?;
    let model = file_system.path(NAME);
    file_system.let_others_in();
    user.prepare(&model);
    file_system.drop_cache(NAME);
    let size = fs::metadata(&model).expect("the model exists").len();
    cache.prepare(&model);
    let before = Before::of(&file_system, &model, &demo)?;
    let cached_before = before.cached;
    assert!(
        cache.is_right(cached_before, size),
        "{cached_before} of {size} bytes are cached before the load"
    );
    let launch = weights.with(Launch::ours(), &model).hugepages("require");
    let server = user.with(launch).start();
    let seen = before.after(&server)?;
    println!("{user:?}, {weights:?}, {cache:?}: {seen:?}");
    let log = server.log();
    assert_eq!(&answers(&server), expected, "{user:?}\n{log}");
    drop(server);
    pool.assert_all_back();
    let said = seen.said;
    assert!(
        said.cached <= cached_before + SLACK,
        "{user:?}: the page cache had less: {seen:?}\n{log}"
    );
    assert!(
        said.direct <= seen.from_device + SLACK,
        "{user:?}: the device read less: {seen:?}\n{log}"
    );
    assert!(
        said.buffered <= seen.arrived + SLACK,
        "{user:?}: less came into the page cache: {seen:?}\n{log}"
    );
    Ok((seen, log))
}

#[test]
fn a_cold_load_is_direct_and_leaves_the_page_cache_empty_for_every_user() {
    for user in USERS {
        for weights in BOTH {
            let (seen, log) = or_skip!(load(user, weights, Cache::Cold));
            assert!(
                seen.cached_after <= seen.header + SLACK,
                "{user:?}: left in the page cache: {seen:?}\n{log}"
            );
            assert!(
                seen.said.direct >= seen.size - seen.size / 10,
                "{user:?}: not direct: {seen:?}\n{log}"
            );
        }
    }
}

#[test]
fn a_warm_load_does_not_read_the_disk_again_for_any_user() {
    for user in USERS {
        for weights in BOTH {
            let (seen, log) = or_skip!(load(user, weights, Cache::Warm));
            assert!(
                seen.from_device <= seen.size / 10,
                "{user:?}: read from the device: {seen:?}\n{log}"
            );
            assert!(
                seen.cached_after + seen.size / 50 >= seen.cached_before,
                "{user:?}: the page cache was dropped: {seen:?}\n{log}"
            );
        }
    }
}

#[test]
fn a_few_missing_pages_are_read_and_not_all_around_them() {
    for user in USERS {
        for weights in BOTH {
            let (seen, log) = or_skip!(load(user, weights, Cache::Holes));
            assert!(
                seen.from_device <= seen.size / 10,
                "{user:?}: read from the device: {seen:?}\n{log}"
            );
        }
    }
}

#[test]
fn a_load_is_direct_for_every_user_if_the_reads_begin_in_the_page_cache() {
    for user in USERS {
        for weights in BOTH {
            let (seen, log) = or_skip!(load(user, weights, Cache::Patchy));
            assert!(
                seen.said.buffered <= SLACK,
                "{user:?}: not direct: {seen:?}\n{log}"
            );
        }
    }
}

//
// stores
//

/// Asserts that the server attached its weights, and read no more than the header.
fn assert_attached(server: &Server, what: &str) {
    let said = Load::of(server);
    assert!(
        said.attached > 80 * MIB && said.read() < MIB,
        "{what}: {said:?}\n{}",
        server.log()
    );
}

/// A folder that every user may enter, with root's model, and root's store.
struct Shared {
    store: Store,
    model: PathBuf,
    _dir: tempfile::TempDir,
}

impl Shared {
    fn with(pages: u64, weights: Weights) -> Result<Self, String> {
        root()?;
        let store = Store::with_options(pages, "mode=0755")?;
        let dir = folder_for_all();
        let model = models::copy_to(dir.path(), &weights.demo());
        User::Reader.prepare(&model);
        Ok(Self {
            store,
            model,
            _dir: dir,
        })
    }

    fn launch(&self, user: User, weights: Weights, policy: &str) -> Launch {
        let launch = weights.with(Launch::ours(), &self.model).hugepages(policy);
        user.with(launch.args(["--hugepage-store", self.store.arg()]))
    }
}

fn folder_for_all() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("the folder is ours");
    dir
}

#[test]
fn a_user_who_may_only_read_attaches_what_root_has_loaded() {
    for weights in BOTH {
        let expected = or_skip!(weights.stock_answers());
        let shared = or_skip!(Shared::with(PAGES, weights));
        let filler = shared.launch(User::Root, weights, "require");
        let ended = filler.args(["--hugepage-load"]).run();
        assert_eq!(ended.status.code(), Some(0), "\n{}", ended.log);
        let (names, kept) = (shared.store.names(), shared.store.pages());
        for policy in ["require", "prefer"] {
            let server = shared.launch(User::Reader, weights, policy).start();
            assert_attached(&server, &format!("{weights:?}, {policy}"));
            assert_eq!(&answers(&server), expected, "{weights:?}, {policy}");
            drop(server);
            assert_eq!(
                (shared.store.names(), shared.store.pages()),
                (names.clone(), kept),
                "{weights:?}, {policy}: the server leaves the store alone"
            );
        }
        shared.store.assert_only_files_hold_pages();
    }
}

#[test]
fn a_user_who_may_only_read_is_told_that_an_image_is_incomplete() {
    for weights in BOTH {
        let expected = or_skip!(weights.stock_answers());
        let mut shared = or_skip!(Shared::with(20, weights));
        drop(shared.launch(User::Root, weights, "prefer").start());
        let kept = shared.store.pages();
        // Repacked weights may leave no image, which is incomplete as well.
        assert!(
            kept <= 20 && (kept > 0 || weights == Repacked),
            "{kept} pages"
        );
        shared.store.pool.set(PAGES);
        let names = shared.store.names();

        let ended = shared.launch(User::Reader, weights, "require").run();
        ended.assert_clean_failure();
        assert!(ended.log.contains(shared.store.arg()), "{}", ended.log);
        ended.line_with("hint: ");
        assert_eq!((shared.store.names(), shared.store.pages()), (names, kept));

        let server = shared.launch(User::Reader, weights, "prefer").start();
        assert_eq!(&answers(&server), expected, "\n{}", server.log());
        drop(server);
        // The files held their pages when the pool was set, so those pages do not count here.
        shared.store.pool.assert_all_back();
    }
}

fn signal(server: &Server, signal: Signal) {
    let pid = Pid::from_raw(server.pid().cast_signed()).expect("not 0");
    kill_process(pid, signal).expect("the process is a child of ours");
}

/// The filler is stopped in the middle of its load.
#[test]
fn a_user_who_may_only_read_waits_for_a_living_filler_and_says_so_or_fails_with_a_hint() {
    or_skip!(root());
    for weights in BOTH {
        let expected = or_skip!(weights.stock_answers());
        let demo = weights.demo();
        let size = fs::metadata(&demo).expect("the model exists").len();
        let mut device = or_skip!(Device::with(size));
        let model = models::copy_to(&device.path(), &demo);
        File::open(&model)
            .and_then(|file| file.sync_all())
            .expect("the device works");
        let folder = device.path();
        let folder = folder.parent().expect("the folder has a parent");
        fs::set_permissions(folder, Permissions::from_mode(0o755)).expect("the folder is ours");
        User::Reader.prepare(&model);
        let store = or_skip!(Store::with_options(PAGES, "mode=0755"));
        page_cache::drop_file(&model);
        or_skip!(device.throttle(32 * MIB));
        let launch = |user: User| {
            let launch = weights
                .with(Launch::ours(), &model)
                .hugepages("require")
                .args(["--hugepage-store", store.arg()]);
            user.with(launch)
        };
        let mut filler = launch(User::Root).spawn();
        let is_filling = wait_for(Duration::from_secs(60), || {
            filler.has_ended() || store.pages() > 4
        });
        assert!(is_filling && !filler.has_ended(), "\n{}", filler.log());
        signal(&filler, Signal::STOP);
        let part = store.pages();
        let mut other = launch(User::Reader).spawn();
        // The waiting server names the filler's process.
        let named = filler.pid().to_string();
        let tells = wait_for(Duration::from_secs(30), || {
            other.has_ended() || other.log().contains(&named)
        });
        let (ended, log) = (other.has_ended(), other.log());
        signal(&filler, Signal::CONT);
        filler.wait_until_ready();
        assert!(store.pages() > part, "stopped in the middle");
        if ended {
            let ended = other.wait();
            ended.assert_clean_failure();
            assert!(ended.log.contains(store.arg()), "{}", ended.log);
            ended.line_with("hint: ");
            continue;
        }
        other.wait_until_ready();
        assert_attached(&other, &format!("{weights:?}"));
        assert_eq!(&answers(&other), expected, "{weights:?}");
        assert!(
            tells,
            "{weights:?}: no message about waiting for process {named}\n{log}"
        );
    }
}

//
// a volume that belongs to a group
//

/// hugetlbfs as Kubernetes mounts an `emptyDir` with the medium `HugePages`: root and the pod's group own it.
struct Volume {
    // Before the pool, so that its pages return first.
    mounted: Mounted,
    pool: Pool,
    model: PathBuf,
    _dir: tempfile::TempDir,
}

impl Volume {
    fn with(pages: u64) -> Result<Self, String> {
        root()?;
        let pool = Pool::with(pages)?;
        let mounted = Mounted::with(&format!("pagesize=2M,mode=0775,uid=0,gid={FS_GROUP}"))?;
        // The mount option sets no set-group-ID bit, so Kubernetes sets it afterwards, as this test does.
        fs::set_permissions(mounted.path(), Permissions::from_mode(0o2775)).expect("root may");
        let dir = folder_for_all();
        let model = models::copy_to(dir.path(), &Mapped.demo());
        User::Reader.prepare(&model);
        Ok(Self {
            mounted,
            pool,
            model,
            _dir: dir,
        })
    }

    fn path(&self) -> &str {
        self.mounted.path().to_str().expect("a plain name")
    }

    /// A server that runs as the pod's user.
    fn launch(&self, store: &str) -> Launch {
        let launch = Launch::ours().model(&self.model).hugepages("require");
        launch
            .args(["--hugepage-store", store])
            .wrapped(as_member())
    }
}

fn as_member() -> Vec<String> {
    let setpriv = [
        "setpriv".to_owned(),
        format!("--reuid={NOBODY}"),
        format!("--regid={NOBODY}"),
        format!("--groups={FS_GROUP}"),
    ];
    setpriv.to_vec()
}

fn run_as_member(line: &str) -> Output {
    let command = as_member();
    let mut command = Command::new(&command[0]);
    command.args(&as_member()[1..]).args(["sh", "-c", line]);
    command.output().expect("util-linux is installed")
}

/// A command in a hint, up to the end of the path that begins with `path`.
fn from_hint<'a>(hint: &'a str, command: &str, path: &str) -> &'a str {
    let start = format!("{command} {path}/");
    let at = hint
        .find(&start)
        .unwrap_or_else(|| panic!("no `{start}` in: {hint}"));
    let rest = &hint[at..];
    let end = rest[start.len()..]
        .find(|c: char| c.is_whitespace() || ",;`'\"".contains(c))
        .map_or(rest.len(), |end| start.len() + end);
    assert!(end > start.len(), "no name in: {hint}");
    &rest[..end]
}

#[test]
fn the_hint_for_a_volume_of_a_group_is_a_folder_that_its_user_can_make_and_use() {
    let expected = or_skip!(Mapped.stock_answers());
    let volume = or_skip!(Volume::with(PAGES));
    let ended = volume.launch(volume.path()).run();
    ended.assert_clean_failure();
    let line = ended.log.lines().find(|line| line.contains("2775"));
    assert!(
        line.is_some_and(|line| line.contains(volume.path())),
        "no line names the mode\n{}",
        ended.log
    );
    let hint = ended.line_with("hint: ");
    assert!(!hint.contains("chmod"), "the user may not chmod: {hint}");
    let mkdir = from_hint(hint, "mkdir -m 0700", volume.path());
    let option = from_hint(hint, "--hugepage-store", volume.path());
    let output = run_as_member(mkdir);
    assert!(output.status.success(), "{mkdir}: {output:?}");
    let store = option.rsplit(' ').next().expect("a path");
    let server = volume.launch(store).start();
    assert_eq!(&answers(&server), expected);
    drop(server);
    let server = volume.launch(store).start();
    let said = Load::of(&server);
    assert!(said.attached > 80 * MIB, "{said:?}\n{}", server.log());
}

#[test]
fn a_private_folder_in_a_volume_of_a_group_is_a_store() {
    let expected = or_skip!(Mapped.stock_answers());
    let volume = or_skip!(Volume::with(PAGES));
    let store = format!("{}/mine", volume.path());
    let output = run_as_member(&format!("mkdir -m 0700 {store}"));
    assert!(output.status.success(), "{output:?}");
    for is_filled in [false, true] {
        let server = volume.launch(&store).start();
        let said = Load::of(&server);
        assert_eq!(said.attached > 80 * MIB, is_filled, "{said:?}");
        assert_eq!(&answers(&server), expected);
    }
    fs::remove_dir_all(&store).expect("root may");
    volume.pool.assert_all_back();
}

/// Unmounts every hugetlbfs but one, in the server's own mount namespace, before it starts the server.
const ALONE: &str = r#"
    keep=$1; shift
    awk '$3 == "hugetlbfs" { print $2 }' /proc/mounts | while read -r mount; do
        [ "$mount" = "$keep" ] || umount -l "$mount" || exit 1
    done || exit 99
    exec "$@"
"#;

#[test]
fn auto_names_the_mount_that_it_refused_and_why() {
    let volume = or_skip!(Volume::with(PAGES));
    let launch = Launch::ours()
        .model(&volume.model)
        .hugepages("require")
        .args(["--hugepage-store", "auto"])
        .wrapped(["unshare", "--mount", "--propagation", "private", "sh", "-c"])
        .wrapped([ALONE, "sh", volume.path()])
        .wrapped(as_member());
    let ended = launch.run();
    ended.assert_clean_failure();
    assert_ne!(ended.status.code(), Some(99), "\n{}", ended.log);
    assert!(
        !ended.log.contains("no hugetlbfs"),
        "a hugetlbfs is mounted\n{}",
        ended.log
    );
    let line = ended.log.lines().find(|line| line.contains(volume.path()));
    let line = line.unwrap_or_else(|| panic!("no line names the mount\n{}", ended.log));
    assert!(line.contains("2775"), "no reason for the refusal: {line}");
    from_hint(ended.line_with("hint: "), "mkdir -m 0700", volume.path());
    volume.pool.assert_all_back();
}
