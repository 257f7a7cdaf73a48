//! `hugepages tlb`: compares page sizes on this machine.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};

use hugepages::{
    kernel::Root,
    size::ByteSize,
    stats::figure,
    tlb::{self, Backing, Counted, Measured, Metric, Outcome, Pages, Report, Series, Spec, Step},
};

use super::output::{self, Format, Screen};

/// Measure how the page size affects memory access on this machine
///
/// Measures four kinds of access on base pages, on THP and on the pages of each pool: first touch, sequential read, random read,
/// and dependent read (each read depends on the last). Each round measures all page sizes in turn, and a ratio compares two page
/// sizes within one round. Changes no pool: it uses the pages of a pool only if enough of them are free.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Memory to read for each page size, larger than the CPU caches: 300M, 1G
    #[arg(long, default_value = "1G", allow_hyphen_values = true, value_parser = size)]
    size: ByteSize,

    /// Page sizes to compare: 4K (or base), thp, 2M, 1G [default: all page sizes of this machine]
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
    pages: Vec<Pages>,

    /// Rounds to measure, after one round that does not count
    ///
    /// The report shows a difference only if all rounds agree. By chance alone they agree once in 16 runs with 5 rounds, and once
    /// in 64 runs with 7 rounds.
    #[arg(long, value_name = "N", default_value_t = 7, allow_hyphen_values = true, value_parser = clap::value_parser!(u32).range(5..=1000))]
    repeats: u32,

    /// Write a diagram to this file too; replaces an existing file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    #[command(flatten)]
    output: output::Args,
}

fn size(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error| format!("{error}"))?;
    if size < Spec::MIN_SIZE {
        return Err(format!("expected at least {}", Spec::MIN_SIZE));
    }
    Ok(size)
}

/// Version of the JSON.
const SCHEMA: u32 = 1;

pub fn run(args: &Args, stop: &AtomicBool) -> Result<()> {
    let root = Root::system();
    let mut pages = args.pages.clone();
    if pages.is_empty() {
        pages = Pages::all(&root);
    }
    let mut once = Vec::new();
    pages.retain(|pages| {
        !once.contains(pages) && {
            once.push(*pages);
            true
        }
    });
    if let Some(path) = &args.svg {
        check_folder(path)?;
    }
    let spec = Spec {
        size: args.size,
        pages,
        repeats: args.repeats,
    };
    let bar = output::progress_bar("{wide_bar} {pos} of {len}: {msg}");
    let report = tlb::run(&root, &spec, stop, |step: Step| {
        bar.set_length(step.of);
        bar.set_position(step.done);
        bar.set_message(step.pages.to_string());
    });
    bar.finish_and_clear();
    let report = report?;

    match args.output.format {
        Format::Human => writeln!(io::stdout(), "{}", human(&report, Screen::stdout()))?,
        Format::Json => output::json(SCHEMA, &report)?,
    }
    if let Some(path) = &args.svg {
        fs::write(path, tlb::svg(&report))
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}

/// Checks the path before the measurement, which can take minutes.
fn check_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if path.is_dir() || !folder.is_dir() {
        bail!(
            "cannot write `{}`: the directory does not exist, or the path is a directory",
            path.display()
        );
    }
    Ok(())
}

fn human(report: &Report, screen: Screen) -> String {
    let mut parts = vec![
        format!(
            "{} of memory, {} rounds: median and range",
            ByteSize::new(report.size_bytes),
            report.repeats
        ),
        String::new(),
        backings(report, screen),
    ];
    if report.measured().next().is_some() {
        parts.extend([String::new(), figures(report, screen)]);
    }
    parts.extend([String::new(), misses(&report.dtlb_load_misses)]);
    parts.join("\n")
}

/// The backing of each memory, or the reason why it was not measured.
fn backings(report: &Report, screen: Screen) -> String {
    let rows = report.memories.iter().map(|row| {
        let (lies_on, faults) = match &row.outcome {
            Outcome::Measured(measured) => (
                lies_on(row.pages, &measured.backing),
                format!("{:.0}", measured.page_faults.median),
            ),
            Outcome::NotMeasured(why) => {
                let hint = why.hint.as_ref();
                let hint = hint.map_or(String::new(), |hint| format!("; hint: {hint}"));
                (
                    format!("not measured: {}{hint}", why.reason),
                    "-".to_owned(),
                )
            }
        };
        vec![row.pages.to_string(), lies_on, faults]
    });
    output::table(
        screen,
        &["requested", "backing, from smaps", "page faults"],
        rows,
    )
}

fn lies_on(pages: Pages, backing: &Backing) -> String {
    let resident = ByteSize::new(backing.resident_bytes);
    let page = ByteSize::new(backing.kernel_page_bytes);
    let mut text = match pages {
        Pages::Huge(_) => format!(
            "{} in pages of {page}",
            ByteSize::new(backing.hugetlb_bytes)
        ),
        Pages::Thp => {
            let share = 100.0 * backing.thp_bytes as f64 / backing.resident_bytes.max(1) as f64;
            let thp = ByteSize::new(backing.thp_bytes);
            format!("{thp} of {resident} on THP ({share:.0} %)")
        }
        Pages::Base if backing.thp_bytes > 0 => {
            format!(
                "{resident}, {} of it on THP",
                ByteSize::new(backing.thp_bytes)
            )
        }
        Pages::Base => format!("{resident} in pages of {page}"),
    };
    // Most machines have one node, so the numbers of a single node carry no information.
    if backing.nodes.len() > 1 {
        for (node, pages) in &backing.nodes {
            let _ = write!(text, ", node {node}: {pages} pages");
        }
    }
    text
}

fn figures(report: &Report, screen: Screen) -> String {
    let counted = report.dtlb_load_misses.available;
    let mut head = vec!["", "on", "median", "range", "speed against base"];
    if counted {
        head.push("misses");
    }
    let row = |metric: Metric, number: usize, pages: Pages, measured: &Measured| {
        let series = measured.series(metric);
        let (min, max) = (series.summary.min, series.summary.max);
        let mut row = vec![
            if number == 0 { metric.name() } else { "" }.to_owned(),
            pages.to_string(),
            format!("{} {}", figure(series.summary.median), series.unit),
            format!("{}-{}", figure(min), figure(max)),
            against(series),
        ];
        if counted {
            let misses = series.dtlb_misses_per_read;
            row.push(misses.map_or("-".to_owned(), |misses| format!("{:.3}", misses.median)));
        }
        row
    };
    let rows = Metric::ALL.into_iter().flat_map(|metric| {
        report
            .measured()
            .enumerate()
            .map(move |(number, (pages, measured))| row(metric, number, pages, measured))
    });
    output::table(screen, &head, rows)
}

fn against(series: &Series) -> String {
    match &series.against_base {
        None => String::new(),
        Some(ratio) if ratio.difference => format!(
            "{}x ({}-{})",
            figure(ratio.times.median),
            figure(ratio.times.min),
            figure(ratio.times.max)
        ),
        Some(_) => "no difference measured".to_owned(),
    }
}

fn misses(counted: &Counted) -> String {
    let Some(reason) = &counted.reason else {
        return "misses: dTLB load misses per read, counted by the hardware".to_owned();
    };
    let hint = counted.hint.as_ref();
    let hint = hint.map_or(String::new(), |hint| format!("\nhint: {hint}"));
    format!("dTLB misses: not counted: {reason}{hint}")
}

#[cfg(test)]
#[path = "tlb_tests.rs"]
mod tests;
