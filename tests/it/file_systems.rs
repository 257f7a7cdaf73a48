//! The server's report of its reads equals the kernel's counts, on every kind of file system.
//!
//! The kernel counts three things: pages added to the page cache (a trace event), pages in it afterwards (fincore), and bytes that the loop
//! device read.

use std::fs;

use crate::equality::answers;
use crate::support::file_system::{FileSystem, Kind};
use crate::support::fuse::DirectIoMount;
use crate::support::page_cache;
use crate::support::pool::{PAGE, Pool};
use crate::support::seen::{Before, Seen};
use crate::support::server::Launch;
use crate::support::weights::Weights::{self, Compressible, Mapped, Repacked};
use crate::support::{need, or_skip, plan, smaps};

const MIB: u64 = 1 << 20;

/// Reads beside the header: the kernel's readahead, and a first read that probes the file system.
const SLACK: u64 = 4 * MIB;

/// More than a reader reads at once. A reader may read a partly cached piece as a whole.
const CHUNK: u64 = 16 * MIB;

/// A compressing file system compresses parts of the mapped model, and at most the header of the repacked one.
fn weights_on(kind: Kind) -> [Weights; 2] {
    let mapped = if kind.is_compressed() {
        Compressible
    } else {
        Mapped
    };
    [mapped, Repacked]
}

/// The part of the model that the page cache holds before the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cache {
    Cold,
    Warm,
    /// The second half of the file.
    HalfWarm,
}

impl Seen {
    /// Asserts that the report is true, for any load.
    fn assert_true(&self, kind: Kind, log: &str) {
        let Self { size, said, .. } = *self;
        assert!(
            (size - size / 10..=size + SLACK).contains(&said.read()),
            "of {size} bytes {} were read: {self:?}\n{log}",
            said.read()
        );
        // Direct reads bypass the page cache.
        assert!(
            said.direct + self.arrived <= size + self.header + SLACK || said.direct < SLACK,
            "{} bytes reported as direct, {} added to the page cache: {self:?}\n{log}",
            said.direct,
            self.arrived
        );
        assert!(
            kind.is_compressed() || said.direct <= self.from_device + SLACK,
            "{} bytes reported as direct, {} read by the device: {self:?}\n{log}",
            said.direct,
            self.from_device
        );
        // Bytes reported as cached were cached before the load, not by the load or its readahead.
        assert!(
            said.cached <= self.cached_before + SLACK,
            "{} bytes reported as cached, {} cached before the load: {self:?}\n{log}",
            said.cached,
            self.cached_before
        );
    }

    fn assert_cold(&self, log: &str) {
        assert!(
            self.cached_after <= self.header + SLACK,
            "{} bytes are left in the page cache: {self:?}\n{log}",
            self.cached_after
        );
    }

    fn assert_warm(&self, log: &str) {
        assert!(
            self.from_device <= self.size / 50,
            "{} bytes were read from the device: {self:?}\n{log}",
            self.from_device
        );
        assert!(
            self.said.cached >= self.size - self.size / 10,
            "the page cache held all bytes: {self:?}\n{log}"
        );
        assert!(
            self.cached_after + self.size / 50 >= self.cached_before,
            "the load dropped cached pages: {self:?}\n{log}"
        );
    }

    fn assert_half_warm(&self, is_compressed: bool, log: &str) {
        let Self {
            size,
            cached_before,
            ..
        } = *self;
        assert!(
            self.cached_after + size / 50 >= cached_before,
            "the load dropped cached pages: {self:?}\n{log}"
        );
        assert!(
            self.cached_after <= cached_before + self.header + SLACK,
            "the load left new pages in the page cache: {self:?}\n{log}"
        );
        assert!(
            self.said.cached + self.header + CHUNK >= cached_before,
            "the load read cached bytes from the device: {self:?}\n{log}"
        );
        // The device reads a compressed block as a whole, and the test does not know its compressed size.
        assert!(
            is_compressed || self.from_device <= size - cached_before + self.header + CHUNK,
            "{} bytes were read from the device: {self:?}\n{log}",
            self.from_device
        );
    }
}

fn check(kind: Kind, weights: Weights, cache: Cache) -> Result<(), String> {
    let expected = weights.stock_answers()?;
    let demo = weights.demo();
    let name = "model.gguf";
    let need = need::of(&weights.with(Launch::ours(), &demo));
    let pool = Pool::with(need)?;
    let file_system = FileSystem::with(kind, &[(&demo, name)])?;
    let (path, cached_path) = (file_system.path(name), file_system.cached_path(name));
    let size = fs::metadata(&path).expect("the file exists").len();
    match cache {
        Cache::Cold => {}
        Cache::Warm => page_cache::warm_all(&path, &cached_path),
        Cache::HalfWarm => page_cache::warm(&path, size / 2..size),
    }
    let before = Before::of(&file_system, &cached_path, &demo)?;
    let cached_before = before.cached;
    let is_as_wanted = match cache {
        Cache::Cold => cached_before < MIB,
        Cache::Warm => cached_before >= size,
        Cache::HalfWarm => (size / 2..size / 2 + SLACK).contains(&cached_before),
    };
    assert!(
        is_as_wanted,
        "{kind:?}, {cache:?}: {cached_before} of {size} bytes are cached before the load"
    );

    let launch = weights.with(Launch::ours(), &path).hugepages("require");
    let server = launch.start();
    let seen = before.after(&server)?;
    println!("{kind:?}, {weights:?}, {cache:?}: {seen:?}");
    let log = server.log();
    assert_eq!(&answers(&server), expected, "{seen:?}\n{log}");
    drop(server);
    pool.assert_all_back();

    seen.assert_true(kind, &log);
    match cache {
        Cache::Cold => seen.assert_cold(&log),
        Cache::Warm => seen.assert_warm(&log),
        Cache::HalfWarm => seen.assert_half_warm(kind.is_compressed(), &log),
    }
    Ok(())
}

/// The same tests for each kind of file system.
macro_rules! on {
    ($($module:ident: $kind:ident;)*) => {$(
        mod $module {
            use super::*;

            #[test]
            fn a_cold_load_says_how_it_read_and_leaves_nothing_in_the_page_cache() {
                for weights in weights_on(Kind::$kind) {
                    or_skip!(check(Kind::$kind, weights, Cache::Cold));
                }
            }

            #[test]
            fn a_warm_load_reads_nothing_from_the_device_and_leaves_the_page_cache_alone() {
                for weights in weights_on(Kind::$kind) {
                    or_skip!(check(Kind::$kind, weights, Cache::Warm));
                }
            }

            #[test]
            fn a_half_warm_load_keeps_the_cached_half_and_adds_nothing_to_it() {
                for weights in weights_on(Kind::$kind) {
                    or_skip!(check(Kind::$kind, weights, Cache::HalfWarm));
                }
            }
        }
    )*};
}

on! {
    ext4: Ext4;
    ext4_that_journals_data: Ext4Journal;
    xfs: Xfs;
    btrfs: Btrfs;
    btrfs_that_compresses: BtrfsCompressed;
    squashfs: Squashfs;
    erofs: Erofs;
    erofs_that_compresses: ErofsCompressed;
    f2fs: F2fs;
    overlay_on_ext4: OverlayOnExt4;
    overlay_on_ext4_that_journals_data: OverlayOnExt4Journal;
}

/// tmpfs uses no device: its files are in the page cache.
#[test]
fn a_model_on_tmpfs_comes_from_the_page_cache_and_stays_there() {
    for weights in [Mapped, Repacked] {
        or_skip!(check(Kind::Tmpfs, weights, Cache::Warm));
    }
}

/// Stock maps the file shared, which FUSE refuses.
#[test]
fn a_model_on_fuse_with_direct_io_is_planned_and_loaded() {
    for weights in [Mapped, Repacked] {
        let mount = or_skip!(DirectIoMount::of(&weights.demo()));
        let launch = weights.with(Launch::ours(), mount.path());
        let plan = plan::of(&launch);
        let need = plan::pages_by_kind(&plan).values().sum();
        let pool = or_skip!(Pool::with(need));
        let server = launch.hugepages("require").start();
        assert_eq!(smaps::hugetlb_bytes(server.pid()) / PAGE, need);
        server.assert_answers();
        let expected = or_skip!(weights.stock_answers());
        assert_eq!(&answers(&server), expected);
        drop(server);
        pool.assert_all_back();
    }
}
