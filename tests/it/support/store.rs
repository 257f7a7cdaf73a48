//! A hugetlbfs directory for one test and its resident images, with limits if the test wants some.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, ptr};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::mount::{MountFlags, mount};

use super::guardian::Guardian;
use super::pool::{Counts, PAGE, Pool};
use super::wait_for;

/// Empties, unmounts and removes the directory. A process that still maps a file keeps its pages until the process ends, and no path leads
/// to them any more.
const UNMOUNT: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    read -r dir || exit 0
    while read -r _; do :; done
    is_mounted() { grep -qF " $dir " /proc/self/mountinfo; }
    tries=0
    while is_mounted; do
        find "$dir" -mindepth 1 -delete
        umount "$dir" 2>/dev/null && continue
        tries=$((tries + 1))
        [ $tries -lt 50 ] || { umount -l "$dir"; echo "$dir is still in use" >&2; left=1; break; }
        sleep 0.1
    done
    rmdir "$dir"
    exit ${left:-0}
"#;

/// A private hugetlbfs mount. Dropping the value, or killing its process, removes the mount with all files.
pub struct Mounted {
    dir: PathBuf,
    _guardian: Guardian,
}

impl Mounted {
    /// Mounts with options of hugetlbfs: `pagesize=2M,size=8M,min_size=2M,mode=0755,uid=0,gid=0`. An error is the reason to skip the test:
    /// no right to mount.
    pub fn with(options: &str) -> Result<Self, String> {
        let dir = tempfile::Builder::new()
            .prefix("llama-hugepages-store-")
            .tempdir_in(env::temp_dir())
            .expect("a temporary folder can be made")
            .keep();
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).expect("just made");
        let mut guardian = Guardian::start(UNMOUNT, None);
        // The guardian learns of the directory first, so that it cleans up even if this process is killed in between.
        guardian.tell(dir.to_str().expect("a temporary folder has a plain name"));
        let options = CString::new(options).expect("options are a text");
        mount(
            "none",
            &dir,
            "hugetlbfs",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .map_err(|error| format!("cannot mount hugetlbfs: {error}"))?;
        Ok(Self {
            dir,
            _guardian: guardian,
        })
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The directory, as an argument.
    pub fn arg(&self) -> &str {
        self.dir
            .to_str()
            .expect("a temporary folder has a plain name")
    }

    /// Sorted names of all entries, including hidden ones.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).expect("the store is mounted");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// The resident images, sorted by name.
    pub fn images(&self) -> Vec<PathBuf> {
        let names = self.names().into_iter();
        names
            .filter(|name| name.ends_with(".resident"))
            .map(|name| self.dir.join(name))
            .collect()
    }

    /// The pages that the files hold.
    pub fn pages(&self) -> u64 {
        let files = self.names().into_iter().map(|name| self.dir.join(name));
        files
            .filter_map(|file| fs::symlink_metadata(file).ok())
            .map(|data| data.blocks() * 512 / PAGE)
            .sum()
    }

    /// Removes everything in the directory.
    pub fn empty(&self) {
        for name in self.names() {
            let path = self.dir.join(name);
            let removed = match fs::symlink_metadata(&path) {
                Ok(data) if data.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            };
            removed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

/// A directory of 2 MiB pages and the pool that they come from.
///
/// ```ignore
/// let mut store = or_skip!(Store::with(60));
/// let server = Launch::ours().model(&model).hugepages("require").args(["--hugepage-store", store.arg()]).start();
/// ```
pub struct Store {
    // Before the pool, so that its pages return first.
    mounted: Mounted,
    pub pool: Pool,
}

impl Store {
    /// An empty store, and a pool with `pages` usable pages. An error is the reason to skip the test.
    pub fn with(pages: u64) -> Result<Self, String> {
        Self::with_options(pages, "")
    }

    /// Like `with`, with more options of the mount: `size=8M,mode=0777`.
    pub fn with_options(pages: u64, options: &str) -> Result<Self, String> {
        let pool = Pool::with(pages)?;
        let options = ["pagesize=2M", options].join(",");
        let mounted = Mounted::with(options.trim_end_matches(','))?;
        Ok(Self { mounted, pool })
    }

    pub fn path(&self) -> &Path {
        self.mounted.path()
    }

    /// See [`Mounted::arg`].
    pub fn arg(&self) -> &str {
        self.mounted.arg()
    }

    /// See [`Mounted::names`].
    pub fn names(&self) -> Vec<String> {
        self.mounted.names()
    }

    /// See [`Mounted::images`].
    pub fn images(&self) -> Vec<PathBuf> {
        self.mounted.images()
    }

    /// The one resident image.
    pub fn image(&self) -> PathBuf {
        let mut images = self.images();
        assert_eq!(images.len(), 1, "{images:?}");
        images.remove(0)
    }

    /// See [`Mounted::pages`].
    pub fn pages(&self) -> u64 {
        self.mounted.pages()
    }

    /// See [`Mounted::empty`].
    pub fn empty(&self) {
        self.mounted.empty();
    }

    /// Asserts that all pages are back in the pool, except those that the store's files hold.
    pub fn assert_only_files_hold_pages(&self) {
        let held = self.pages();
        let is_so = || {
            let now = Counts::read();
            now.free + held == self.pool.counts.free && now.reserved == self.pool.counts.reserved
        };
        assert!(
            wait_for(Duration::from_secs(5), is_so),
            "files hold {held} pages; before {}, now {}",
            self.pool.counts,
            Counts::read()
        );
    }
}

/// Changes bytes of a file through a mapping, because hugetlbfs does not support write(2).
pub fn patch(path: &Path, offset: u64, change: impl FnOnce(&mut [u8]), size: usize) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let first = offset / PAGE * PAGE;
    let last = (offset + size as u64).next_multiple_of(PAGE);
    let length = (last - first) as usize;
    // SAFETY: a new mapping within the file, whose address nobody else knows; the test holds the pages.
    unsafe {
        let base = mmap(
            ptr::null_mut(),
            length,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &file,
            first,
        )
        .expect("the file can be mapped");
        let at = base.cast::<u8>().add((offset - first) as usize);
        change(std::slice::from_raw_parts_mut(at, size));
        munmap(base, length).expect("mapped above");
    }
}

#[test]
fn a_store_is_private_and_gone_afterwards() {
    let store = super::or_skip!(Store::with(3));
    let dir = store.path().to_owned();
    assert!(store.arg().starts_with('/'));
    let file = fs::File::create(dir.join("a.resident")).expect("the file is ours");
    file.set_len(2 * PAGE).expect("a sparse file takes no page");
    assert_eq!((store.names().len(), store.pages()), (1, 0));
    patch(&store.image(), PAGE + 7, |bytes| bytes.fill(1), 3);
    assert_eq!((store.pages(), store.pool.taken()), (1, 1));
    store.assert_only_files_hold_pages();
    drop(file);
    store.empty();
    store.pool.assert_all_back();
    drop(store);
    assert!(!dir.exists());
}

#[test]
fn a_limit_of_a_store_is_the_mounts_own() {
    let store = super::or_skip!(Store::with_options(3, "size=4M"));
    let limits = rustix::fs::statvfs(store.path()).expect("the store is mounted");
    assert_eq!((limits.f_frsize, limits.f_blocks), (PAGE, 2));
}
