//! A file system on its own device, which a test can slow down or cut.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use tempfile::TempDir;

use super::guardian::Guardian;
use super::programs::run;

/// The kernel detaches the loop device with the last mount. The test removes the folders.
///
/// llama.cpp opens a model without `O_CLOEXEC`, so a server that another test starts during a load inherits the open file and keeps the
/// mount busy while it lives. A lazy unmount removes the mount now, and the device when that server ends.
const REMOVE: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    while read -r what path; do case $what in mount) mount=$path ;; cgroup) cgroup=$path ;; esac; done
    for i in 1 2 3 4 5 6 7 8 9 10; do
        umount "$mount" 2>/dev/null
        mountpoint -q "$mount" || break
        sleep 0.2
    done
    mountpoint -q "$mount" && umount -l "$mount"
    # Processes that are about to end cannot be moved, and keep the cgroup until they have ended.
    [ -z "$cgroup" ] || for i in 1 2 3 4 5 6 7 8 9 10; do
        while read -r pid; do echo "$pid" > "$cgroup/../cgroup.procs"; done < "$cgroup/cgroup.procs" 2>/dev/null
        rmdir "$cgroup" 2>/dev/null && break
        sleep 0.2
    done
    ! mountpoint -q "$mount"
"#;

/// ext4 in a file, mounted through a loop device.
pub struct Device {
    // Fields drop in this order: the guardian unmounts before `TempDir` removes the folder.
    guardian: Guardian,
    dir: TempDir,
    /// `7:0`
    number: String,
}

impl Device {
    /// A device that fits this many bytes. An error is the reason to skip the test.
    pub fn with(bytes: u64) -> Result<Self, String> {
        let dir =
            tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ can be written");
        let (backing, mount) = (dir.path().join("backing"), dir.path().join("mount"));
        fs::create_dir(&mount).expect("just made");
        let file = fs::File::create(&backing).expect("just made");
        // Room for the tables of the file system.
        file.set_len(bytes + bytes / 16 + (16 << 20))
            .expect("a sparse file");
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-O", "^has_journal"])
            .arg(&backing))?;
        let mut guardian = Guardian::start(REMOVE, None);
        guardian.tell(&format!("mount {}", mount.display()));
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&backing)
            .arg(&mount))?;
        let id = fs::metadata(&mount).expect("mounted").dev();
        let number = format!("{}:{}", rustix::fs::major(id), rustix::fs::minor(id));
        Ok(Self {
            guardian,
            dir,
            number,
        })
    }

    /// The folder of the device's files.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    /// Limits the reads of this process and of the processes that it starts. An error is the reason to skip the test.
    pub fn throttle(&mut self, bytes_per_second: u64) -> Result<(), String> {
        // Machines mount the controller in version 1, in version 2, or not at all.
        let v1 = Path::new("/sys/fs/cgroup/blkio");
        let (root, file, line) = if v1.join("cgroup.procs").exists() {
            let line = format!("{} {bytes_per_second}", self.number);
            (v1, "blkio.throttle.read_bps_device", line)
        } else {
            let line = format!("{} rbps={bytes_per_second}", self.number);
            (Path::new("/sys/fs/cgroup"), "io.max", line)
        };
        let dir = root.join(format!(
            "llama-hugepages-device-{}-{}",
            process::id(),
            self.number.replace(':', "-")
        ));
        fs::create_dir(&dir).map_err(|error| format!("no right to make a cgroup: {error}"))?;
        self.guardian.tell(&format!("cgroup {}", dir.display()));
        fs::write(dir.join(file), line)
            .map_err(|error| format!("no {file} in the cgroup: {error}"))?;
        fs::write(dir.join("cgroup.procs"), process::id().to_string())
            .map_err(|error| format!("cannot enter a cgroup: {error}"))
    }

    /// Cuts off the end of the device, so that reads there fail with `EIO`.
    pub fn cut(&self, bytes: u64) {
        let backing = self.dir.path().join("backing");
        let file = OpenOptions::new()
            .write(true)
            .open(backing)
            .expect("the file is ours");
        file.set_len(bytes).expect("the file can be cut");
    }

    /// The place of a file on the device, in bytes: the start of its first block, and the end of its last.
    pub fn extent(path: &Path) -> Result<(u64, u64), String> {
        let output = Command::new("filefrag")
            .args(["-v", "-b1"])
            .arg(path)
            .output();
        let output =
            output.map_err(|error| format!("filefrag (of e2fsprogs) cannot be run: {error}"))?;
        // ext: logical_offset: physical_offset: length: …
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let ranges: Vec<(u64, u64)> = text
            .lines()
            .filter_map(|line| {
                let (first, last) = line.split(':').nth(2)?.split_once("..")?;
                Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
            })
            .collect();
        let first = ranges
            .iter()
            .map(|range| range.0)
            .min()
            .ok_or(format!("unknown output of filefrag: {text}"))?;
        Ok((
            first,
            ranges.iter().map(|range| range.1).max().unwrap_or(first),
        ))
    }
}
