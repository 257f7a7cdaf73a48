//! The tables of the status.

use hugepages::kernel::{HugePageSize, HvoState};
use hugepages::size::ByteSize;
use hugepages::status::{Status, User};

use crate::cli::output::{self, Screen, printable};

/// All tables.
pub fn human(status: &Status, screen: Screen) -> String {
    let mut text = String::new();
    let mut part = |title: &str, body: String| {
        let (bold, plain) = if screen.colour {
            ("\x1b[1m", "\x1b[0m")
        } else {
            ("", "")
        };
        if !text.is_empty() {
            text.push('\n');
        }
        let lines = [bold, title, plain, "\n", &printable(&body), "\n"];
        text.extend(lines);
    };
    part("Pools", pools(status, screen));
    part("Used by", users(status, screen));
    part("hugetlbfs", mounts(status, screen));
    part("cgroup limits", limits(status, screen));
    part("Memory", memory(status, screen));
    if !status.unread.is_empty() {
        let rows = status
            .unread
            .iter()
            .map(|it| vec![it.what.clone(), it.why.clone()]);
        let mut body = output::table(screen, &["item", "reason"], rows);
        body += "\nhint: run this command as root";
        part("Not readable", body);
    }
    text
}

fn bytes(bytes: u64) -> String {
    ByteSize::new(bytes).to_string()
}

fn pools(status: &Status, screen: Screen) -> String {
    if status.pools.is_empty() {
        return "none: this kernel has no HugeTLB".to_owned();
    }
    let mut rows = Vec::new();
    for pool in &status.pools {
        let counts = [
            pool.total,
            pool.free,
            pool.reserved,
            pool.surplus,
            pool.overcommit,
            pool.usable,
        ];
        let mut row = vec![pool.page_size.to_string(), "all".to_owned()];
        row.extend(counts.map(|count| count.to_string()));
        row.push(bytes(pool.usable * pool.page_size.bytes()));
        rows.push(row);
        // With one node, its row would repeat the row of the machine.
        for node in pool.nodes.iter().filter(|_| pool.nodes.len() > 1) {
            let no = || "-".to_owned();
            rows.push(vec![
                pool.page_size.to_string(),
                node.node.to_string(),
                node.total.to_string(),
                node.free.to_string(),
                no(),
                node.surplus.to_string(),
                no(),
                no(),
                no(),
            ]);
        }
    }
    let head = [
        "page size",
        "node",
        "total",
        "free",
        "reserved",
        "surplus",
        "overcommit",
        "usable",
        "bytes",
    ];
    output::table(screen, &head, rows)
}

fn users(status: &Status, screen: Screen) -> String {
    if status.users.is_empty() {
        return "no process".to_owned();
    }
    let rows = status.users.iter().map(|user| {
        vec![
            user.pid.to_string(),
            user.name.clone(),
            bytes(user.bytes),
            sizes(user),
            serves(user),
        ]
    });
    output::table(
        screen,
        &["pid", "name", "huge pages", "page sizes", "server"],
        rows,
    )
}

fn sizes(user: &User) -> String {
    let Some(shares) = &user.shares else {
        return "not readable".to_owned();
    };
    let share = |share: &hugepages::kernel::Share| {
        let total = bytes(share.private_bytes + share.shared_bytes);
        format!("on {}: {total}", share.page_size)
    };
    shares.iter().map(share).collect::<Vec<_>>().join(", ")
}

fn serves(user: &User) -> String {
    let Some(server) = &user.server else {
        return String::new();
    };
    let model = server.model.as_deref().unwrap_or("unknown model");
    let usages = server
        .report
        .as_ref()
        .and_then(|report| report["usages"].as_array());
    let said = match (usages, &server.no_report) {
        (Some(usages), _) => {
            let sum = |is: &dyn Fn(&serde_json::Value) -> bool| -> u64 {
                let of = usages.iter().filter(|usage| is(usage));
                of.filter_map(|usage| usage["bytes"].as_u64()).sum()
            };
            let on_huge = sum(&|usage| usage["pages"].as_u64() > Some(0));
            format!(
                "reports {} of {} on huge pages",
                bytes(on_huge),
                bytes(sum(&|_| true))
            )
        }
        (None, Some(reason)) => format!("no report: {reason}"),
        (None, None) => "no report".to_owned(),
    };
    format!("{model} at {}; {said}", server.address)
}

fn mounts(status: &Status, screen: Screen) -> String {
    if status.mounts.is_empty() {
        return "not mounted".to_owned();
    }
    let mut rows = Vec::new();
    for mount in &status.mounts {
        let size = mount.page_size.and_then(HugePageSize::new);
        let size = size.map_or("?".to_owned(), |size| size.to_string());
        rows.push(vec![
            mount.path.clone(),
            size.clone(),
            bytes(mount.bytes),
            mount.options.clone(),
        ]);
        for file in &mount.files {
            rows.push(vec![
                file.path.clone(),
                size.clone(),
                bytes(file.bytes),
                file.model
                    .as_ref()
                    .map_or(String::new(), |model| format!("of {model}")),
            ]);
        }
    }
    output::table(screen, &["path", "page size", "used", "options"], rows)
}

fn limits(status: &Status, screen: Screen) -> String {
    if status.limits.is_empty() {
        return "no limit on huge pages".to_owned();
    }
    let rows = status.limits.iter().map(|limit| {
        vec![
            limit.page_size.to_string(),
            limit.cgroup.clone(),
            limit.file.clone(),
            bytes(limit.limit_bytes),
            bytes(limit.used_bytes),
            bytes(limit.left_bytes()),
            if limit.tightest { "tightest" } else { "" }.to_owned(),
        ]
    });
    output::table(
        screen,
        &["page size", "cgroup", "file", "limit", "used", "left", ""],
        rows,
    )
}

fn memory(status: &Status, screen: Screen) -> String {
    let or_unknown = |value: Option<u64>| value.map_or("unknown".to_owned(), bytes);
    let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "not supported".to_owned());
    let (hvo, thp, memory) = (&status.hvo, &status.thp, &status.memory);
    let mut rows = vec![
        (
            "available",
            format!(
                "{} of {}",
                or_unknown(memory.available_bytes),
                or_unknown(memory.total_bytes)
            ),
        ),
        (
            "swap used",
            format!(
                "{} of {}",
                or_unknown(memory.swap_used_bytes),
                or_unknown(memory.swap_bytes)
            ),
        ),
        (
            "stalls",
            memory.stalls.map_or("unknown".to_owned(), |stalls| {
                format!(
                    "10 s: some tasks {:.2} %, all tasks {:.2} %; 60 s: {:.2} %, {:.2} %",
                    stalls.some.avg10, stalls.full.avg10, stalls.some.avg60, stalls.full.avg60
                )
            }),
        ),
        (
            "THP",
            format!(
                "{}, defrag {}, shmem {}",
                word(&thp.enabled),
                word(&thp.defrag),
                word(&thp.shmem_enabled)
            ),
        ),
        (
            "on THP",
            format!(
                "{} anonymous, {} page cache ({} mapped with huge entries)",
                or_unknown(thp.anon_bytes),
                or_unknown(thp.file_bytes),
                or_unknown(thp.file_mapped_bytes)
            ),
        ),
        (
            "HVO",
            match hvo.state {
                HvoState::On => "on for pages added from now on",
                HvoState::Off => "off for pages added from now on",
                HvoState::Unsupported => "not supported by this kernel",
            }
            .to_owned(),
        ),
    ];
    if hvo.state != HvoState::Unsupported {
        rows.push((
            "freed by HVO",
            match (hvo.given_back_bytes, hvo.memmap_bytes, hvo.full_bytes) {
                (Some(back), Some(now), Some(full)) => format!(
                    "{} (struct page memory: {} measured, {} computed without HVO)",
                    bytes(back),
                    bytes(now),
                    bytes(full)
                ),
                _ => "unknown: this kernel has no counter".to_owned(),
            },
        ));
        rows.push((
            "possible",
            format!(
                "{} if HVO covered the whole pool (computed)",
                bytes(hvo.possible_bytes)
            ),
        ));
    }
    let rows = rows
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value]);
    output::table(screen, &["item", "state"], rows)
}
