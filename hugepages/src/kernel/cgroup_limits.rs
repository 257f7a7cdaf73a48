//! cgroup limits on huge pages, version 2 and 1. Each ancestor can refuse a page.

use std::path::PathBuf;

use serde::Serialize;

use super::{HugePageSize, Pool, Root, files, mounts, sizes};

/// A limit that applies to this process and to its children.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Limit {
    /// Page size.
    #[serde(serialize_with = "super::sizes::bytes_of_page")]
    pub page_size: HugePageSize,
    /// The cgroup with the limit.
    pub cgroup: String,
    /// Its file: `hugetlb.2MB.max`, `hugetlb.2MB.rsvd.limit_in_bytes`.
    pub file: String,
    /// The limit in bytes.
    pub limit_bytes: u64,
    /// Used bytes.
    pub used_bytes: u64,
    /// Whether it leaves the least room of all limits on this page size.
    pub tightest: bool,
}

impl Limit {
    /// Room up to the limit, in bytes.
    pub fn left_bytes(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes)
    }
}

/// A cgroup hierarchy with a controller, and the place of this process in it.
pub struct Hierarchy {
    is_v2: bool,
    mount: String,
    cgroup: String,
}

/// Whether `memory.max` counts huge pages. Source: the mount option `memory_hugetlb_accounting` of cgroup v2.
pub fn memory_counts_huge_pages(root: &Root) -> bool {
    let mounts = mounts::all(root).into_iter();
    mounts
        .filter(|mount| mount.kind == "cgroup2")
        .any(|mount| mount.has("memory_hugetlb_accounting"))
}

/// All limits of all page sizes, from the cgroup of this process upwards.
pub fn read(root: &Root) -> Vec<Limit> {
    let hierarchies = hierarchies(root, "hugetlb");
    let mut limits = Vec::new();
    let sizes = sizes::all(root).into_iter();
    for size in sizes.filter(|size| Pool::read(root, *size).is_some()) {
        let start = limits.len();
        for hierarchy in &hierarchies {
            for cgroup in hierarchy.upwards() {
                limits.extend(hierarchy.limits(root, cgroup, size));
            }
        }
        let of_size = &mut limits[start..];
        if let Some(tightest) = of_size.iter_mut().min_by_key(|limit| limit.left_bytes()) {
            tightest.tightest = true;
        }
    }
    limits
}

/// The smallest `memory.max` (or `memory.limit_in_bytes`) of this process' cgroups, with its cgroup.
pub fn memory_limit(root: &Root) -> Option<(u64, String)> {
    let mut limits = Vec::new();
    for hierarchy in hierarchies(root, "memory") {
        for cgroup in hierarchy.upwards() {
            let file = if hierarchy.is_v2 {
                "memory.max"
            } else {
                "memory.limit_in_bytes"
            };
            let limit = hierarchy.value(root, cgroup, file).filter(is_limit);
            limits.extend(limit.map(|limit| (limit, cgroup.to_owned())));
        }
    }
    limits.into_iter().min()
}

/// The bytes that each cgroup of version 2 with a memory limit still allows, from the cgroup of this process upwards.
pub fn memory_left(root: &Root) -> Vec<u64> {
    let hierarchies = hierarchies(root, "memory").into_iter();
    let mut left = Vec::new();
    for hierarchy in hierarchies.filter(|hierarchy| hierarchy.is_v2) {
        for cgroup in hierarchy.upwards() {
            let number = |file| hierarchy.value(root, cgroup, file);
            let limit = number("memory.max");
            let used = number("memory.current").unwrap_or(0);
            left.extend(limit.map(|limit| limit.saturating_sub(used)));
        }
    }
    left
}

/// The parent for a new cgroup with a memory limit, and whether it is version 2. In version 2 this is the root, because a cgroup
/// with controllers for its children may not contain processes. In version 1 it is the cgroup of this process.
pub fn memory_hierarchy(root: &Root) -> Option<(PathBuf, bool)> {
    let with_memory = |hierarchy: &Hierarchy| {
        let path = format!("{}/cgroup.controllers", hierarchy.mount);
        let controllers = files::text(root, &path).unwrap_or_default();
        !hierarchy.is_v2 || controllers.split_whitespace().any(|name| name == "memory")
    };
    let hierarchy = hierarchies(root, "memory").into_iter().find(with_memory)?;
    let below = if hierarchy.is_v2 {
        ""
    } else {
        hierarchy.cgroup.as_str()
    };
    let path = root.path(format!("{}{below}", hierarchy.mount));
    Some((path, hierarchy.is_v2))
}

fn hierarchies(root: &Root, controller: &str) -> Vec<Hierarchy> {
    let cgroups = files::text(root, "/proc/self/cgroup").unwrap_or_default();
    let mut found = Vec::new();
    for mount in mounts::all(root) {
        let is_v2 = mount.kind == "cgroup2";
        if !(is_v2 || mount.kind == "cgroup" && mount.has(controller)) {
            continue;
        }
        // cgroups(7): hierarchy-id:controllers:path
        let mine = cgroups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let is_it = if is_v2 {
                id == "0" && controllers.is_empty()
            } else {
                controllers.split(',').any(|has| has == controller)
            };
            is_it.then_some(path)
        });
        let Some(mine) = mine else { continue };
        // In a container the mount begins below the top of the hierarchy.
        let below = mine
            .strip_prefix(&mount.top)
            .filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let cgroup = if mount.top == "/" {
            mine
        } else {
            below.unwrap_or(mine)
        };
        found.push(Hierarchy {
            is_v2,
            mount: mount.path,
            cgroup: cgroup.trim_end_matches('/').to_owned(),
        });
    }
    found
}

impl Hierarchy {
    /// `/a/b`, `/a` and the empty path of the top.
    fn upwards(&self) -> impl Iterator<Item = &str> {
        std::iter::successors(Some(self.cgroup.as_str()), |path| {
            path.rfind('/').map(|end| &path[..end])
        })
    }

    fn value(&self, root: &Root, cgroup: &str, file: &str) -> Option<u64> {
        files::number(root, &format!("{}{cgroup}/{file}", self.mount))
    }

    fn limits(&self, root: &Root, cgroup: &str, size: HugePageSize) -> Vec<Limit> {
        let names = if self.is_v2 {
            [("max", "current"), ("rsvd.max", "rsvd.current")]
        } else {
            [
                ("limit_in_bytes", "usage_in_bytes"),
                ("rsvd.limit_in_bytes", "rsvd.usage_in_bytes"),
            ]
        };
        let prefix = format!("hugetlb.{}", size.to_string().replace([' ', 'i'], ""));
        let limit = |(limit, used): (&str, &str)| {
            let file = format!("{prefix}.{limit}");
            let limit_bytes = self.value(root, cgroup, &file).filter(is_limit)?;
            Some(Limit {
                page_size: size,
                cgroup: if cgroup.is_empty() { "/" } else { cgroup }.to_owned(),
                limit_bytes,
                used_bytes: self
                    .value(root, cgroup, &format!("{prefix}.{used}"))
                    .unwrap_or(0),
                file,
                tightest: false,
            })
        };
        names.into_iter().filter_map(limit).collect()
    }
}

/// Version 1 reports "no limit" as the largest number, rounded down to whole pages.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "for `Option::filter`")]
fn is_limit(bytes: &u64) -> bool {
    *bytes < 1 << 62
}
