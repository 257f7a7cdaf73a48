//! hugetlbfs mounts: needed for resident images, not for `--hugepages` alone.

use rustix::fs::{Access, access};

use super::{Finding, Host};

pub fn mounts(host: &Host) -> Vec<Finding> {
    if host.status.pools.is_empty() {
        return Vec::new();
    }
    if host.status.mounts.is_empty() {
        return vec![
            Finding::note(
                "no hugetlbfs is mounted",
                "`--hugepages` alone needs none; `--hugepage-store` does: weights that stay when the process ends",
            )
            .command("sudo hugepages store mount"),
        ];
    }
    let mounts = host.status.mounts.iter();
    mounts
        .map(|mount| {
            let path = host.root.path(&mount.path);
            if access(&path, Access::WRITE_OK | Access::EXEC_OK).is_ok() {
                Finding::ok(format!("hugetlbfs at {} can be written", mount.path))
            } else {
                // vm.hugetlb_shm_group matters to SysV shared memory alone, which nothing here uses.
                Finding::note(
                    format!("hugetlbfs at {} cannot be written by this user", mount.path),
                    "this user attaches to the resident images in it, and can put none there",
                )
                .command(format!("sudo mount -o remount,mode=1777 {}", mount.path))
            }
        })
        .collect()
}
