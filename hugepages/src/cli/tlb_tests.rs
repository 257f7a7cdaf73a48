//! The tables of `hugepages tlb`, from made-up figures.

use hugepages::kernel::HugePageSize;
use hugepages::stats::Summary;
use hugepages::tlb::{NotMeasured, Row};

use super::*;

const ROUNDS: [f64; 5] = [1.0, 1.02, 0.98, 1.01, 0.99];

fn measured(medians: [f64; 4], backing: Backing, faults: f64, misses: Option<f64>) -> Outcome {
    let series = |index: usize| {
        let rounds: Vec<f64> = ROUNDS.iter().map(|one| one * medians[index]).collect();
        // The hardware counts no misses during the first touch.
        let misses = misses.filter(|_| index > 0).map(|misses| [misses]);
        let misses = misses.as_ref().map(<[f64; 1]>::as_slice);
        Series::new(Metric::ALL[index], rounds, misses).unwrap()
    };
    Outcome::Measured(Box::new(Measured {
        backing,
        page_faults: Summary::of(&[faults]).unwrap(),
        first_touch: series(0),
        sequential_read: series(1),
        random_read: series(2),
        dependent_read: series(3),
    }))
}

fn on(page: u64, thp: u64, hugetlb: u64) -> Backing {
    Backing {
        kernel_page_bytes: page,
        resident_bytes: 1 << 30,
        thp_bytes: thp,
        hugetlb_bytes: hugetlb,
        nodes: vec![(0, 7)],
    }
}

fn huge(bytes: u64) -> Pages {
    Pages::Huge(HugePageSize::new(bytes).unwrap())
}

fn made_up(counted: bool) -> Report {
    let misses = |value| counted.then_some(value);
    let row = |pages, outcome| Row { pages, outcome };
    let mut two_nodes = on(2 << 20, 0, 1 << 30);
    two_nodes.nodes = vec![(0, 500), (1, 12)];
    let mut report = Report {
        size_bytes: 1 << 30,
        repeats: 5,
        dtlb_load_misses: Counted {
            available: counted,
            reason: (!counted).then(|| "this user may not count events (EACCES)".into()),
            hint: (!counted).then(|| "as root: sysctl kernel.perf_event_paranoid=2".into()),
        },
        memories: vec![
            row(
                Pages::Base,
                measured(
                    [1.21, 10.2, 25.1, 361.0],
                    on(4096, 0, 0),
                    262_144.0,
                    misses(0.97),
                ),
            ),
            row(
                Pages::Thp,
                measured(
                    [3.4, 10.3, 17.0, 260.0],
                    on(4096, 1 << 29, 0),
                    131_328.0,
                    misses(0.4),
                ),
            ),
            row(
                huge(2 << 20),
                measured([3.9, 10.2, 16.0, 243.0], two_nodes, 512.0, misses(0.12)),
            ),
            row(
                huge(1 << 30),
                Outcome::NotMeasured(NotMeasured {
                    reason: "the pool of 1 GiB pages has 0 free, 1 needed".into(),
                    hint: Some("hugepages pool reserve 1 --size 1G".into()),
                }),
            ),
        ],
    };
    report.compare();
    report
}

fn at(width: u16, counted: bool) -> String {
    let screen = Screen {
        width,
        colour: false,
    };
    human(&made_up(counted), screen) + "\n"
}

#[test]
fn the_tables_fit_in_80_columns() {
    let text = at(80, false);
    assert!(text.lines().all(|line| line.chars().count() <= 80));
    assert_eq!(text, include_str!("../../../tests/it/snapshots/tlb-80.txt"));
}

#[test]
fn the_tables_fit_in_120_columns() {
    let text = at(120, false);
    assert!(text.lines().all(|line| line.chars().count() <= 120));
    assert_eq!(
        text,
        include_str!("../../../tests/it/snapshots/tlb-120.txt")
    );
}

#[test]
fn counted_misses_are_a_column() {
    for (width, expected) in [
        (
            80,
            include_str!("../../../tests/it/snapshots/tlb-counted-80.txt"),
        ),
        (
            120,
            include_str!("../../../tests/it/snapshots/tlb-counted-120.txt"),
        ),
    ] {
        assert_eq!(at(width, true), expected);
    }
}

#[test]
fn rounds_that_do_not_agree_are_no_difference() {
    let text = at(120, false);
    let lines: Vec<_> = text.lines().collect();
    let first = lines
        .iter()
        .position(|line| line.starts_with("sequential read"))
        .unwrap();
    // Equal rounds of the 2 MiB pages.
    assert!(
        lines[first + 2].contains("no difference measured"),
        "{text}"
    );
    assert!(
        !lines[first].contains('x'),
        "base pages are not compared with themselves"
    );
}

#[test]
fn without_base_pages_nothing_is_compared() {
    let mut report = made_up(false);
    for row in &mut report.memories {
        if let Outcome::Measured(measured) = &mut row.outcome {
            measured.random_read.against_base = None;
        }
    }
    report.memories.remove(0);
    report.compare();
    let Outcome::Measured(thp) = &report.memories[0].outcome else {
        panic!("it was measured");
    };
    assert_eq!(thp.random_read.against_base, None);
}

#[test]
fn the_picture_is_what_the_snapshot_shows() {
    assert_eq!(
        tlb::svg(&made_up(false)),
        include_str!("../../../tests/it/snapshots/tlb.svg")
    );
}
