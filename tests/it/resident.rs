//! Weights that stay in a store when the server ends. The next server attaches to them.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::equality::answers;
use crate::support::gguf::Gguf;
use crate::support::pool::{Counts, PAGE};
use crate::support::server::{Launch, Server};
use crate::support::store::{self, Store};
use crate::support::{full, http, models, or_skip, page_cache, plan, programs, smaps, wait_for};

/// More pages than any model here needs, because these tests count only taken pages.
const PAGES: u64 = 260;

/// One type that the server maps, and one that it repacks for this CPU.
const TYPES: [&str; 2] = ["Q8_0", "Q4_K"];

fn model(kind: &str) -> PathBuf {
    models::demo("100M", kind)
}

fn with_model(launch: Launch, model: &Path) -> Launch {
    if model.to_string_lossy().contains("q8_0") {
        launch.model(model)
    } else {
        launch.repacked_model(model)
    }
}

fn launch(model: &Path, store: &Store) -> Launch {
    with_model(Launch::ours(), model)
        .hugepages("require")
        .args(["--hugepage-store", store.arg()])
}

fn prefer(model: &Path, store: &Store) -> Launch {
    with_model(Launch::ours(), model)
        .hugepages("prefer")
        .args(["--hugepage-store", store.arg()])
}

fn stock(model: &Path) -> Result<Value, String> {
    Ok(answers(&with_model(Launch::stock()?, model).start()))
}

/// Bytes that the server reports as attached.
fn attached(server: &Server) -> u64 {
    let props = http::get_json(&server.url("/props"));
    props["hugepages"]["load"]["bytes_attached"]
        .as_u64()
        .unwrap_or_else(|| panic!("no such figure: {props}"))
}

/// Whether the load read more than the small tensors, which stay in ordinary memory.
fn is_read(server: &Server) -> bool {
    let load = &http::get_json(&server.url("/props"))["hugepages"]["load"];
    ["bytes_direct", "bytes_cached", "bytes_buffered"]
        .iter()
        .any(|name| load[name].as_u64().expect("a number") > 1 << 20)
}

#[test]
fn an_image_with_another_placement_is_used_and_its_local_bytes_are_reported() {
    for kind in TYPES {
        let model = model(kind);
        let store = or_skip!(Store::with(PAGES));
        let server = launch(&model, &store).start();
        assert!(is_read(&server));
        drop(server);
        let server = launch(&model, &store)
            .args(["--numa", "distribute"])
            .start();
        assert!(!is_read(&server));
        let props = http::get_json(&server.url("/props"));
        let usages = props["hugepages"]["usages"].as_array().expect("usages");
        let sum = |field: &str| -> u64 {
            usages
                .iter()
                .filter_map(|usage| usage[field].as_u64())
                .sum()
        };
        let dealt = sum("local_bytes") + sum("remote_bytes");
        assert!(dealt > attached(&server) / 2, "{props}");
    }
}

#[test]
fn the_next_server_attaches_and_says_what_stock_says() {
    for kind in TYPES {
        let model = model(kind);
        let expected = or_skip!(stock(&model));
        let store = or_skip!(Store::with(PAGES));
        let first = launch(&model, &store).start();
        assert_eq!(attached(&first), 0, "{kind}");
        assert_eq!(answers(&first), expected, "{kind}, filled");
        drop(first);
        let kept = store.pages();
        assert!(kept > 40, "{kind}: {kept} pages are kept");
        store.assert_only_files_hold_pages();

        let second = launch(&model, &store).start();
        assert!(
            !is_read(&second),
            "{kind}: nothing is read\n{}",
            second.log()
        );
        assert!(attached(&second) > 80_000_000, "{kind}");
        assert_eq!(answers(&second), expected, "{kind}, attached");
        assert_eq!(store.pages(), kept, "{kind}: no page more is kept");

        // All servers share one copy, so a third server takes only as many pages of its own as the second.
        let own = store.pool.taken() - kept;
        let third = launch(&model, &store).start();
        assert_eq!(store.pool.taken(), kept + 2 * own, "{kind}");
        assert_eq!(answers(&third), expected, "{kind}, attached together");
        for vma in smaps::read(third.pid()) {
            let is_image = vma.path.contains(".resident");
            assert!(!is_image || !vma.has_flag("wr"), "read-only: {vma:?}");
        }
        drop((second, third));
        store.assert_only_files_hold_pages();
        store.empty();
        store.pool.assert_all_back();
    }
}

/// Upstream's prefetch would bring the file of an attached model into the page cache.
#[test]
fn attaching_leaves_the_page_cache_alone() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    for kind in TYPES {
        // A copy, because other tests read the shared model.
        let copy = models::copy_to(dir.path(), &model(kind));
        let model = dir.path().join(format!("{}.gguf", kind.to_lowercase()));
        fs::rename(copy, &model).expect("the same folder");
        let store = or_skip!(Store::with(PAGES));
        drop(launch(&model, &store).start());
        page_cache::drop_file(&model);
        let second = launch(&model, &store).start();
        assert!(!is_read(&second), "{kind}");
        // The page cache may hold the header and the kernel's readahead.
        let cached = or_skip!(page_cache::cached_bytes(&model));
        assert!(cached < 16 << 20, "{kind}: {cached} bytes are cached");
    }
}

#[test]
fn a_plan_counts_what_is_missing_only() {
    for kind in TYPES {
        let model = model(kind);
        let store = or_skip!(Store::with(PAGES));
        let pages =
            |launch: &Launch| -> u64 { plan::pages_by_kind(&plan::of(launch)).values().sum() };
        let launch = launch(&model, &store);
        let before = pages(&launch);
        assert_eq!(store.names().len(), 0, "a plan creates no file");
        let server = launch.clone().start();
        assert_eq!(
            store.pool.taken(),
            before,
            "{kind}: the load takes the planned pages"
        );
        let own = before - store.pages();
        drop(server);
        assert_eq!(
            pages(&launch),
            own,
            "{kind}: the plan leaves out resident weights"
        );
    }
}

#[test]
fn of_two_at_once_one_fills_and_the_other_waits() {
    for kind in TYPES {
        let model = model(kind);
        let expected = or_skip!(stock(&model));
        let store = or_skip!(Store::with(PAGES));
        let mut servers = [(); 2].map(|()| launch(&model, &store).spawn());
        for server in &mut servers {
            server.wait_until_ready();
            assert_eq!(answers(server), expected, "{kind}\n{}", server.log());
        }
        let filled = servers.iter().filter(|server| is_read(server)).count();
        assert_eq!(filled, 1, "{kind}: one server reads");
        drop(servers);
        store.assert_only_files_hold_pages();
    }
}

/// Kills the filler at moments over the whole load, while another server waits.
fn killed_while_filling(kind: &str) {
    let model = model(kind);
    let expected = or_skip!(stock(&model));
    let store = or_skip!(Store::with(PAGES));
    let moments = if full() { 20 } else { 4 };
    for moment in 0..moments {
        let first = launch(&model, &store)
            .args(["--hugepage-threads", "1"])
            .spawn();
        // Waits for the image, then for a part of the time that a load takes here.
        assert!(wait_for(Duration::from_secs(60), || !store
            .images()
            .is_empty()));
        std::thread::sleep(Duration::from_millis(moment * 160 / moments));
        let mut second = launch(&model, &store).spawn();
        if moment % 2 == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        first.stop(Signal::KILL);
        second.wait_until_ready();
        assert_eq!(
            answers(&second),
            expected,
            "{kind}, moment {moment}\n{}",
            second.log()
        );
        drop(second);
        // The image must be complete.
        let third = launch(&model, &store).args(["--hugepage-verify"]).start();
        assert!(!is_read(&third), "{kind}, moment {moment}");
        drop(third);
        store.assert_only_files_hold_pages();
        store.empty();
        store.pool.assert_all_back();
    }
}

#[test]
fn who_waits_takes_over_when_the_filler_is_killed() {
    killed_while_filling("Q8_0");
}

#[test]
fn who_waits_takes_over_when_the_filler_of_a_repacked_buffer_is_killed() {
    killed_while_filling("Q4_K");
}

#[test]
fn a_removed_image_stays_with_those_who_have_it() {
    for kind in TYPES {
        let model = model(kind);
        let expected = or_skip!(stock(&model));
        let store = or_skip!(Store::with(PAGES));
        let first = launch(&model, &store).start();
        let kept = store.pages();
        store.empty();
        assert_eq!(answers(&first), expected, "{kind}");
        // A second server creates a new image beside the removed one.
        let second = launch(&model, &store).start();
        assert_eq!(
            (answers(&first), answers(&second)),
            (expected.clone(), expected),
            "{kind}"
        );
        assert_eq!(store.pages(), kept, "{kind}");
        drop((first, second));
        store.assert_only_files_hold_pages();
    }
}

#[test]
fn a_changed_model_gets_an_image_of_its_own() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = or_skip!(Store::with(PAGES));
    for kind in TYPES {
        let copy = models::copy_to(dir.path(), &model(kind));
        let named = dir.path().join(format!("m.{}.gguf", kind.to_lowercase()));
        fs::rename(copy, &named).expect("the same folder");
        drop(launch(&named, &store).start());
        let before = store.images();
        // The bytes stay the same, but the new time marks them as changed.
        let file = OpenOptions::new()
            .write(true)
            .open(&named)
            .expect("the file is ours");
        file.set_modified(std::time::SystemTime::now())
            .expect("the file is ours");
        let second = launch(&named, &store).start();
        assert!(is_read(&second), "{kind}");
        assert_eq!(store.images().len(), 2 * before.len(), "{kind}");
        drop(second);
        store.empty();
    }
    store.pool.assert_all_back();
}

/// An archive gives all its files one time, and the file system may give the next file the inode of a removed one.
#[test]
fn another_model_with_the_same_inode_size_and_time_gets_an_image_of_its_own() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = or_skip!(Store::with(PAGES));
    for kind in TYPES {
        let named = models::copy_to(dir.path(), &model(kind));
        let time = fs::metadata(&named).and_then(|data| data.modified());
        let time = time.expect("the file is ours");
        drop(launch(&named, &store).start());
        // Other weights: each block has another scale.
        let mut bytes = fs::read(&named).expect("the file is ours");
        let data = usize::try_from(Gguf::read(&named).data).expect("it fits in memory");
        let size = if kind == "Q8_0" { 34 } else { 18 };
        for block in bytes[data..].chunks_mut(size) {
            block[0] ^= 1;
        }
        let file = OpenOptions::new().write(true).open(&named);
        let mut file = file.expect("the file is ours");
        file.write_all(&bytes).expect("the disk has room");
        file.set_modified(time).expect("the file is ours");
        drop(file);
        let expected = or_skip!(stock(&named));
        let second = launch(&named, &store).start();
        assert!(is_read(&second), "{kind}");
        assert_eq!(answers(&second), expected, "{kind}");
        drop(second);
        let images = store.images().len();
        let mut gc = Command::new(programs::hugepages());
        gc.args(["store", "gc", "--store", store.arg()]);
        assert!(
            gc.output()
                .expect("the tool can be started")
                .status
                .success()
        );
        assert_eq!(
            store.images().len(),
            images / 2,
            "{kind}: the images of the first model are stale"
        );
        store.empty();
        fs::remove_file(&named).expect("the file is ours");
    }
    store.pool.assert_all_back();
}

#[test]
fn shards_and_pages_of_1_gib_stay_too() {
    let model = models::demo_in_shards("100M", "Q8_0", 3);
    let store = or_skip!(Store::with(PAGES));
    let first = launch(&model, &store).start();
    let expected = answers(&first);
    drop(first);
    assert_eq!(store.images().len(), 3);
    let second = launch(&model, &store).start();
    assert!(!is_read(&second));
    assert_eq!(answers(&second), expected);
    drop(second);
    store.empty();
    drop(store);

    let mut pool = or_skip!(crate::support::pool::Pool::with(PAGES));
    or_skip!(pool.set_large(1));
    let mounted = or_skip!(store::Mounted::with("pagesize=1G"));
    let large = || {
        Launch::ours()
            .model(&model_of_one_file())
            .hugepages("require")
            .args(["--hugepage-store", mounted.path().to_str().expect("plain")])
    };
    let first = large().start();
    let expected = answers(&first);
    drop(first);
    let second = large().args(["--hugepage-verify"]).start();
    assert!(!is_read(&second));
    assert_eq!(answers(&second), expected);
    let image = smaps::read(second.pid())
        .into_iter()
        .find(|vma| vma.path.contains(".resident"))
        .expect("the image is mapped");
    assert_eq!(image.size("KernelPageSize"), 1 << 30);
}

fn model_of_one_file() -> PathBuf {
    model("Q8_0")
}

#[test]
fn missing_blocks_are_added_by_who_has_the_pages() {
    let model = model("Q8_0");
    let expected = or_skip!(stock(&model));
    let mut store = or_skip!(Store::with(20));
    let first = prefer(&model, &store).start();
    assert_eq!(answers(&first), expected, "with a part of the image");
    let part = store.pages();
    assert!((5..=20).contains(&part), "{part} pages");
    drop(first);
    store.pool.set(PAGES);
    let second = launch(&model, &store).start();
    assert_eq!(answers(&second), expected, "with the rest");
    assert!(
        attached(&second) > 0 && is_read(&second),
        "{}",
        second.log()
    );
    assert!(store.pages() > part);
    drop(second);
    let third = launch(&model, &store).start();
    assert!(!is_read(&third));
}

#[test]
fn a_short_pool_or_mount_is_told_and_leaves_nothing() {
    for kind in TYPES {
        let model = model(kind);
        let store = or_skip!(Store::with(30));
        let ended = launch(&model, &store).run();
        ended.assert_clean_failure();
        ended.line_with("the model needs");
        assert_eq!(store.names(), Vec::<String>::new(), "{kind}\n{}", ended.log);
        store.pool.assert_all_back();
        drop(store);

        let store = or_skip!(Store::with_options(PAGES, "size=20M"));
        let ended = launch(&model, &store).run();
        ended.assert_clean_failure();
        ended.line_with("the mount has only ");
        assert_eq!(store.names(), Vec::<String>::new(), "{kind}");
        store.pool.assert_all_back();

        // `prefer` serves in spite of the limit.
        let expected = or_skip!(stock(&model));
        let server = prefer(&model, &store).start();
        assert_eq!(answers(&server), expected, "{kind}");
    }
}

/// `min_size` moves pages from the pool to the mount. Only the files of the mount can use them.
#[test]
fn pages_that_the_mount_keeps_are_counted_for_its_files_alone() {
    const KEPT: u64 = 20;
    let model = model("Q4_K");
    let need: u64 = {
        let store = or_skip!(Store::with(0));
        let plan = plan::of(&launch(&model, &store));
        plan::pages_by_kind(&plan).values().sum()
    };
    let options = format!("min_size={}", KEPT * PAGE);
    for missing in [1, 0] {
        let store = or_skip!(Store::with_options(need - missing, &options));
        assert_eq!(Counts::read().reserved, store.pool.counts.reserved + KEPT);
        let launch = launch(&model, &store);
        if missing > 0 {
            let ended = launch.run();
            ended.assert_clean_failure();
            ended.line_with("the model needs");
            continue;
        }
        let server = launch.clone().start();
        assert_eq!(store.pool.taken(), need);
        let held = store.pages();
        assert!(held > KEPT, "{held}");
        drop(server);
        // The files hold the reserved pages now, so no reservation is left.
        assert_eq!(Counts::read().reserved, store.pool.counts.reserved);
        let own: u64 = plan::pages_by_kind(&plan::of(&launch)).values().sum();
        assert_eq!(own, need - held);
        launch.start();
    }
    // With no other pages, the weights use the reserved ones; KV cache and buffers use ordinary memory.
    let model = self::model("Q8_0");
    let expected = or_skip!(stock(&model));
    let store = or_skip!(Store::with_options(KEPT, &options));
    let server = prefer(&model, &store).start();
    assert_eq!(answers(&server), expected);
    assert_eq!((store.pages(), store.pool.taken()), (KEPT, KEPT));
}

#[test]
fn load_fills_and_ends() {
    for kind in TYPES {
        let model = model(kind);
        let store = or_skip!(Store::with(PAGES));
        let ended = launch(&model, &store).args(["--hugepage-load"]).run();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
        let last = ended.log.lines().rfind(|line| line.starts_with('{'));
        assert_eq!(
            last,
            Some(r#"{"done": 1000, "total": 1000}"#),
            "{}",
            ended.log
        );
        store.assert_only_files_hold_pages();
        let server = launch(&model, &store).start();
        assert!(!is_read(&server), "{kind}");
        drop(server);
        store.empty();
        store.pool.assert_all_back();
    }
    let store = or_skip!(Store::with(10));
    let ended = launch(&model("Q8_0"), &store)
        .args(["--hugepage-load"])
        .run();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.log);
}

#[test]
fn what_was_changed_in_memory_is_found_by_verify() {
    for kind in TYPES {
        let model = model(kind);
        let store = or_skip!(Store::with(PAGES));
        drop(launch(&model, &store).start());
        let image = store.images().pop().expect("the store holds an image");
        store::patch(&image, 5 * PAGE + 123, |bytes| bytes[0] ^= 1, 1);
        let ended = launch(&model, &store).args(["--hugepage-verify"]).run();
        ended.assert_clean_failure();
        ended.line_with("checksum mismatch at offset ");
        ended.line_with("hint: hugepages store drop");
    }
}

/// Files that another user may have put in the place of the image.
#[test]
fn what_cannot_be_trusted_is_refused_with_the_reason() {
    let model = model("Q8_0");
    let expected = or_skip!(stock(&model));
    let store = or_skip!(Store::with(PAGES));
    drop(launch(&model, &store).start());
    let image = store.image();
    let whole = fs::metadata(&image).expect("the file exists").len();
    let header = whole - 4096;
    // hugetlbfs has no symbolic links.
    let cases: [(&str, &dyn Fn()); 8] = [
        ("its manifest is damaged", &|| {
            store::patch(&image, header + 100, |bytes| bytes[0] ^= 1, 1);
        }),
        ("does not end with a manifest", &|| {
            store::patch(&image, header, |bytes| bytes[0] ^= 1, 1);
        }),
        ("its size does not match its manifest", &|| {
            let file = OpenOptions::new()
                .write(true)
                .open(&image)
                .expect("the file is ours");
            file.set_len(whole + PAGE).expect("a sparse file");
            drop(file);
            let copy = copy_of(&image, header);
            store::patch(
                &image,
                whole + PAGE - 4096,
                |bytes| bytes.copy_from_slice(&copy),
                4096,
            );
        }),
        ("does not end with a manifest", &|| {
            OpenOptions::new()
                .write(true)
                .open(&image)
                .expect("the file is ours")
                .set_len(PAGE)
                .expect("a page");
        }),
        ("it is not a regular file", &|| {
            fs::remove_file(&image).expect("the file is ours");
            let made = Command::new("mkfifo").arg(&image).status();
            assert!(made.expect("coreutils").success());
        }),
        ("others may write to it", &|| {
            fs::set_permissions(&image, fs::Permissions::from_mode(0o666))
                .expect("the file is ours");
        }),
        ("it belongs to user 65534", &|| {
            std::os::unix::fs::chown(&image, Some(65534), None).expect("root may");
        }),
        ("cannot open resident image", &|| {
            fs::remove_file(&image).expect("the file is ours");
            fs::create_dir(&image).expect("the folder is ours");
        }),
    ];
    for (reason, spoil) in cases {
        store.empty();
        drop(launch(&model, &store).start());
        spoil();
        let ended = launch(&model, &store).run();
        ended.assert_clean_failure();
        assert!(ended.log.contains(reason), "{reason}\n{}", ended.log);
        // `prefer` serves without the store.
        let server = prefer(&model, &store).start();
        assert_eq!(answers(&server), expected, "{reason}");
    }
}

fn copy_of(path: &Path, offset: u64) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; 4096];
    let file = fs::File::open(path).expect("the file exists");
    file.read_exact_at(&mut bytes, offset)
        .expect("the file is long enough");
    bytes
}

#[test]
fn a_store_that_is_none_is_told_with_a_hint() {
    let model = model("Q8_0");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let start = |store: &str, more: &[&str]| {
        let ended = Launch::ours()
            .model(&model)
            .hugepages("require")
            .args(["--hugepage-store", store])
            .args(more)
            .run();
        ended.assert_clean_failure();
        ended.line_with("hint: ");
        ended.log
    };
    let plain = dir.path().to_str().expect("a plain name");
    assert!(start(plain, &[]).contains("is not a directory on hugetlbfs"));
    assert!(start("/nowhere", &[]).contains("cannot open the store"));
    let store = or_skip!(Store::with_options(0, "mode=0777"));
    assert!(start(store.arg(), &[]).contains("others may write to the store"));
    assert!(
        start(store.arg(), &["--hugepage-size", "1G"]).contains("has pages of 2 MiB, not of 1 GiB")
    );
    assert!(
        start(store.arg(), &["--hugepage-size", "thp"])
            .contains("a store cannot use transparent huge pages")
    );
}

#[test]
fn a_model_on_hugetlbfs_is_served_from_there() {
    let model = model("Q8_0");
    let expected = or_skip!(stock(&model));
    let store = or_skip!(Store::with(PAGES));
    let bytes = fs::read(&model).expect("the model exists");
    let file = store.path().join("model.gguf");
    let length = (bytes.len() as u64).next_multiple_of(PAGE);
    fs::File::create(&file)
        .expect("the file is ours")
        .set_len(length)
        .expect("a sparse file");
    store::patch(&file, 0, |to| to.copy_from_slice(&bytes), bytes.len());
    let held = store.pages();
    let server = Launch::ours().model(&file).hugepages("require").start();
    assert_eq!(answers(&server), expected);
    assert!(!is_read(&server));
    let own = store.pool.taken() - held;
    assert!(own < held / 2, "no second copy: {own} pages beside {held}");
    let ended = server.stop(Signal::TERM);
    assert!(!ended.log.contains("munmap failed"), "{}", ended.log);
    // Stock serves the file as well.
    let server = or_skip!(Launch::stock()).model(&file).start();
    assert_eq!(answers(&server), expected);
    assert!(store.pool.taken() - held < own, "no page but the file's");
    drop(server);
    assert_eq!(store.pool.taken(), held);
}

#[test]
fn attaching_and_switching_again_and_again_leaves_nothing() {
    let (cycles, switches) = if full() { (100, 20) } else { (6, 3) };
    let store = or_skip!(Store::with(PAGES));
    let first = model("Q8_0");
    drop(launch(&first, &store).start());
    let kept = store.pages();
    for _ in 0..cycles {
        let server = launch(&first, &store).start();
        assert!(!is_read(&server));
        drop(server);
        store.assert_only_files_hold_pages();
        assert_eq!(store.pages(), kept);
    }
    for switch in 0..switches {
        store.empty();
        store.pool.assert_all_back();
        let server = launch(&model(TYPES[switch % 2]), &store).start();
        server.assert_answers();
        drop(server);
        store.assert_only_files_hold_pages();
    }
}
