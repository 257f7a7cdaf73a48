//! hugetlbfs mounts, which only resident images need.

use rustix::fs::{Access, access};

use super::Finding;
use super::host::Host;

pub fn mounts(host: &Host) -> Vec<Finding> {
    if host.status.pools.is_empty() {
        return Vec::new();
    }
    if host.status.mounts.is_empty() {
        return vec![
            Finding::note(
                "no hugetlbfs is mounted",
                "only `--hugepage-store` needs a mount, to keep weights after the process ends",
            )
            .command("sudo hugepages store mount"),
        ];
    }
    let mounts = host.status.mounts.iter();
    mounts
        .map(|mount| {
            let path = host.root.path(&mount.path);
            if access(&path, Access::WRITE_OK | Access::EXEC_OK).is_ok() {
                Finding::ok(format!("hugetlbfs at {} is writable", mount.path))
            } else {
                // vm.hugetlb_shm_group affects only SysV shared memory, which this project does not use.
                Finding::note(
                    format!("hugetlbfs at {} is not writable for this user", mount.path),
                    "this user can attach to its resident images, but cannot add images",
                )
                .command(format!("sudo mount -o remount,mode=1777 {}", mount.path))
            }
        })
        .collect()
}
