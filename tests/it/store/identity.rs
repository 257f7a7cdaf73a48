//! Which files share an image: those with the same content and time, wherever they are.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{images, json, on, run};
use crate::equality::answers;
use crate::support::gguf::Gguf;
use crate::support::server::Launch;
use crate::support::store::Store;
use crate::support::{is_root, models, or_skip, programs, skip};

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
    let times = FileTimes::new().set_modified(modified.expect("Linux has times"));
    let file = File::options().write(true).open(to).expect("just made");
    file.set_times(times).expect("the file is ours");
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
    // The first name is gone, and the image serves the second one.
    fs::remove_file(&first).expect("the file is ours");
    drop(launch(&second, &store).start());
    assert_eq!((store.images().len(), store.pages()), (1, pages));
    store.assert_only_files_hold_pages();
}

/// Two processes that start together, each with its own name of the file, fill one image.
#[test]
fn two_names_at_once_are_one_image() {
    let store = or_skip!(Store::with(PAGES));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let first = models::copy_to(dir.path(), &models::demo("100M", "Q8_0"));
    let second = dir.path().join("other.gguf");
    copy_with_times(&first, &second);
    for _ in 0..3 {
        let mut servers = [&first, &second].map(|model| launch(model, &store).spawn());
        for server in &mut servers {
            server.wait_until_ready();
        }
        assert_eq!(store.images().len(), 1);
        drop(servers);
        store.empty();
    }
    store.pool.assert_all_back();
}

/// Two containers with one image layer: overlayfs gives the same inode another device in each.
#[test]
fn two_containers_with_one_layer_share_the_image() {
    if !is_root() {
        return skip("only root can mount");
    }
    let store = or_skip!(Store::with(PAGES));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let layer = dir.path().join("layer");
    fs::create_dir(&layer).expect("the folder is ours");
    let model = models::copy_to(&layer, &models::demo("100M", "Q8_0"));
    let name = model.file_name().expect("a file");
    let overlays = ["a", "b"].map(|container| Overlay::mount(dir.path(), &layer, container));
    let mut mounted = Vec::new();
    for overlay in overlays {
        mounted.push(or_skip!(overlay));
    }
    let files = [0, 1].map(|index| mounted[index].path.join(name));
    let [a, b] = [0, 1].map(|index| fs::metadata(&files[index]).expect("the layer has it"));
    assert_ne!(a.dev(), b.dev());

    let servers = [0, 1].map(|index| launch(&files[index], &store).start());
    assert_eq!(store.images().len(), 1);
    assert_eq!(answers(&servers[0]), answers(&servers[1]));
    drop(servers);
    // The host sees the layer, and none of the mounts.
    drop(mounted);
    let list = json(&store, &["list"], 0);
    assert_eq!(images(&list)[0]["is_stale"], false, "{list}");
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
    let first = models::copy_to(
        dir.path(),
        &models::demo_with("100M", "Q8_0", &["--experts", "4"]),
    );
    let second = dir.path().join("retrained.gguf");
    fs::copy(&first, &second).expect("the disk has space");
    let file = Gguf::read(&second);
    let experts = file.tensor("blk.1.ffn_down_exps.weight");
    let expert = (experts.end - experts.start) / 4;
    // The third of four experts; bytes of other weights, so that they are valid.
    let bytes = fs::read(&second).expect("the disk can be read");
    let from = (experts.start + 2 * expert) as usize;
    let other = (experts.start + 3 * expert) as usize;
    File::options()
        .write(true)
        .open(&second)
        .and_then(|file| file.write_all_at(&bytes[other..other + expert as usize], from as u64))
        .expect("the file is ours");
    take_time_of(&first, &second);

    let server = launch(&first, &store).start();
    let pages = store.pages();
    let other = launch(&second, &store).start();
    assert_eq!(store.images().len(), 2);
    assert!(
        store.pages() >= 2 * pages - 1,
        "{} and {pages}",
        store.pages()
    );
    let expected = answers(&or_skip!(Launch::stock()).model(&second).start());
    assert_eq!(answers(&other), expected);
    assert_ne!(answers(&server), expected, "the expert matters");
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
    let first = small_reads(launch(&model, &store));
    let second = small_reads(launch(&model, &store));
    let tensors = Gguf::read(&model).tensors.len();
    assert!(first >= tensors, "{first} reads, {tensors} tensors");
    assert!(second < tensors, "{second} reads, {tensors} tensors");
    store.assert_only_files_hold_pages();
}

/// An overlayfs with one layer, as a container sees it.
struct Overlay {
    path: PathBuf,
}

impl Overlay {
    fn mount(dir: &Path, layer: &Path, name: &str) -> Result<Self, String> {
        let [upper, work, path] =
            ["upper", "work", "merged"].map(|part| dir.join(format!("{name}-{part}")));
        for folder in [&upper, &work, &path] {
            fs::create_dir(folder).expect("the folder is ours");
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            layer.display(),
            upper.display(),
            work.display()
        );
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "overlay", "none", "-o", &options])
            .arg(&path);
        programs::run(&mut mount)?;
        Ok(Self { path })
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).status();
    }
}
