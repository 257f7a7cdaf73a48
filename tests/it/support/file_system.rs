//! A file system of a given kind on its own loop device, with files in it.
//! Lives here: making, mounting and looking at the device. Not here: the page cache (`page_cache`).

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::guardian::Guardian;
use super::page_cache;
use super::programs::run;

/// Unmounts in reverse order. The kernel detaches a loop device with its last mount. The test removes its folders; if the test was killed,
/// this script removes `folder`.
const REMOVE: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    mounts= folder=
    while read -r what path; do case $what in mount) mounts="$path $mounts" ;; folder) folder=$path ;; esac; done
    for mount in $mounts; do
        for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
            mountpoint -q "$mount" || break
            umount "$mount" 2>/dev/null && break
            sleep 0.2
        done
        mountpoint -q "$mount" && { umount -l "$mount"; echo "$mount is still in use" >&2; left=1; }
    done
    [ -z "$folder" ] || rm -rf --one-file-system "$folder"
    exit ${left:-0}
"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    /// `O_DIRECT` succeeds, but the kernel buffers.
    Ext4Journal,
    Xfs,
    Btrfs,
    /// `O_DIRECT` succeeds, but the kernel buffers compressed data.
    BtrfsCompressed,
    /// No `O_DIRECT`.
    Squashfs,
    Erofs,
    /// No `O_DIRECT`.
    ErofsCompressed,
    F2fs,
    /// The page cache holds all files at any time.
    Tmpfs,
    /// Over ext4, whose page cache holds the files.
    OverlayOnExt4,
    OverlayOnExt4Journal,
}

impl Kind {
    /// The name in /proc/filesystems.
    fn module(self) -> &'static str {
        match self {
            Self::Ext4 | Self::Ext4Journal => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs | Self::BtrfsCompressed => "btrfs",
            Self::Squashfs => "squashfs",
            Self::Erofs | Self::ErofsCompressed => "erofs",
            Self::F2fs => "f2fs",
            Self::Tmpfs => "tmpfs",
            Self::OverlayOnExt4 | Self::OverlayOnExt4Journal => "overlay",
        }
    }

    /// The program that makes the file system, with the arguments before the image.
    fn maker(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 | Self::OverlayOnExt4 => &["mkfs.ext4", "-q", "-F"],
            Self::Ext4Journal | Self::OverlayOnExt4Journal => {
                &["mkfs.ext4", "-q", "-F", "-J", "size=16"]
            }
            Self::Xfs => &["mkfs.xfs", "-q", "-f"],
            Self::Btrfs | Self::BtrfsCompressed => &["mkfs.btrfs", "-q", "-f"],
            Self::F2fs => &["mkfs.f2fs", "-q", "-f"],
            Self::Squashfs => &["mksquashfs"],
            Self::Erofs => &["mkfs.erofs", "--quiet"],
            Self::ErofsCompressed => &["mkfs.erofs", "--quiet", "-zlz4"],
            Self::Tmpfs => &[],
        }
    }

    fn options(self) -> &'static str {
        match self {
            Self::Ext4Journal | Self::OverlayOnExt4Journal => "loop,data=journal",
            Self::BtrfsCompressed => "loop,compress-force=zstd",
            Self::Squashfs | Self::Erofs | Self::ErofsCompressed => "loop,ro",
            _ => "loop",
        }
    }

    /// Whether the maker also puts the files into the image.
    fn is_made_with_its_files(self) -> bool {
        matches!(self, Self::Squashfs | Self::Erofs | Self::ErofsCompressed)
    }

    fn is_overlay(self) -> bool {
        self.module() == "overlay"
    }

    pub fn has_device(self) -> bool {
        self != Self::Tmpfs
    }

    pub fn is_compressed(self) -> bool {
        matches!(
            self,
            Self::BtrfsCompressed | Self::Squashfs | Self::ErofsCompressed
        )
    }

    /// Checks that this kernel and this machine support the file system. An error is the reason to skip the test.
    fn check(self) -> Result<(), String> {
        // Some kernels load the file system as a module.
        let _ = Command::new("modprobe")
            .args(["-q", self.module()])
            .status();
        let known = fs::read_to_string("/proc/filesystems").map_err(|error| error.to_string())?;
        if !known
            .lines()
            .any(|line| line.split_whitespace().last() == Some(self.module()))
        {
            return Err(format!("this kernel has no {}", self.module()));
        }
        let Some(maker) = self.maker().first() else {
            return Ok(());
        };
        let found = Command::new("sh")
            .args(["-c", r#"PATH=$PATH:/usr/sbin:/sbin; command -v "$1""#, "sh"])
            .arg(maker)
            .output()
            .map_err(|error| error.to_string())?;
        if found.status.success() {
            Ok(())
        } else {
            Err(format!("{maker} is not installed"))
        }
    }
}

/// Dropping the value, or killing its process, unmounts and removes the file system.
pub struct FileSystem {
    // Fields drop in this order: the guardian unmounts before `TempDir` removes the folder.
    guardian: Guardian,
    dir: TempDir,
    kind: Kind,
    /// `loop3`
    device: Option<String>,
}

impl FileSystem {
    /// A file system with copies of these files, under their new names. The page cache holds none of them. An error is the reason to skip
    /// the test.
    pub fn with(kind: Kind, files: &[(&Path, &str)]) -> Result<Self, String> {
        kind.check()?;
        let dir =
            tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
        let folder = |name: &str| folder_in(&dir, name);
        let (backing, mount) = (dir.path().join("backing"), folder("mount"));
        let mut guardian = Guardian::start(REMOVE, None);
        guardian.tell(&format!("folder {}", dir.path().display()));
        guardian.tell(&format!("mount {}", mount.display()));
        let copy_to = |to: &Path| {
            for (file, name) in files {
                let copy = to.join(name);
                fs::copy(file, &copy).expect("the disk has space");
                let file = File::open(copy).expect("just made");
                file.sync_all().expect("the device works");
            }
        };
        if kind.has_device() {
            make(kind, &backing, &folder("source"), files, &copy_to)?;
            run(Command::new("mount")
                .args(["-o", kind.options()])
                .args([&backing, &mount]))?;
        } else {
            run(Command::new("mount")
                .args(["-t", "tmpfs", "none"])
                .arg(&mount))?;
        }
        if !kind.is_made_with_its_files() {
            copy_to(&mount);
        }
        let device = kind.has_device().then(|| device_of(&mount));
        let mut file_system = Self {
            guardian,
            dir,
            kind,
            device,
        };
        if kind.is_overlay() {
            folder_in(&file_system.dir, "empty");
            file_system.add_overlay("merged")?;
        }
        for (_, name) in files {
            file_system.drop_cache(name);
        }
        Ok(file_system)
    }

    /// Mounts the layer of an overlay once more, as a second container does. Returns the folder.
    pub fn add_overlay(&mut self, name: &str) -> Result<PathBuf, String> {
        let [layer, empty] = ["mount", "empty"].map(|name| self.dir.path().join(name));
        let merged = folder_in(&self.dir, name);
        self.guardian.tell(&format!("mount {}", merged.display()));
        let layers = format!("lowerdir={}:{}", layer.display(), empty.display());
        run(Command::new("mount")
            .args(["-t", "overlay", "none", "-o", &layers])
            .arg(&merged))?;
        Ok(merged)
    }

    /// The path under which a program opens a file.
    pub fn path(&self, name: &str) -> PathBuf {
        let folder = if self.kind.is_overlay() {
            "merged"
        } else {
            "mount"
        };
        self.dir.path().join(folder).join(name)
    }

    /// The path under which the page cache holds the same file.
    pub fn cached_path(&self, name: &str) -> PathBuf {
        self.dir.path().join("mount").join(name)
    }

    /// Lets every user reach the files.
    pub fn let_others_in(&self) {
        let anybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.dir.path(), anybody).expect("the folder is ours");
    }

    /// Drops a file from the page cache.
    pub fn drop_cache(&self, name: &str) {
        if self.kind.has_device() {
            let path = self.cached_path(name);
            // With `data=journal` pages stay dirty until the kernel has written the journal back.
            let file = File::open(&path).expect("the file exists");
            let _ = rustix::fs::syncfs(&file);
            page_cache::drop_file(&path);
        }
    }

    /// Bytes that the kernel read from the device since its creation; 0 without a device.
    pub fn device_reads(&self) -> u64 {
        let Some(device) = &self.device else { return 0 };
        let stat =
            fs::read_to_string(format!("/sys/block/{device}/stat")).expect("the device is in use");
        // read I/Os, read merges, read sectors, …
        let sectors = stat.split_whitespace().nth(2).expect("stat.rst");
        sectors.parse::<u64>().expect("a number") * 512
    }
}

fn folder_in(dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::create_dir(&path).expect("just made");
    path
}

fn make(
    kind: Kind,
    image: &Path,
    source: &Path,
    files: &[(&Path, &str)],
    copy_to: &dyn Fn(&Path),
) -> Result<(), String> {
    let (maker, args) = kind
        .maker()
        .split_first()
        .expect("the file system uses a device");
    let mut command = Command::new("sh");
    command.args(["-c", r#"PATH=$PATH:/usr/sbin:/sbin; exec "$@""#, "sh"]);
    command.arg(maker).args(args);
    if kind.is_made_with_its_files() {
        copy_to(source);
        match kind {
            Kind::Squashfs => command.arg(source).arg(image).args([
                "-noappend",
                "-quiet",
                "-no-progress",
                "-comp",
                "gzip",
                "-Xcompression-level",
                "1",
            ]),
            _ => command.arg(image).arg(source),
        };
        run(&mut command)?;
        fs::remove_dir_all(source).expect("the folder is ours");
        return Ok(());
    }
    let bytes: u64 = files
        .iter()
        .map(|(file, _)| fs::metadata(file).expect("the file exists").len())
        .sum();
    // Room for the tables of the file system; XFS wants 300 MiB.
    let size = (bytes + bytes / 4 + (128 << 20)).max(320 << 20);
    File::create(image)
        .and_then(|file| file.set_len(size))
        .expect("a sparse file");
    run(command.arg(image))
}

/// The loop device of a mount, such as `loop3`.
fn device_of(mount: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let mount = fs::canonicalize(mount).expect("just made");
    let of_mount = mounts.lines().find_map(|line| {
        let (device, rest) = line.split_once(' ')?;
        (rest.split(' ').next()? == mount.to_str()?).then_some(device)
    });
    let device = of_mount.and_then(|device| device.strip_prefix("/dev/"));
    device.expect("mounted from a loop device").to_owned()
}
