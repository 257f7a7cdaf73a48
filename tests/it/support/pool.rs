//! The machine's pools of 2 MiB and of 1 GiB pages, for one test at a time.

use std::cell::Cell;
use std::fmt::{self, Display};
use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::time::Duration;
use std::{env, process};

use hugepages::pool::State;

use rustix::fs::{FlockOperation, flock};

use super::guardian::Guardian;
use super::wait_for;

/// The only page size that most tests use. x86-64 supports it, as does arm64 with 4 KiB base pages.
pub const PAGE: u64 = 2048 * 1024;
const DIR: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// The next page size. Most machines reserve no such page by default.
pub const LARGE_PAGE: u64 = 1024 * 1024 * 1024;
/// The state folder of `hugepages pool`.
const STATE: &str = "/run/llama-hugepages";

const LARGE_DIR: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB";

/// Removes the pages that the test added to the pool, and no page that another process has added since.
const GIVE_BACK: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    dir=/sys/kernel/mm/hugepages/hugepages-2048kB
    large=/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages
    added=0 overcommit=- large_added=0
    while read -r a o l; do added=$a overcommit=$o large_added=$l; done
    if [ "$large_added" -gt 0 ]; then
        target=$(($(cat $large) - large_added))
        [ $target -ge 0 ] || target=0
        echo $target > $large
    fi
    [ "$overcommit" = - ] || echo "$overcommit" > $dir/nr_overcommit_hugepages
    [ "$added" = 0 ] && exit 0
    persistent() { echo $(($(cat $dir/nr_hugepages) - $(cat $dir/surplus_hugepages))); }
    target=$(($(persistent) - added))
    [ $target -ge 0 ] || target=0
    echo $target > $dir/nr_hugepages
    [ "$(persistent)" = $target ] || { echo "the pool has $(persistent) pages and should have $target" >&2; exit 1; }
"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Surplus included, as the kernel counts.
    pub total: u64,
    pub free: u64,
    pub reserved: u64,
    pub surplus: u64,
    pub overcommit: u64,
}

impl Counts {
    pub fn read() -> Self {
        Self::try_read().expect("this kernel has 2 MiB pages")
    }

    fn try_read() -> Option<Self> {
        let value = |name: &str| {
            fs::read_to_string(format!("{DIR}/{name}"))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        Some(Self {
            total: value("nr_hugepages")?,
            free: value("free_hugepages")?,
            reserved: value("resv_hugepages")?,
            surplus: value("surplus_hugepages")?,
            overcommit: value("nr_overcommit_hugepages")?,
        })
    }

    pub fn usable(&self) -> u64 {
        self.free - self.reserved
    }

    fn persistent(&self) -> u64 {
        self.total - self.surplus
    }
}

impl Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            total,
            free,
            reserved,
            surplus,
            overcommit,
        } = self;
        write!(
            f,
            "total {total}, free {free}, reserved {reserved}, surplus {surplus}, overcommit {overcommit}"
        )
    }
}

/// The pool, held by one test, with as many usable pages as the test asked for, beside the pages in use by others.
///
/// Tests of this and of other checkouts run in parallel, so a lock admits one at a time. Dropping the value, or killing its process,
/// restores the pool.
pub struct Pool {
    guardian: Guardian,
    _held: Held,
    /// The pages that this test added so far.
    added: i64,
    overcommit: Option<u64>,
    large_added: i64,
    /// The counts at the start of the test.
    pub counts: Counts,
}

impl Pool {
    /// A pool with exactly `pages` usable pages. An error is the reason to skip the test: no right to change the pool.
    pub fn with(pages: u64) -> Result<Self, String> {
        let counts = Counts::try_read().ok_or("this kernel has no 2 MiB pages")?;
        let nr = format!("{DIR}/nr_hugepages");
        OpenOptions::new()
            .write(true)
            .open(&nr)
            .map_err(|error| format!("no right to change the pool: {nr}: {error}"))?;
        let held = Held::new();
        let lock = lock();
        let guardian = Guardian::start(GIVE_BACK, Some(&lock));
        let mut pool = Self {
            guardian,
            _held: held,
            added: 0,
            overcommit: None,
            large_added: 0,
            counts,
        };
        // From here on the guardian holds the lock.
        drop(lock);
        pool.set(pages);
        Ok(pool)
    }

    /// Sets the number of usable pages.
    pub fn set(&mut self, pages: u64) {
        let wanted = |now: Counts| (now.total + pages).checked_sub(now.usable());
        for attempt in 0..6 {
            let now = Counts::read();
            if now.usable() == pages {
                self.counts = now;
                return;
            }
            if attempt == 1 {
                enough_memory(pages);
            }
            // The free memory is too fragmented, so this compacts it, then drops caches.
            if attempt > 1 {
                let _ = fs::write("/proc/sys/vm/compact_memory", "1");
            }
            if attempt > 2 {
                let _ = fs::write("/proc/sys/vm/drop_caches", "1");
            }
            let total = wanted(now).unwrap_or_else(|| panic!("others hold pages: {now}"));
            // The guardian learns of more pages first, so that it cleans up even if this process is killed in between.
            let step = total.cast_signed() - now.total.cast_signed();
            self.tell(self.added + step.max(0));
            fs::write(format!("{DIR}/nr_hugepages"), total.to_string())
                .expect("nr_hugepages can be written");
            let got = Counts::read().persistent().cast_signed() - now.persistent().cast_signed();
            self.added += got;
            self.tell(self.added);
        }
        panic!(
            "cannot set the pool to {pages} usable pages, now: {}",
            Counts::read()
        );
    }

    /// Lets the kernel add surplus pages on demand.
    pub fn set_overcommit(&mut self, pages: u64) {
        self.overcommit.get_or_insert(self.counts.overcommit);
        self.tell(self.added);
        fs::write(format!("{DIR}/nr_overcommit_hugepages"), pages.to_string())
            .expect("the setting can be written");
        self.counts = Counts::read();
    }

    /// Sets the number of usable pages of 1 GiB. An error is the reason to skip the test: the kernel rarely finds such a piece of memory.
    pub fn set_large(&mut self, pages: u64) -> Result<(), String> {
        let Some([total, free, reserved]) = large() else {
            return Err("this kernel has no 1 GiB pages".to_owned());
        };
        let change = pages.cast_signed() - (free - reserved).cast_signed();
        if self.large_added + change < 0 {
            return Err("another process uses 1 GiB pages".to_owned());
        }
        let before = self.large_added;
        // As above, the guardian learns of the change first.
        self.large_added = before + change.max(0);
        self.tell(self.added);
        let nr = format!("{LARGE_DIR}/nr_hugepages");
        let set = |pages: u64| fs::write(&nr, pages.to_string());
        let _ = fs::write("/proc/sys/vm/compact_memory", "1");
        let wanted = total.checked_add_signed(change).expect("just checked");
        set(wanted).map_err(|error| format!("no right to 1 GiB pages: {error}"))?;
        let got = large().expect("as above")[0];
        let is_enough = got >= wanted;
        if !is_enough {
            set(total).expect("nr_hugepages can be written");
        }
        self.large_added = before + if is_enough { change } else { 0 };
        self.tell(self.added);
        if is_enough {
            Ok(())
        } else {
            Err(format!(
                "the kernel found memory for {} of {change} pages of 1 GiB",
                got.saturating_sub(total)
            ))
        }
    }

    fn tell(&mut self, added: i64) {
        let overcommit = self
            .overcommit
            .map_or("-".to_owned(), |pages| pages.to_string());
        self.guardian
            .tell(&format!("{added} {overcommit} {}", self.large_added));
    }

    /// The number of pages taken since the start of the test.
    pub fn taken(&self) -> u64 {
        self.counts.free - Counts::read().free
    }

    /// Asserts that all pages are back. A dying process returns its pages step by step, so this waits.
    pub fn assert_all_back(&self) {
        let back = || {
            let now = Counts::read();
            let large_free = large().map_or(0, |[_, free, _]| free.cast_signed());
            if large_free < self.large_added {
                return false;
            }
            (now.free, now.reserved, now.surplus)
                == (self.counts.free, self.counts.reserved, self.counts.surplus)
        };
        assert!(
            wait_for(Duration::from_secs(5), back),
            "not all pages are back: before {}, now {}",
            self.counts,
            Counts::read()
        );
    }
}

/// Pages of 1 GiB: total, free, reserved.
fn large() -> Option<[u64; 3]> {
    let value = |name: &str| {
        let text = fs::read_to_string(format!("{LARGE_DIR}/{name}")).ok()?;
        text.trim().parse().ok()
    };
    Some([
        value("nr_hugepages")?,
        value("free_hugepages")?,
        value("resv_hugepages")?,
    ])
}

thread_local! {
    static HELD: Cell<bool> = const { Cell::new(false) };
}

/// Marks that this thread holds the pool, because a thread that waits for its own lock waits forever.
struct Held;

impl Held {
    fn new() -> Self {
        assert!(!HELD.replace(true), "this test holds the pool already");
        Self
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.set(false);
    }
}

/// The lock that `hugepages pool` takes for a change, so that neither the tool nor `make run` changes the pool during a test. Users without
/// rights to the pool cannot create that folder, so they lock another one.
fn lock() -> File {
    let state = Path::new(STATE);
    let dir = match State::at(state) {
        Ok(_) => state.to_owned(),
        Err(_) => env::temp_dir(),
    };
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
    flock(&file, FlockOperation::LockExclusive).expect("the lock can be waited for");
    file
}

/// Runs what takes a page for a moment, such as a plan, while no other test has the pool: the other test would miss the page.
pub fn alone<T>(run: impl FnOnce() -> T) -> T {
    let _lock = (!HELD.get()).then(lock);
    run()
}

fn enough_memory(pages: u64) {
    let meminfo = fs::read_to_string("/proc/meminfo").expect("/proc is mounted");
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .expect("MemAvailable is listed");
    let available: u64 = available
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number");
    let wanted = (pages * PAGE) / 1024 + 1024 * 1024;
    assert!(
        available > wanted,
        "cannot reserve {pages} pages: {} MiB are available, {} are needed",
        available / 1024,
        wanted / 1024
    );
}

/// Not a test: the process that the test below kills.
#[test]
#[ignore = "started by `the_pool_is_given_back_after_the_test_process_is_killed`"]
fn hold_three_pages_until_killed() {
    let _pool = Pool::with(3).expect("the test that starts this has the right to");
    println!("holding");
    loop {
        std::thread::park();
    }
}

#[test]
fn the_pool_is_given_back_after_the_test_process_is_killed() {
    use std::io::{BufRead, BufReader};

    // The other process needs the lock, so this one must not hold it.
    let before = super::or_skip!(Pool::with(0)).counts;
    let mut holder = process::Command::new(env::current_exe().expect("the test has a path"))
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "support::pool::hold_three_pages_until_killed",
        ])
        .stdout(process::Stdio::piped())
        .spawn()
        .expect("this binary can be started");
    let lines = BufReader::new(holder.stdout.take().expect("piped")).lines();
    let held = lines
        .map_while(Result::ok)
        .any(|line| line.contains("holding"));
    let during = Counts::read();
    holder.kill().expect("the child is ours");
    holder.wait().expect("the child is ours");
    assert!(held, "the other process never got the pages");
    assert_eq!(during.usable(), 3, "{during}");

    // The killed process's guardian holds the lock until it is done, so this waits for it.
    let after = Pool::with(0).expect("as above").counts;
    assert_eq!(
        after.persistent(),
        before.persistent(),
        "before {before}, after {after}"
    );
}
