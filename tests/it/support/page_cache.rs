//! The bytes of a file in the page cache, and the bytes added to it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{Advice, fadvise, fsync};
use rustix::io::Errno;
use tempfile::TempDir;

use super::guardian::Guardian;
use super::programs::run;
use super::wait_for;

/// The time limit for bringing a file into the page cache.
const PATIENCE: Duration = Duration::from_secs(20);

/// Drops an unmapped file from the page cache.
pub fn drop_file(path: &Path) {
    let file = File::open(path).expect("the file exists");
    // The kernel drops only clean pages. A file system that cannot be written has no others.
    match fsync(&file) {
        Ok(()) | Err(Errno::ROFS | Errno::INVAL) => {}
        Err(error) => panic!("{}: {error}", path.display()),
    }
    fadvise(&file, 0, None, Advice::DontNeed).expect("the path is a file");
}

/// Drops whole pages of an unmapped file without changes.
pub fn drop_range(path: &Path, bytes: std::ops::Range<u64>) {
    let file = File::open(path).expect("the file exists");
    let len = std::num::NonZeroU64::new(bytes.end - bytes.start);
    fadvise(&file, bytes.start, len, Advice::DontNeed).expect("the path is a file");
}

/// Brings a part of a file into the page cache, without readahead.
pub fn warm(path: &Path, bytes: std::ops::Range<u64>) {
    let file = File::open(path).expect("the file exists");
    fadvise(&file, 0, None, Advice::Random).expect("the path is a file");
    let mut buffer = vec![0; 1 << 20];
    let mut at = bytes.start;
    while at < bytes.end {
        let n = (bytes.end - at).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..n], at)
            .expect("the file is long enough");
        at += n as u64;
    }
}

/// Brings a whole file into the page cache, which holds it as `cached_path`. A busy kernel may drop a page during the read, so this reads
/// until the page cache holds all pages.
pub fn warm_all(path: &Path, cached_path: &Path) {
    let size = path.metadata().expect("the file exists").len();
    wait_for(PATIENCE, || {
        warm(path, 0..size);
        cached_bytes(cached_path).is_ok_and(|cached| cached >= size)
    });
}

/// Bytes of a file in the page cache. An error is the reason to skip the test.
pub fn cached_bytes(path: &Path) -> Result<u64, String> {
    let output = Command::new("fincore")
        .args(["--bytes", "--noheadings", "--output", "RES"])
        .arg(path)
        .output();
    let output =
        output.map_err(|error| format!("fincore (of util-linux) cannot be run: {error}"))?;
    assert!(output.status.success(), "{output:?}");
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .expect("a number"))
}

/// Removes the trace and the mount of tracefs.
const REMOVE: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    read -r dir || exit 0
    while read -r name; do instance=$name; done
    [ -z "$instance" ] || rmdir "$dir/instances/$instance" 2>/dev/null
    umount "$dir" 2>/dev/null
    rmdir "$dir" 2>/dev/null
    ! mountpoint -q "$dir"
"#;

/// Counts the bytes of a file that the kernel adds to the page cache, including those that it drops again.
///
/// Afterwards, the page cache looks the same after a direct read and after a buffered read whose pages were dropped. The kernel's own trace
/// event shows the difference.
pub struct Arrivals {
    // Fields drop in this order.
    _guardian: Guardian,
    dir: TempDir,
    instance: String,
}

impl Arrivals {
    /// Starts to count. An error is the reason to skip the test.
    pub fn of(path: &Path) -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let mut guardian = Guardian::start(REMOVE, None);
        guardian.tell(dir.path().to_str().expect("a plain name"));
        run(Command::new("mount")
            .args(["-t", "tracefs", "none"])
            .arg(dir.path()))?;
        let instance = format!(
            "llama-hugepages-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        guardian.tell(&instance);
        let arrivals = Self {
            _guardian: guardian,
            dir,
            instance,
        };
        let trace = arrivals.path("");
        fs::create_dir(&trace).map_err(|error| format!("cannot trace the page cache: {error}"))?;
        let event = "events/filemap/mm_filemap_add_to_page_cache";
        if !arrivals.path(event).is_dir() {
            return Err("this kernel does not trace the page cache".to_owned());
        }
        let write = |name: &str, text: &str| {
            fs::write(arrivals.path(name), text).map_err(|error| format!("{name}: {error}"))
        };
        let inode = fs::metadata(path).expect("the file exists").ino();
        let device = super_block_of(path)?;
        write("buffer_size_kb", "8192")?;
        write(
            &format!("{event}/filter"),
            &format!("i_ino == {inode} && s_dev == {device}"),
        )?;
        write(&format!("{event}/enable"), "1")?;
        Ok(arrivals)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir
            .path()
            .join("instances")
            .join(&self.instance)
            .join(name)
    }

    /// The bytes counted so far.
    pub fn bytes(&self) -> u64 {
        let cpus = fs::read_dir(self.path("per_cpu")).expect("the file is traced");
        for cpu in cpus {
            let stats = cpu.expect("a CPU").path().join("stats");
            let stats = fs::read_to_string(stats).expect("the file is traced");
            assert!(stats.contains("overrun: 0\n"), "events were lost: {stats}");
        }
        let trace = fs::read_to_string(self.path("trace")).expect("the file is traced");
        let orders = trace
            .lines()
            .filter_map(|line| line.rsplit_once(" order=")?.1.trim().parse::<u32>().ok());
        let page = rustix::param::page_size() as u64;
        orders.map(|order| page << order).sum()
    }
}

/// The device number of a file's superblock, as in the kernel's trace. On btrfs stat(2) returns another number.
fn super_block_of(path: &Path) -> Result<u64, String> {
    let path = fs::canonicalize(path).map_err(|error| error.to_string())?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    // id parent major:minor root mount-point …
    let mut found: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(2);
        let (Some(device), Some(place)) = (fields.next(), fields.nth(1)) else {
            continue;
        };
        if path.starts_with(place) && found.is_none_or(|(length, _)| place.len() >= length) {
            found = Some((place.len(), device));
        }
    }
    let (_, device) = found.ok_or("no mount has the file")?;
    let (major, minor) = device.split_once(':').ok_or("proc(5)")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    // MKDEV of the kernel
    Ok(number(major)? << 20 | number(minor)?)
}

#[test]
fn every_byte_that_comes_into_the_page_cache_is_counted_once_and_also_if_it_is_dropped() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
    let path = dir.path().join("file");
    fs::write(&path, vec![1; 8 << 20]).expect("the disk has space");
    drop_file(&path);
    let arrivals = super::or_skip!(Arrivals::of(&path));
    warm(&path, 0..4 << 20);
    let first = arrivals.bytes();
    assert!((4 << 20..5 << 20).contains(&first), "{first}");
    drop_file(&path);
    warm(&path, 0..8 << 20);
    let second = arrivals.bytes() - first;
    assert!((8 << 20..9 << 20).contains(&second), "{second}");
}
