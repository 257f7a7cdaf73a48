//! Which files share an image: those with the same content and time, wherever they are.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use super::{images, json, on, run};
use crate::equality::answers;
use crate::support::file_system::{FileSystem, Kind};
use crate::support::gguf::Gguf;
use crate::support::pool::PAGE;
use crate::support::server::Launch;
use crate::support::store::Store;
use crate::support::{is_root, models, or_skip, programs, skip, wait_for};

/// Bytes of each of the 64 blocks.
const BLOCK: u64 = 64 * 1024;

/// Enough pages for the images of two models of 100 MB, and for two servers.
const PAGES: u64 = 200;

fn launch(model: &Path, store: &Store) -> Launch {
    let launch = Launch::ours().model(model).hugepages("require");
    launch.args(["--hugepage-store", store.arg()])
}

/// Copies the file with its times, as `cp -p` and container images do.
fn copy_with_times(from: &Path, to: &Path) {
    fs::copy(from, to).expect("the disk has space");
    take_time_of(from, to);
}

fn take_time_of(from: &Path, to: &Path) {
    let modified = fs::metadata(from).expect("just made").modified();
    let file = File::options().write(true).open(to).expect("just made");
    let time = modified.expect("Linux has times");
    file.set_modified(time).expect("the file is ours");
}

#[test]
fn a_copy_with_another_name_shares_the_image() {
    let store = or_skip!(Store::with(PAGES));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let first = models::copy_to(dir.path(), &models::demo("100M", "Q8_0"));
    let second = dir.path().join("other name.gguf");
    copy_with_times(&first, &second);
    let server = launch(&first, &store).start();
    let (expected, pages) = (answers(&server), store.pages());
    let other = launch(&second, &store).start();
    assert_eq!((store.images().len(), store.pages()), (1, pages));
    assert_eq!(answers(&other), expected);
    drop((server, other));
    let mut load = on(&store, ["load", "--format", "json"]);
    load.arg(&second).args(["--", "--no-repack"]);
    let loaded: Value = serde_json::from_str(&run(load, 0).0).expect("JSON");
    assert_eq!(loaded["loaded"][0]["bytes"], pages * PAGE, "{loaded}");
    let mut verify = on(&store, ["verify"]);
    verify.arg(&second);
    assert!(run(verify, 0).0.contains(": equal"));
    // The first name is gone, and the image serves the second one.
    fs::remove_file(&first).expect("the file is ours");
    drop(launch(&second, &store).start());
    assert_eq!((store.images().len(), store.pages()), (1, pages));
    store.assert_only_files_hold_pages();
    let mut remove = on(&store, ["drop"]);
    remove.arg(&second);
    run(remove, 0);
    assert_eq!(store.images().len(), 0);
}

/// In a store of several users, an image of another user is not ours, whatever its name.
#[test]
fn an_image_of_another_user_does_not_stop_a_copy() {
    const OTHER: u32 = 65534;
    if !is_root() {
        return skip("only root can give a file to another user");
    }
    let store = or_skip!(Store::with_options(PAGES, "mode=1777"));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let first = models::copy_to(dir.path(), &models::demo("100M", "Q8_0"));
    let second = dir.path().join("a copy.gguf");
    copy_with_times(&first, &second);
    let expected = answers(&launch(&first, &store).start());
    let image = store.image();
    chown(&image, Some(OTHER), Some(OTHER)).expect("root");
    // An empty file whose name comes first.
    let name = image
        .file_name()
        .and_then(|name| name.to_str())
        .expect("UTF-8");
    let end = name.find(".weights-").expect("an image of weights");
    let planted = store.path().join(format!("0{}", &name[end..]));
    File::create(&planted).expect("the store is ours");
    chown(&planted, Some(OTHER), Some(OTHER)).expect("root");
    assert_eq!(answers(&launch(&second, &store).start()), expected);
    assert!(
        store
            .names()
            .iter()
            .any(|name| name.starts_with("a_copy.weights-"))
    );
}

/// With mode 1777 each user has their own images, also two users of one model.
#[test]
fn two_users_of_one_model_have_their_own_images() {
    const OTHER: u32 = 65534;
    if !is_root() {
        return skip("only root can give a file to another user");
    }
    let store = or_skip!(Store::with_options(PAGES, "mode=1777"));
    let model = models::demo("100M", "Q8_0");
    let expected = answers(&launch(&model, &store).start());
    let image = store.image();
    chown(&image, Some(OTHER), Some(OTHER)).expect("root");
    assert_eq!(answers(&launch(&model, &store).start()), expected);
    let names = store.names();
    assert_eq!(names.len(), 2, "{names:?}");
    let own = names.iter().find(|name| name.starts_with("uid0."));
    assert!(own.is_some(), "{names:?}");
    // A restart attaches, and the image is verified and dropped by its name.
    assert_eq!(answers(&launch(&model, &store).start()), expected);
    assert_eq!(store.names(), names);
    run(on(&store, ["verify", own.expect("asserted")]), 0);
    run(on(&store, ["drop", own.expect("asserted")]), 0);
    assert_eq!(store.images(), [image]);
}

/// Two containers with one image layer: overlayfs gives the same inode another device in each.
#[test]
fn two_containers_with_one_layer_share_the_image() {
    if !is_root() {
        return skip("only root can mount");
    }
    let store = or_skip!(Store::with(PAGES));
    let model = models::demo("100M", "Q8_0");
    let mut layer = or_skip!(FileSystem::with(
        Kind::OverlayOnExt4,
        &[(&model, "demo.gguf")]
    ));
    let second = or_skip!(layer.add_overlay("second"));
    let files = [layer.path("demo.gguf"), second.join("demo.gguf")];
    let [a, b] = [0, 1].map(|index| fs::metadata(&files[index]).expect("the layer has it"));
    assert_ne!(a.dev(), b.dev());

    let servers = [0, 1].map(|index| launch(&files[index], &store).start());
    assert_eq!(store.images().len(), 1);
    assert_eq!(answers(&servers[0]), answers(&servers[1]));
    drop(servers);
    // The host sees none of the mounts.
    drop(layer);
    let list = json(&store, &["list"], 0);
    let image = &images(&list)[0];
    let seen = (&image["is_stale"], &image["is_hidden"]);
    assert_eq!(seen, (&false.into(), &true.into()), "{list}");
    assert_eq!(
        json(&store, &["gc"], 0)["dropped"],
        Value::from(Vec::<Value>::new())
    );
    assert_eq!(store.images().len(), 1);
    run(on(&store, ["drop", "--all"]), 0);
    store.pool.assert_all_back();
}

/// A merged or retrained tensor leaves size, header and even the time as they were.
#[test]
fn a_file_that_differs_in_one_expert_has_an_image_of_its_own() {
    let store = or_skip!(Store::with(PAGES));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let demo = models::demo_with("100M", "Q8_0", &["--experts", "4"]);
    let first = models::copy_to(dir.path(), &demo);
    let second = dir.path().join("retrained.gguf");
    fs::copy(&first, &second).expect("the disk has space");
    retrain(&second);
    take_time_of(&first, &second);

    let server = launch(&first, &store).start();
    let pages = store.pages();
    let other = launch(&second, &store).start();
    let list = json(&store, &["list"], 0);
    let identities: Vec<_> = images(&list).iter().map(identity_of).collect();
    let [one, two] = &identities[..] else {
        panic!("two images: {list}")
    };
    assert_eq!(one.0, two.0, "the 64 blocks are equal");
    assert_ne!(one.1, two.1, "the blocks of the tensors differ");
    assert!(
        store.pages() >= 2 * pages - 1,
        "{} and {pages}",
        store.pages()
    );
    let expected = answers(&or_skip!(Launch::stock()).model(&second).start());
    assert_eq!(answers(&other), expected);
    assert_ne!(answers(&server), expected, "the expert matters");
}

/// `cp -p` over a model keeps its inode, and may keep its size, time and header.
#[test]
fn a_model_that_was_replaced_in_place_is_not_taken_for_the_old_one() {
    let store = or_skip!(Store::with(PAGES));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let demo = models::demo_with("100M", "Q8_0", &["--experts", "4"]);
    let model = models::copy_to(dir.path(), &demo);
    take_time_of(&demo, &model);
    drop(launch(&model, &store).start());
    let inode = fs::metadata(&model).expect("ours").ino();
    retrain(&model);
    take_time_of(&demo, &model);
    assert_eq!(fs::metadata(&model).expect("ours").ino(), inode);
    let expected = answers(&or_skip!(Launch::stock()).model(&model).start());
    assert_eq!(answers(&launch(&model, &store).start()), expected);
    assert_eq!(store.images().len(), 2);
}

/// Gives the third of four experts of one tensor the bytes of the fourth, where none of the 64 blocks lies that every identity contains.
fn retrain(model: &Path) {
    let file = Gguf::read(model);
    let size = fs::metadata(model).expect("ours").len();
    let blocks: Vec<u64> = (0..64)
        .map(|index| size / 64 * index / BLOCK * BLOCK)
        .collect();
    let experts = file.tensor("blk.1.ffn_down_exps.weight");
    let expert = (experts.end - experts.start) / 4;
    let third = experts.start + 2 * expert;
    // From the first byte that no block holds to the next block, with the middle of the expert in between.
    let middle = third + expert / 2;
    let from = blocks
        .iter()
        .map(|block| block + BLOCK)
        .filter(|end| *end <= middle)
        .max();
    let from = from.unwrap_or(0).max(third);
    let to = blocks.iter().copied().filter(|block| *block > middle).min();
    let to = to.unwrap_or(size).min(third + expert);
    // Rows of Q8_0 have blocks of 34 bytes.
    let from = third + (from - third).next_multiple_of(34);
    let to = third + (to - third) / 34 * 34;
    assert!(from < middle && middle + 4096 < to, "{from} {middle} {to}");
    let bytes = fs::read(model).expect("the disk can be read");
    let source = (from + expert) as usize..(to + expert) as usize;
    let file = File::options().write(true).open(model).expect("ours");
    file.write_all_at(&bytes[source], from).expect("ours");
}

/// The 64 blocks, and the blocks of the tensors.
fn identity_of(image: &Value) -> (String, String) {
    let text = image["identity"].as_str().expect("text");
    let line = text.lines().next().expect("the file");
    let (content, tensors) = line.split_once(", tensors ").expect("both");
    (content.to_owned(), tensors.to_owned())
}

/// A restart reads the header and 64 blocks, whatever the number of tensors.
#[test]
fn a_restart_does_not_sample_the_tensors_again() {
    let store = or_skip!(Store::with(PAGES));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let model = models::demo("100M", "Q8_0");
    let small_reads = |server: Launch| {
        let trace = dir.path().join("trace");
        let server = server.traced("pread64", &trace).start();
        drop(server);
        let text = fs::read_to_string(&trace).expect("strace wrote it");
        // A call that another thread interrupts has two lines, and the second one names no file.
        text.lines()
            .filter(|line| line.contains(", 4096, ") && !line.contains(".resident>"))
            .count()
    };
    or_skip!(programs::found("strace"));
    // A file that changed in the second of the image counts as changed.
    let changed = fs::metadata(&model).expect("the model exists").ctime();
    let is_older = || UNIX_EPOCH.elapsed().expect("after 1970").as_secs() > changed.cast_unsigned();
    assert!(wait_for(Duration::from_secs(5), is_older));
    let first = small_reads(launch(&model, &store));
    let second = small_reads(launch(&model, &store));
    let tensors = Gguf::read(&model).tensors.len();
    assert!(first >= tensors, "{first} reads, {tensors} tensors");
    assert!(second < tensors, "{second} reads, {tensors} tensors");
    store.assert_only_files_hold_pages();
}
