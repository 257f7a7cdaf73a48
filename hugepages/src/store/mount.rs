//! Mounting hugetlbfs for a store, and unmounting it.

use std::ffi::CString;
use std::fmt;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{Store, StoreError};
use crate::kernel::{HugePageSize, Root, mounts};

/// The first directory for `auto`.
const DEFAULT: &str = "/run/llama-hugepages/store";

/// Options of a hugetlbfs mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Page size.
    pub page_size: HugePageSize,
    /// Limit for its files in bytes, whole pages. `None`: only the pool limits them.
    pub limit: Option<u64>,
    /// Bytes of the pool to reserve now, for its files only.
    pub min: Option<u64>,
    /// Mode of its directory.
    pub mode: u32,
    /// Owner of its directory.
    pub uid: u32,
    /// Group of its directory.
    pub gid: u32,
}

/// The result of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// Mounted by this call.
    New,
    /// Was mounted with the same options.
    Already,
}

impl Options {
    /// No limit, and a directory that only root writes to.
    pub fn new(page_size: HugePageSize) -> Self {
        Self {
            page_size,
            limit: None,
            min: None,
            mode: 0o755,
            uid: 0,
            gid: 0,
        }
    }

    /// Parses the kernel's text; missing options have their defaults.
    fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| {
            text.split(',')
                .find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
        };
        let mut options = Self::new(value("pagesize")?.parse().ok()?);
        options.limit = value("size").and_then(|size| size.parse().ok());
        options.min = value("min_size").and_then(|size| size.parse().ok());
        options.mode =
            value("mode").map_or(Some(0o755), |mode| u32::from_str_radix(mode, 8).ok())?;
        options.uid = value("uid").map_or(Some(0), |uid| uid.parse().ok())?;
        options.gid = value("gid").map_or(Some(0), |gid| gid.parse().ok())?;
        Some(options)
    }

    /// Rounds the sizes to whole pages, like the kernel.
    #[must_use]
    pub fn rounded(self) -> Self {
        let whole = |bytes: u64| {
            self.page_size
                .pages_for(bytes)
                .saturating_mul(self.page_size.bytes())
        };
        Self {
            limit: self.limit.map(whole),
            min: self.min.map(whole),
            ..self
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pagesize={}", self.page_size.short_name())?;
        if let Some(limit) = self.limit {
            write!(f, ",size={limit}")?;
        }
        if let Some(min) = self.min {
            write!(f, ",min_size={min}")?;
        }
        write!(
            f,
            ",mode={:04o},uid={},gid={}",
            self.mode, self.uid, self.gid
        )
    }
}

/// The default mount point for a page size.
///
/// ```
/// use std::path::Path;
/// use hugepages::store::mount;
///
/// assert_eq!(mount::default_path("2M".parse()?), Path::new("/run/llama-hugepages/store/2M"));
/// # Ok::<(), hugepages::kernel::ParseHugePageSizeError>(())
/// ```
pub fn default_path(size: HugePageSize) -> PathBuf {
    Path::new(DEFAULT).join(size.short_name())
}

/// Creates the directory and mounts it. The mount outlives the process.
///
/// # Errors
/// [`StoreError::MountedOtherwise`], [`StoreError::OtherMount`], [`StoreError::MountPoint`], [`StoreError::Mount`], [`StoreError::Io`]
pub fn make(path: &Path, options: &Options) -> Result<Made, StoreError> {
    let options = options.rounded();
    if let Some(there) = mounted(path) {
        return match there {
            There::Hugetlbfs(theirs) if theirs == options => Ok(Made::Already),
            There::Hugetlbfs(theirs) => Err(StoreError::MountedOtherwise {
                path: path.to_owned(),
                theirs: theirs.to_string(),
                ours: options.to_string(),
            }),
            There::Other(what) => Err(StoreError::OtherMount {
                path: path.to_owned(),
                what,
            }),
        };
    }
    let made = make_dirs(path)?;
    let result = mount_at(path, &options);
    if result.is_err() {
        for dir in made.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
    result.map(|()| Made::New)
}

fn mount_at(path: &Path, options: &Options) -> Result<(), StoreError> {
    let refuse = |why| StoreError::MountPoint {
        path: path.to_owned(),
        why,
    };
    // Without following a link, because the user who can place a link would choose the directory.
    let data = fs::symlink_metadata(path).map_err(|e| StoreError::io("stat", path, e))?;
    if !data.is_dir() {
        return Err(refuse("is not a directory"));
    }
    let mut entries = fs::read_dir(path).map_err(|e| StoreError::io("read", path, e))?;
    if entries.next().is_some() {
        return Err(refuse("is not empty, and a mount would hide its files"));
    }
    let failed = |source: io::Error| StoreError::Mount {
        path: path.to_owned(),
        size: options.page_size,
        source,
    };
    let data = CString::new(options.to_string()).map_err(|error| failed(error.into()))?;
    // A store needs neither programs nor devices.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("llama-hugepages", path, "hugetlbfs", flags, data.as_c_str())
        .map_err(|errno| failed(errno.into()))
}

/// Creates missing directories, and returns them, the outermost first.
fn make_dirs(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut missing: Vec<&Path> = path
        .ancestors()
        .take_while(|dir| !dir.as_os_str().is_empty() && fs::symlink_metadata(dir).is_err())
        .collect();
    missing.reverse();
    let mut made = Vec::new();
    for dir in missing {
        let result = DirBuilder::new()
            .mode(0o755)
            .create(dir)
            // Independent of the umask, because other users must reach the store.
            .and_then(|()| fs::set_permissions(dir, Permissions::from_mode(0o755)));
        if let Err(error) = result {
            for dir in made.iter().rev() {
                let _ = fs::remove_dir(dir);
            }
            return Err(StoreError::io("create", dir, error));
        }
        made.push(dir.to_owned());
    }
    Ok(made)
}

/// Unmounts a store and removes its directory. Refuses a store with models, or with `force` drops them first; attached processes
/// keep their memory until they end. Never drops files of other programs.
///
/// # Errors
/// [`StoreError::NotMounted`], [`StoreError::OtherMount`], [`StoreError::Holds`], [`StoreError::Io`] and those of [`Store::drop`].
pub fn remove(path: &Path, force: bool) -> Result<(), StoreError> {
    match mounted(path) {
        Some(There::Hugetlbfs(_)) => {}
        Some(There::Other(what)) => {
            return Err(StoreError::OtherMount {
                path: path.to_owned(),
                what,
            });
        }
        None => {
            return Err(StoreError::NotMounted {
                path: path.to_owned(),
            });
        }
    }
    let store = Store::open(path)?;
    let (ours, others) = store.sorted()?;
    if !others.is_empty() || (!ours.is_empty() && !force) {
        let ours_only = others.is_empty();
        return Err(StoreError::Holds {
            path: path.to_owned(),
            names: if ours_only { ours } else { others },
            ours: ours_only,
        });
    }
    for name in &ours {
        store.drop_any(name)?;
    }
    drop(store);
    let unmounted = unmount(path, UnmountFlags::empty());
    // A process still maps a file. Detaching hides the mount from new processes, and the kernel removes it with the last user.
    if force && unmounted == Err(rustix::io::Errno::BUSY) {
        unmount(path, UnmountFlags::DETACH)
    } else {
        unmounted
    }
    .map_err(|source| StoreError::io("unmount", path, source))?;
    fs::remove_dir(path).map_err(|source| StoreError::io("remove", path, source))?;
    if path.parent() == Some(Path::new(DEFAULT)) {
        // The store of the other page size may exist.
        let _ = fs::remove_dir(DEFAULT);
    }
    Ok(())
}

enum There {
    Hugetlbfs(Options),
    Other(String),
}

/// The mount at this path; the last one if there are several.
fn mounted(path: &Path) -> Option<There> {
    let path = fs::canonicalize(path).ok()?;
    let mut mounts = mounts::all(&Root::system()).into_iter();
    let mount = mounts.rfind(|mount| Path::new(&mount.path) == path)?;
    Some(match Options::parse(&mount.options) {
        Some(options) if mount.kind == "hugetlbfs" => There::Hugetlbfs(options),
        _ => There::Other(mount.kind),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_that_the_kernel_prints() {
        let size = "1G".parse().unwrap();
        let all = "rw,pagesize=1024M,size=2147483648,min_size=1073741824,mode=700,uid=7,gid=8";
        let options = Options::parse(all).unwrap();
        assert_eq!(
            options,
            Options {
                page_size: size,
                limit: Some(2 << 30),
                min: Some(1 << 30),
                mode: 0o700,
                uid: 7,
                gid: 8
            }
        );
        assert_eq!(
            options.to_string(),
            "pagesize=1G,size=2147483648,min_size=1073741824,mode=0700,uid=7,gid=8"
        );
        assert_eq!(
            Options::parse("rw,pagesize=1024M"),
            Some(Options::new(size))
        );
        assert_eq!(Options::parse("rw,size=1024"), None);
    }

    #[test]
    fn a_limit_is_whole_pages() {
        let options = Options {
            limit: Some(3_000_000),
            ..Options::new("2M".parse().unwrap())
        };
        assert_eq!(options.rounded().limit, Some(4 << 20));
    }
}
