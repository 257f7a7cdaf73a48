//! Sentences about changes that were undone.

use hugepages::pool::Undone;
use hugepages::size::ByteSize;

pub fn one_undone(one: &Undone, dry_run: bool) -> String {
    let pool = pool_name(one);
    let pages = one.pages.unsigned_abs();
    let verb = match (one.pages < 0, dry_run) {
        (true, true) => "would add again",
        (true, false) => "added again",
        (false, true) => "would return",
        (false, false) => "returned",
    };
    let theirs = match one.theirs {
        0 => String::new(),
        theirs => format!(
            "; kept {theirs} pages for other programs, because another program has already removed pages"
        ),
    };
    format!("{verb} {pages} pages of {pool}{theirs}")
}

pub fn one_left(one: &Undone) -> String {
    let verb = if one.left > 0 {
        "returned"
    } else {
        "added again"
    };
    let left = one.left.unsigned_abs();
    format!("{left} pages of {} were not {verb}", pool_name(one))
}

fn pool_name(one: &Undone) -> String {
    let size = ByteSize::new(one.page_bytes);
    let node = one.node.map(|node| format!(" on node {node}"));
    format!("{size}{}", node.unwrap_or_default())
}

/// Prints the returned pages of leases whose process was killed.
pub fn say_reaped(undone: &[Undone]) {
    for one in undone {
        eprintln!(
            "{}, which a killed process had added",
            one_undone(one, false)
        );
    }
}
