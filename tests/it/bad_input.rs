//! Input that cannot work ends with one cause, a hint if one helps, an exit code, and no page kept.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::cgroup::Cgroup;
use crate::support::gguf::{self, Gguf};
use crate::support::pool::{Counts, PAGE, Pool};
use crate::support::server::{Ended, Launch};
use crate::support::table::Table;
use crate::support::{is_root, made, models, need, or_skip, page_cache, smaps};

fn model() -> PathBuf {
    models::demo("100M", "Q8_0")
}

fn require(model: &Path) -> Launch {
    Launch::ours().model(model).hugepages("require")
}

/// The cause of a failed load and the hint below it. The log contains each once, on one line.
fn cause_and_hint(ended: &Ended) -> (&str, &str) {
    ended.assert_clean_failure();
    let hint = ended.line_with("hint: ");
    let last_cause = ended
        .log
        .lines()
        .rfind(|line| line.contains("error loading model: "));
    (
        last_cause.unwrap_or_else(|| panic!("no cause\n{}", ended.log)),
        hint,
    )
}

/// Asserts that the error reports the shortage in full, and that its hint names a sufficient total.
fn assert_tells_the_need(ended: &Ended, before: Counts, need: u64) {
    let (cause, hint) = cause_and_hint(ended);
    assert_eq!(
        ended.log.matches("error loading model: ").count(),
        1,
        "more than one cause\n{}",
        ended.log
    );
    let Counts {
        total,
        free,
        reserved,
        ..
    } = before;
    for part in [
        format!("needs {need} huge pages of 2 MiB"),
        format!("only {} are usable", before.usable()),
        format!("free {free}"),
        format!("reserved {reserved}"),
        format!("total {total}"),
    ] {
        assert!(cause.contains(&part), "no `{part}` in: {cause}");
    }
    let new_total = total + need - before.usable();
    assert!(
        hint.contains(&format!("sysctl vm.nr_hugepages={new_total}")),
        "want {new_total}: {hint}"
    );
}

#[test]
fn require_with_an_empty_pool_says_what_it_needs() {
    let model = model();
    let need = need::of(&require(&model));
    let pool = or_skip!(Pool::with(0));
    let ended = require(&model).run();
    assert_tells_the_need(&ended, pool.counts, need);
    assert!(
        need > gguf::pages(&model),
        "weights alone take {need} pages"
    );
    pool.assert_all_back();
}

#[test]
fn require_exits_before_io_when_the_pool_is_short_by_one_page() {
    let model = model();
    let need = need::of(&require(&model));
    let pool = or_skip!(Pool::with(need.saturating_sub(1)));
    page_cache::drop_file(&model);
    let ended = require(&model).run();
    assert_tells_the_need(&ended, pool.counts, need);
    pool.assert_all_back();

    // The load read the header, and the kernel read ahead.
    let cached = or_skip!(page_cache::cached_bytes(&model));
    let header = Gguf::read(&model).data;
    assert!(
        cached <= header + 2 * 1024 * 1024,
        "{cached} bytes of the model were read, the header has {header}"
    );
}

#[test]
fn the_need_of_a_split_model_is_summed_before_a_page_is_taken() {
    let model = models::demo_in_shards("100M", "Q8_0", 3);
    let need = need::of(&require(&model));
    let pool = or_skip!(Pool::with(need.saturating_sub(1)));
    let ended = require(&model).run();
    assert_tells_the_need(&ended, pool.counts, need);
    pool.assert_all_back();
}

#[test]
fn the_total_of_the_hint_does_not_shrink_what_others_use() {
    let model = model();
    let need = need::of(&require(&model));
    let mut pool = or_skip!(Pool::with(need));
    let first = require(&model).start();
    // The first server uses all pages.
    let in_use = Counts::read();
    assert_eq!(in_use.usable(), 0);
    let second = require(&model).run();
    assert_tells_the_need(&second, in_use, need);
    // The total in the hint suffices.
    pool.set(need);
    assert_eq!(Counts::read().total, in_use.total + need);
    require(&model).start().assert_answers();
    first.assert_answers();
}

#[test]
fn of_two_servers_on_pages_for_one_the_second_fails_and_the_first_still_serves() {
    let model = model();
    let need = need::of(&require(&model));
    let pool = or_skip!(Pool::with(need + 3));
    let first = require(&model).start();
    let before = first.complete("Hello", &json!({ "temperature": 0 }));
    let taken = pool.taken();
    cause_and_hint(&require(&model).run());
    assert_eq!(pool.taken(), taken, "the second server returned its pages");
    assert_eq!(
        first.complete("Hello", &json!({ "temperature": 0 })),
        before
    );
}

#[test]
fn prefer_with_an_empty_pool_serves_without_a_page() {
    let _pool = or_skip!(Pool::with(0));
    let server = Launch::ours().model(&model()).hugepages("prefer").start();
    server.assert_answers();
    assert_eq!(smaps::hugetlb_bytes(server.pid()), 0);
    // The log reports the fallback.
    assert!(server.log().contains("huge pages"), "{}", server.log());
}

#[test]
fn prefer_with_a_short_pool_takes_all_there_is_and_reports_the_rest() {
    let model = model();
    let pages = need::of(&require(&model)).saturating_sub(7);
    let pool = or_skip!(Pool::with(pages));
    let server = Launch::ours().model(&model).hugepages("prefer").start();
    server.assert_answers();
    assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, pages);
    assert_eq!(pool.taken(), pages);
    let table = Table::of(&server.log());
    assert_eq!(
        table.rows.iter().map(|row| row.pages).sum::<u64>(),
        pages,
        "{table:?}"
    );
    assert!(table.huge_mib < table.total_mib, "{table:?}");
}

/// A token reads few rows of the token embeddings, but all bytes of all other weights.
#[test]
fn prefer_with_a_short_pool_leaves_out_the_token_embeddings_first() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let model = dir.path().join("gemma4.gguf");
    made::gemma4(&model);
    let launch = Launch::ours().model(&model).args(["--lazy-mode", "off"]);
    let need = need::of(&launch);
    let file = Gguf::read(&model);
    // A block that also holds another tensor keeps its page.
    let others = file
        .tensors
        .iter()
        .filter(|tensor| tensor.name != made::LAZY);
    let others: BTreeSet<u64> = others
        .flat_map(|tensor| tensor.start / PAGE..tensor.end.div_ceil(PAGE))
        .collect();
    let alone = file.blocks().difference(&others).count() as u64;
    assert!(alone > 0, "the model has embeddings of some size");

    let _pool = or_skip!(Pool::with(need.saturating_sub(alone)));
    let server = launch.hugepages("prefer").start();
    let pages = smaps::hugetlb_bytes_of(server.pid(), "weights") / PAGE;
    assert_eq!(pages, others.len() as u64, "\n{}", server.log());
    // The remaining blocks are mapped from the file and hold only embeddings.
    let vmas = smaps::read(server.pid());
    let mut mapped = smaps::of_file(&vmas, &model).into_iter();
    assert!(
        mapped.all(|vma| {
            let blocks = vma.offset / PAGE..(vma.offset + vma.len()).div_ceil(PAGE);
            blocks.into_iter().all(|block| !others.contains(&block))
        }),
        "{vmas:?}"
    );
    server.assert_answers();
}

#[test]
fn a_pool_that_only_may_grow_is_enough_for_require() {
    let model = model();
    let need = need::of(&require(&model));
    let mut pool = or_skip!(Pool::with(0));
    pool.set_overcommit(need);
    let server = require(&model).start();
    server.assert_answers();
    assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, need);
    assert_eq!(Counts::read().surplus, pool.counts.surplus + need);
    drop(server);
    pool.assert_all_back();
}

#[test]
fn a_load_mode_that_does_not_map_is_served_from_a_buffer_or_not_at_all() {
    let model = model();
    let launch = || require(&model).args(["--load-mode", "none"]);
    let need = need::of(&launch());
    let mut pool = or_skip!(Pool::with(need.saturating_sub(1)));
    assert_tells_the_need(&launch().run(), pool.counts, need);
    pool.assert_all_back();

    pool.set(need);
    let server = launch().start();
    server.assert_answers();
    assert_eq!(pool.taken(), need);
    let bytes: u64 = Gguf::read(&model)
        .tensors
        .iter()
        .map(|tensor| tensor.end - tensor.start)
        .sum();
    // One buffer without the header: at least the tensors' bytes, and less than a page of padding between them.
    let pages = smaps::hugetlb_bytes_of(server.pid(), "weights") / PAGE;
    assert!(
        pages == bytes.div_ceil(PAGE) || pages == bytes.div_ceil(PAGE) + 1,
        "{pages} pages for {bytes} bytes"
    );
    let vmas = smaps::read(server.pid());
    assert!(
        smaps::of_file(&vmas, &model).is_empty(),
        "nothing is mapped"
    );
}

/// Asserts that the load fails with this cause and hint, although the pool has enough pages.
fn fails_with(launch: Launch, cause: &str, hint: &str) {
    let need = need::of(&require(&model()));
    let pool = or_skip!(Pool::with(need));
    let ended = launch.run();
    let (_, has_hint) = cause_and_hint(&ended);
    assert!(ended.log.contains(cause), "no `{cause}` in\n{}", ended.log);
    assert!(has_hint.contains(hint), "no `{hint}` in: {has_hint}");
    pool.assert_all_back();
}

#[test]
fn a_model_cut_off_in_the_middle_of_a_tensor_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let cut = models::copy_to(dir.path(), &model());
    let table = Gguf::read(&cut);
    let tensor = &table.tensors[table.tensors.len() / 2];
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&cut)
        .expect("the copy is ours");
    file.set_len(tensor.start.midpoint(tensor.end))
        .expect("the copy is ours");
    fails_with(
        require(&cut),
        "not within the file bounds",
        "in the middle of a tensor",
    );
}

#[test]
fn a_shard_that_is_missing_is_named() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let first = models::copy_to(dir.path(), &models::demo_in_shards("100M", "Q8_0", 3));
    let second = gguf::files(&first)[1].clone();
    fs::remove_file(&second).expect("the copy is ours");
    let need = need::of(&require(&model()));
    let pool = or_skip!(Pool::with(need + 8));
    let ended = require(&first).run();
    ended.assert_clean_failure();
    assert!(
        ended
            .log
            .contains(second.to_str().expect("a name in UTF-8")),
        "{}",
        ended.log
    );
    pool.assert_all_back();
}

#[test]
fn a_file_that_is_not_gguf_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = dir.path().join("poem.gguf");
    fs::write(&path, "Shall I compare thee to a summer's day?").expect("the disk has space");
    fails_with(require(&path), "invalid magic", "is not a GGUF file");
}

#[test]
fn a_model_cut_off_in_its_header_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = models::copy_to(dir.path(), &models::demo("20M", "Q8_0"));
    let file = fs::OpenOptions::new().write(true).open(&path);
    file.and_then(|file| file.set_len(200))
        .expect("the copy is ours");
    fails_with(
        require(&path),
        "failed to load model from",
        "has 200 bytes, but its header cannot be read",
    );
}

#[test]
fn a_header_with_noise_in_it_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = models::copy_to(dir.path(), &models::demo("20M", "Q8_0"));
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("the copy is ours");
    file.write_all_at(&[0xa5; 512], 8)
        .expect("the copy is ours");
    let need = need::of(&require(&model()));
    let pool = or_skip!(Pool::with(need));
    require(&path).run().assert_clean_failure();
    pool.assert_all_back();
}

#[test]
fn a_model_without_the_right_to_read_it_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    // Other users can enter the folder but not read the file.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("the folder is ours");
    let path = models::copy_to(dir.path(), &models::demo("20M", "Q8_0"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("the file is ours");
    let launch = require(&path);
    // root may read anything
    let launch = if is_root() {
        launch.under_uid(65534)
    } else {
        launch
    };
    fails_with(launch, "Permission denied", "right to read");
}

#[test]
fn a_directory_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    fails_with(
        require(dir.path()),
        "failed to load model",
        "is a directory",
    );
}

#[test]
fn a_model_that_is_not_there_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let need = need::of(&require(&model()));
    let pool = or_skip!(Pool::with(need));
    let ended = require(&dir.path().join("nothing.gguf")).run();
    ended.assert_clean_failure();
    assert!(
        ended.log.contains("No such file or directory"),
        "{}",
        ended.log
    );
    pool.assert_all_back();
}

/// Taking free huge pages needs no privilege.
#[test]
fn a_user_without_rights_gets_huge_pages() {
    if !is_root() {
        return crate::support::skip("needs root to become another user");
    }
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("the folder is ours");
    let path = models::copy_to(dir.path(), &models::demo("20M", "Q8_0"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("the file is ours");
    let need = need::of(&require(&path));
    let pool = or_skip!(Pool::with(need));
    let server = require(&path).under_uid(65534).start();
    server.assert_answers();
    assert_eq!(pool.taken(), need);
    drop(server);
    pool.assert_all_back();
}

/// A pool with all needed pages, and a cgroup that lets a process touch half of them. The kernel refuses only at the first touch, so an
/// unchecked touch raises SIGBUS.
fn limited(model: &Path) -> Result<(Pool, Cgroup, u64), String> {
    let need = need::of(&require(model));
    let pool = Pool::with(need)?;
    let cgroup = Cgroup::with_limit(need / 2)?;
    Ok((pool, cgroup, need))
}

fn require_beyond_a_cgroup_limit_fails(model: &Path) {
    let (pool, cgroup, need) = or_skip!(limited(model));
    let ended = require(model).in_cgroup(&cgroup.dir).run();
    let (cause, hint) = cause_and_hint(&ended);
    let name = Path::new(cgroup.dir.file_name().expect("a folder"));
    for part in [
        format!("needs {need} huge pages of 2 MiB"),
        format!("only {} are usable", need / 2),
        format!("free {need}"),
        "hugetlb.2MB.max".to_owned(),
        // The cgroup's path in /proc/self/cgroup, without the mount point.
        format!("/{}", name.display()),
    ] {
        assert!(cause.contains(&part), "no `{part}` in: {cause}");
    }
    // A larger pool would not help.
    assert!(
        hint.contains("cgroup") && !hint.contains("sysctl"),
        "{hint}"
    );
    assert!(
        hint.contains(&(need * PAGE).to_string()),
        "what the limit should be: {hint}"
    );
    assert_eq!(
        cgroup.refusals(),
        0,
        "the server saw the limit before the first touch"
    );
    pool.assert_all_back();
}

#[test]
fn require_beyond_a_cgroup_limit_fails_without_sigbus() {
    require_beyond_a_cgroup_limit_fails(&model());
}

#[test]
fn require_beyond_a_cgroup_limit_fails_without_sigbus_in_a_later_shard() {
    require_beyond_a_cgroup_limit_fails(&models::demo_in_shards("100M", "Q8_0", 3));
}

fn prefer_beyond_a_cgroup_limit_serves(model: &Path) {
    let (pool, cgroup, need) = or_skip!(limited(model));
    let ask = json!({ "temperature": 0 });
    let expected = Launch::ours().model(model).start().complete("Hello", &ask);
    let server = Launch::ours()
        .model(model)
        .hugepages("prefer")
        .in_cgroup(&cgroup.dir)
        .start();
    let pages = smaps::hugetlb_bytes(server.pid()) / PAGE;
    assert!(
        pages > 0 && pages <= need / 2,
        "{pages} of {need} pages\n{}",
        server.log()
    );
    assert_eq!(pool.taken(), pages, "the load returned its unused pages");
    assert_eq!(Counts::read().reserved, pool.counts.reserved);
    assert_eq!(server.complete("Hello", &ask), expected);
    drop(server);
    pool.assert_all_back();
}

#[test]
fn prefer_beyond_a_cgroup_limit_serves_with_fewer_pages() {
    prefer_beyond_a_cgroup_limit_serves(&model());
}

#[test]
fn prefer_beyond_a_cgroup_limit_serves_shards_with_fewer_pages() {
    prefer_beyond_a_cgroup_limit_serves(&models::demo_in_shards("100M", "Q8_0", 3));
}

#[test]
fn a_path_with_spaces_and_other_letters_is_served() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let folder = dir.path().join("große modelle (neu)");
    fs::create_dir(&folder).expect("the disk has space");
    let path = models::copy_to(&folder, &models::demo("20M", "Q8_0"));
    assert_eq!(path.extension(), Some(OsStr::new("gguf")));
    let need = need::of(&require(&path));
    let pool = or_skip!(Pool::with(need));
    let server = require(&path).start();
    server.assert_answers();
    assert_eq!(pool.taken(), need);
}

/// `--check-tensors` checks bytes as they arrive, whichever memory they go to.
#[test]
fn invalid_numbers_are_found_by_check_tensors_as_stock_finds_them() {
    const NAN: [u8; 2] = 0x7e00_u16.to_le_bytes();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let pool = or_skip!(Pool::with(200));
    for (kind, tensor, repacked) in [
        ("Q8_0", "blk.2.ffn_down.weight", false),
        ("Q8_0", "output.weight", false),
        ("Q4_K", "blk.2.ffn_down.weight", true),
    ] {
        let good = models::demo("100M", kind);
        let bad = models::copy_to(dir.path(), &good);
        let weight = Gguf::read(&bad);
        let weight = weight.tensor(tensor);
        // The scale begins the last block: 34 bytes for 32 numbers, or 144 bytes for 256.
        let block = if repacked { 144 } else { 34 };
        let file = fs::OpenOptions::new()
            .write(true)
            .open(&bad)
            .expect("a copy");
        file.write_all_at(&NAN, weight.end - block).expect("a copy");
        let with = |launch: Launch, model: &Path| {
            let launch = if repacked {
                launch.repacked_model(model)
            } else {
                launch.model(model)
            };
            launch.args(["--check-tensors"])
        };
        let stock = with(or_skip!(Launch::stock()), &bad).run();
        stock.assert_clean_failure();
        for policy in ["require", "prefer"] {
            let ours = with(Launch::ours(), &bad).hugepages(policy).run();
            ours.assert_clean_failure();
            ours.line_with("error loading model: found tensors with invalid data");
            ours.line_with(&format!("tensor '{tensor}' has invalid data"));
            pool.assert_all_back();
            let server = with(Launch::ours(), &good).hugepages(policy).start();
            server.assert_answers();
        }
    }
}
