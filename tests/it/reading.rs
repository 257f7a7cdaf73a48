//! How a load reads the weights: the bytes that come from the disk, and the bytes that stay in the page cache.

use std::fs;
use std::path::Path;

use crate::serve::assert_weights_on_huge_pages;
use crate::support::gguf::Gguf;
use crate::support::load::Load;
use crate::support::models;
use crate::support::need;
use crate::support::or_skip;
use crate::support::page_cache;
use crate::support::pool::Pool;
use crate::support::server::{Launch, Server};
use crate::support::store::Store;

/// Bytes that the kernel may read around the header, which the engine reads as an ordinary file.
const READ_AHEAD: u64 = 2 * 1024 * 1024;

fn launch(model: &Path) -> Launch {
    Launch::ours().model(model).hugepages("require")
}

fn start(model: &Path) -> Server {
    launch(model).start()
}

/// Bytes that a server fetched from storage.
fn read_bytes(server: &Server) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", server.pid())).expect("the process runs");
    let value = io
        .lines()
        .find_map(|line| line.strip_prefix("read_bytes: "));
    value.expect("proc(5)").parse().expect("a number")
}

/// A copy on the disk that no other test reads and that the page cache does not hold.
fn own_model(dir: &Path) -> std::path::PathBuf {
    let model = models::copy_to(dir, &models::demo("100M", "Q8_0"));
    page_cache::drop_file(&model);
    model
}

fn temp_dir_on_disk() -> tempfile::TempDir {
    // The build folder is on a disk, but /tmp is memory on many machines.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target folder can be written")
}

#[test]
fn a_cold_load_leaves_none_of_the_weights_in_the_page_cache() {
    let dir = temp_dir_on_disk();
    let model = own_model(dir.path());
    let need = need::of(&launch(&model));
    let pool = or_skip!(Pool::with(need));
    let before = or_skip!(page_cache::cached_bytes(&model));
    let header = Gguf::read(&model).data;
    assert!(before <= header + READ_AHEAD, "{before} bytes are cached");

    let server = start(&model);
    assert_weights_on_huge_pages(&server, &model);
    // The comparison above reads the file too, so a second server starts from a cold cache.
    drop(server);
    page_cache::drop_file(&model);
    let server = start(&model);
    let cached = or_skip!(page_cache::cached_bytes(&model));
    assert!(
        cached <= header + READ_AHEAD,
        "{cached} bytes of the model are in the page cache"
    );
    let size = fs::metadata(&model).expect("the model exists").len();
    let read = read_bytes(&server);
    assert!(
        read + READ_AHEAD >= size && read <= size + header + READ_AHEAD,
        "{read} bytes read from a file of {size}"
    );
    drop(server);
    pool.assert_all_back();
}

#[test]
fn a_warm_load_reads_nothing_from_the_disk_and_leaves_the_cache_warm() {
    let dir = temp_dir_on_disk();
    let model = own_model(dir.path());
    let need = need::of(&launch(&model));
    let pool = or_skip!(Pool::with(need));
    let size = fs::metadata(&model).expect("the model exists").len();
    page_cache::warm_all(&model, &model);
    let before = or_skip!(page_cache::cached_bytes(&model));
    assert!(before >= size, "{before} of {size} bytes are cached");

    let server = start(&model);
    let read = read_bytes(&server);
    assert!(read <= READ_AHEAD, "{read} bytes came from the disk");
    // A busy kernel may drop a few pages by itself.
    let after = or_skip!(page_cache::cached_bytes(&model));
    assert!(
        after >= size - size / 64,
        "{after} of {size} bytes are cached"
    );
    assert_weights_on_huge_pages(&server, &model);
    drop(server);
    pool.assert_all_back();
}

#[test]
fn a_warm_load_that_shall_drop_the_cache_leaves_nothing_there() {
    let dir = temp_dir_on_disk();
    let model = own_model(dir.path());
    let launch = launch(&model).args(["--hugepage-drop-cache"]);
    let need = need::of(&launch);
    let pool = or_skip!(Pool::with(need));
    let size = fs::metadata(&model).expect("the model exists").len();
    page_cache::warm_all(&model, &model);
    let before = or_skip!(page_cache::cached_bytes(&model));
    assert!(before >= size, "{before} of {size} bytes are cached");

    let server = launch.start();
    let cached = or_skip!(page_cache::cached_bytes(&model));
    let header = Gguf::read(&model).data;
    assert!(
        cached <= header + READ_AHEAD,
        "{cached} bytes of the model are in the page cache"
    );
    assert_weights_on_huge_pages(&server, &model);
    drop(server);
    pool.assert_all_back();
}

#[test]
fn an_attach_that_drops_the_cache_leaves_nothing_there() {
    let dir = temp_dir_on_disk();
    let model = own_model(dir.path());
    let plain = launch(&model);
    // One page more, for the manifest.
    let store = or_skip!(Store::with(need::of(&plain) + 1));
    let launch = plain.args(["--hugepage-store", store.arg()]);
    drop(launch.clone().start());
    fs::read(&model).expect("the model exists");

    let server = launch.args(["--hugepage-drop-cache"]).start();
    assert!(Load::of(&server).attached > 0, "{}", server.log());
    let cached = or_skip!(page_cache::cached_bytes(&model));
    let header = Gguf::read(&model).data;
    assert!(
        cached <= header + READ_AHEAD,
        "{cached} bytes of the model are in the page cache"
    );
}

#[test]
fn a_half_warm_load_is_put_together_from_both() {
    let dir = temp_dir_on_disk();
    let model = own_model(dir.path());
    let need = need::of(&launch(&model));
    let pool = or_skip!(Pool::with(need));
    let bytes = fs::read(&model).expect("the model exists");
    page_cache::drop_file(&model);
    // Brings only the second half into the page cache.
    let file = fs::File::open(&model).expect("the model exists");
    let mut half = vec![0; bytes.len() / 2];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut half, (bytes.len() / 2) as u64)
        .expect("the file is that long");

    let server = start(&model);
    assert_weights_on_huge_pages(&server, &model);
    drop(server);
    pool.assert_all_back();
}

#[test]
fn a_model_in_memory_is_read_like_any_other() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("/dev/shm can be written");
    let model = models::copy_to(dir.path(), &models::demo("100M", "Q8_0"));
    let need = need::of(&launch(&model));
    let pool = or_skip!(Pool::with(need));
    let server = start(&model);
    assert_weights_on_huge_pages(&server, &model);
    drop(server);
    pool.assert_all_back();
}
