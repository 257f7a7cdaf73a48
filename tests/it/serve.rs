//! A model on huge pages as the kernel sees it: the backing of each mapping, and the pages that return to the pool.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::gguf::{self, Gguf};
use crate::support::models;
use crate::support::need;
use crate::support::or_skip;
use crate::support::pool::{Counts, PAGE, Pool};
use crate::support::server::{Ended, Launch, Server};
use crate::support::smaps::{self, Vma};
use crate::support::table::Table;
use crate::support::wait_for;

/// Extra pages, so that the tests notice a server that takes too many.
const SPARE: u64 = 5;

fn one_gb() -> std::path::PathBuf {
    models::demo("1G", "Q8_0")
}

/// The mappings of a file's blocks. Their memfd holds the file's first tensor at its offset in the file.
fn overlay<'a>(pid: u32, vmas: &'a [Vma], file: &Gguf) -> Vec<&'a Vma> {
    let bytes = File::open(&file.path).expect("the model exists");
    let sample = file.tensors[0].start..file.tensors[0].end.min(file.tensors[0].start + 4096);
    let weights = || {
        vmas.iter()
            .filter(|vma| vma.path.starts_with("/memfd:llama-weights"))
    };
    let of_file = |vma: &&Vma| {
        smaps::same_bytes(pid, vma.image_base() + sample.start, &bytes, sample.clone())
    };
    let inode = weights()
        .find(of_file)
        .unwrap_or_else(|| panic!("no huge mapping holds {}", file.path.display()))
        .inode;
    weights().filter(|vma| vma.inode == inode).collect()
}

/// Asserts that every byte of every tensor is in a huge mapping that nobody can write to, and equals the file's byte.
pub fn assert_weights_on_huge_pages(server: &Server, model: &Path) {
    let files = Gguf::read_model(model);
    let vmas = smaps::read(server.pid());
    for file in &files {
        let overlay = overlay(server.pid(), &vmas, file);
        let base = overlay[0].image_base();
        assert_eq!(base % PAGE, 0, "block k of the file is block k in memory");
        for vma in &overlay {
            assert_eq!(vma.image_base(), base, "one image: {vma:?}");
            assert!(vma.is_huge(), "{vma:?}");
            assert_eq!(vma.size("KernelPageSize"), PAGE, "{vma:?}");
            assert_eq!(vma.perms, "r--s", "{vma:?}");
            assert!(vma.has_flag("dd"), "not in core dumps: {vma:?}");
            assert!(vma.has_flag("dc"), "not in a forked child: {vma:?}");
        }
        let bytes = File::open(&file.path).expect("the model exists");
        for tensor in &file.tensors {
            let mut at = base + tensor.start;
            let end = base + tensor.end;
            while at < end {
                let vma = overlay.iter().find(|vma| vma.addresses.contains(&at));
                let vma = vma.unwrap_or_else(|| {
                    panic!(
                        "byte {} of `{}` is on no huge page",
                        at - base - tensor.start,
                        tensor.name
                    )
                });
                at = vma.addresses.end;
            }
            assert!(
                smaps::same_bytes(
                    server.pid(),
                    base + tensor.start,
                    &bytes,
                    tensor.start..tensor.end
                ),
                "`{}` differs from the file",
                tensor.name
            );
        }
        let mapped: u64 = overlay.iter().map(|vma| vma.len() / PAGE).sum();
        assert_eq!(
            mapped,
            file.blocks().len() as u64,
            "no block without a weight"
        );
    }
}

/// Asserts that a served model takes exactly the pages that it needs.
fn assert_takes_exactly(pool: &Pool, server: &Server, pages: u64) {
    assert_eq!(
        smaps::hugetlb_bytes(server.pid()) / PAGE,
        pages,
        "HugetlbPages of the process\n{}",
        server.log()
    );
    assert_eq!(
        pool.taken(),
        pages,
        "fall of HugePages_Free: before {}, now {}",
        pool.counts,
        Counts::read()
    );
    assert_eq!(
        Counts::read().reserved,
        pool.counts.reserved,
        "nothing stays reserved"
    );
}

fn launch(model: &Path) -> Launch {
    Launch::ours().model(model).hugepages("require")
}

fn start(model: &Path) -> Server {
    launch(model).start()
}

#[test]
fn every_weight_of_a_1_gb_model_is_on_huge_pages() {
    let model = one_gb();
    let need = need::of(&launch(&model));
    let pool = or_skip!(Pool::with(need + SPARE));
    let server = start(&model);
    assert_weights_on_huge_pages(&server, &model);
    assert_takes_exactly(&pool, &server, need);
    // The need also covers other memory. The weights alone take their blocks.
    let weights = smaps::hugetlb_bytes_of(server.pid(), "weights") / PAGE;
    assert_eq!(weights, gguf::pages(&model));
    server.assert_answers();
    // Answering takes no more pages.
    assert_takes_exactly(&pool, &server, need);
}

#[test]
fn every_weight_of_a_split_model_is_on_huge_pages() {
    let model = models::demo_in_shards("100M", "Q8_0", 3);
    let need = need::of(&launch(&model));
    assert_eq!(gguf::files(&model).len(), 3);
    let pool = or_skip!(Pool::with(need + SPARE));
    let server = start(&model);
    assert_weights_on_huge_pages(&server, &model);
    assert_takes_exactly(&pool, &server, need);
}

#[test]
fn a_pool_with_just_enough_pages_is_enough() {
    let model = models::demo("100M", "Q8_0");
    let need = need::of(&launch(&model));
    let pool = or_skip!(Pool::with(need));
    let server = start(&model);
    assert_takes_exactly(&pool, &server, need);
    assert_eq!(Counts::read().usable(), 0);
}

#[test]
fn pages_of_others_are_not_counted_as_free() {
    let model = models::demo("100M", "Q8_0");
    let need = need::of(&launch(&model));
    let mut pool = or_skip!(Pool::with(need));
    let first = start(&model);
    // The pool gets as many pages again, while the first server uses its own.
    pool.set(need + SPARE);
    let second = start(&model);
    assert_takes_exactly(&pool, &second, need);
    second.assert_answers();
    first.assert_answers();
}

/// Serves 1 GB, ends the server, and asserts that all pages are back.
fn all_back_after(signal: Signal) -> Option<Ended> {
    let model = one_gb();
    let need = need::of(&launch(&model));
    let pool = match Pool::with(need + SPARE) {
        Ok(pool) => pool,
        Err(reason) => {
            crate::support::skip(reason);
            return None;
        }
    };
    let server = start(&model);
    assert_takes_exactly(&pool, &server, need);
    server.assert_answers();
    let ended = server.stop(signal);
    pool.assert_all_back();
    Some(ended)
}

fn assert_ended_in_order(ended: &Ended) {
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    assert!(!ended.log.contains("munmap failed"), "{}", ended.log);
    assert!(!ended.log.contains("warning: "), "{}", ended.log);
}

#[test]
fn all_pages_are_back_after_a_normal_exit() {
    if let Some(ended) = all_back_after(Signal::INT) {
        assert_ended_in_order(&ended);
    }
}

#[test]
fn all_pages_are_back_after_sigterm() {
    if let Some(ended) = all_back_after(Signal::TERM) {
        assert_ended_in_order(&ended);
    }
}

#[test]
fn all_pages_are_back_after_sigkill() {
    use std::os::unix::process::ExitStatusExt;
    if let Some(ended) = all_back_after(Signal::KILL) {
        assert_eq!(ended.status.signal(), Some(Signal::KILL.as_raw()));
    }
}

#[test]
fn all_pages_are_back_after_sigterm_in_the_middle_of_the_load() {
    let model = one_gb();
    let need = need::of(&launch(&model));
    let pool = or_skip!(Pool::with(need + SPARE));
    let server = launch(&model).spawn();
    let some = wait_for(Duration::from_secs(60), || pool.taken() > 0);
    let taken = pool.taken();
    server.stop(Signal::TERM);
    assert!(
        some && taken < need,
        "not in the middle of the load: {taken} of {need} pages were taken"
    );
    pool.assert_all_back();
}

#[test]
fn all_reservations_are_back_after_sigkill_in_the_middle_of_the_load() {
    let model = one_gb();
    let need = need::of(&launch(&model));
    let pool = or_skip!(Pool::with(need + SPARE));
    let server = launch(&model).spawn();
    let reserved = wait_for(Duration::from_secs(60), || {
        Counts::read().reserved > pool.counts.reserved
    });
    server.stop(Signal::KILL);
    assert!(reserved, "the load reserved no page");
    pool.assert_all_back();
}

#[test]
fn the_log_tells_what_the_kernel_tells() {
    let model = models::demo("100M", "Q8_0");
    let need = need::of(&launch(&model));
    let _pool = or_skip!(Pool::with(need + SPARE));
    let server = start(&model);
    let table = Table::of(&server.log());
    for row in table.rows.iter().filter(|row| row.on == "2M") {
        assert_eq!(
            row.pages * PAGE,
            smaps::hugetlb_bytes_of(server.pid(), &row.kind),
            "{row:?}"
        );
    }
    assert_eq!(
        table.rows.iter().map(|row| row.pages).sum::<u64>(),
        need,
        "{table:?}"
    );
    assert_eq!(table.pages("weights", "2M"), gguf::pages(&model));
    assert!(!table.has("weights", "file"), "{table:?}");
    let bytes: u64 = Gguf::read_model(&model)
        .iter()
        .flat_map(|file| &file.tensors)
        .map(|tensor| tensor.end - tensor.start)
        .sum();
    assert_eq!(
        format!("{:.2}", table.mib("weights", "2M")),
        format!("{:.2}", bytes as f64 / 1024.0 / 1024.0)
    );
}
