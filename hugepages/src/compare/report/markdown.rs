//! The report in Markdown: tables, skipped cases, sources of the numbers.

use std::fmt::{Display, Write};

use super::Report;
use crate::compare::measure::{MEASURES, Machine, Measure, Ratio};
use crate::compare::run::{Cache, CaseResult, Pressure, Restart};
use crate::kernel::HvoState;
use crate::size::ByteSize;
use crate::stats::Summary;

const MIB: f64 = 1024.0 * 1024.0;

impl Report {
    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        markdown(self)
    }
}

/// Builds the sections: equality, measurements, machine, skipped cases.
fn markdown(report: &Report) -> String {
    let mut text = String::from("# llama-server with and without huge pages\n");
    machine(&mut text, &report.machine);
    hvo(&mut text, report);
    programs(&mut text, report);
    for result in &report.cases {
        case(&mut text, result);
    }
    servers(&mut text, report);
    for restart in &report.restarts {
        restarted(&mut text, restart);
    }
    if let Some(switch) = &report.switch {
        both(
            &mut text,
            "Switches between models",
            &switch.sentence(),
            &switch.sides,
            switch.rows(),
        );
    }
    if let Some(traffic) = &report.traffic {
        both(
            &mut text,
            "Messages to several models",
            &traffic.sentence(),
            &traffic.sides,
            traffic.rows(),
        );
    }
    for pressure in &report.pressure {
        pressed(&mut text, pressure);
    }
    perplexity(&mut text, report);
    bounds(&mut text, report);
    missing(&mut text, report);
    sources(&mut text, report);
    text
}

/// Adds a line. A write to a string cannot fail.
fn line(text: &mut String, what: impl Display) {
    let _ = writeln!(text, "{what}");
}

/// Escapes a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn row<const N: usize>(text: &mut String, cells: [&str; N]) {
    let cells = cells.map(cell);
    line(text, format!("| {} |", cells.join(" | ")));
}

fn head<const N: usize>(text: &mut String, cells: [&str; N]) {
    line(text, "");
    row(text, cells);
    line(text, format!("|{}", "---|".repeat(N)));
}

fn machine(text: &mut String, machine: &Machine) {
    line(text, format!("\n{machine}."));
}

/// Adds the memory that HVO frees.
fn hvo(text: &mut String, report: &Report) {
    let Some(hvo) = &report.hvo else {
        return;
    };
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / MIB);
    let measured = hvo.given_back_bytes.map_or_else(String::new, |bytes| {
        format!(", and {} for all pools now", mib(bytes))
    });
    let possible = mib(hvo.possible_bytes);
    let state = match hvo.state {
        HvoState::On => "on",
        HvoState::Off => "off",
        HvoState::Unsupported => "not supported by this kernel",
    };
    line(
        text,
        format!(
            "\nHVO is {state}: it frees {possible} of `struct page` memory for the pool of the largest case{measured}."
        ),
    );
}

fn programs(text: &mut String, report: &Report) {
    head(text, ["", "program", "version", "SHA-256"]);
    for (name, program) in ["baseline", "ours"].iter().zip(&report.programs) {
        let path = program.path.to_string_lossy();
        let hash = program.sha256.get(..16).unwrap_or_default();
        row(text, [name, &path, &program.version, &format!("{hash}…")]);
    }
    head(text, ["model", "size", "files"]);
    for model in &report.models {
        let size = ByteSize::new(model.bytes).to_string();
        row(text, [&model.name, &size, &model.files.len().to_string()]);
    }
    let variables = report.environment.iter();
    let variables = variables.map(|(name, value)| format!("{name}={value} "));
    let command = variables.collect::<String>() + &report.commands.join(" ");
    line(text, format!("\n```\n{command}\n```"));
}

fn case(text: &mut String, result: &CaseResult) {
    let case = &result.case;
    let cache = match case.cache {
        Cache::Cold => "the page cache holds nothing of the model",
        Cache::Warm => "the page cache holds the whole model",
    };
    let equal = if case.is_equal {
        format!(
            "{} tokens and their probabilities are equal bit for bit",
            result.equal_tokens
        )
    } else {
        "The tokens are not compared, because repacked weights are summed in another order"
            .to_owned()
    };
    line(text, format!("\n## {}: {}\n", case.model, case.name));
    line(
        text,
        format!(
            "{} and {}; {cache}. {} pairs in the order A B B A, after one run of each that does not count. {equal}.",
            case.a.name,
            case.b.name,
            result.pairs.len()
        ),
    );
    head(text, ["", &case.a.name, &case.b.name, "ratio"]);
    for [name, a, b, ratio] in rows(result) {
        row(text, [&name, &a, &b, &ratio]);
    }
    if let Some(ratio) = result.of_direct_read() {
        line(
            text,
            format!(
                "\nload speed, divided by the speed of fio with O_DIRECT: {}",
                said(ratio)
            ),
        );
    }
}

/// Name, A, B and ratio of each measure that is not zero.
pub fn rows(result: &CaseResult) -> impl Iterator<Item = [String; 4]> {
    MEASURES.iter().filter_map(|measure| {
        let (a, b) = result.summaries(measure.of)?;
        (a.max > 0.0 || b.max > 0.0).then(|| {
            [
                measure.title(),
                spread(measure, a),
                spread(measure, b),
                result
                    .ratio(measure.of)
                    .map_or_else(|| "-".to_owned(), said),
            ]
        })
    })
}

fn spread(measure: &Measure, spread: Summary) -> String {
    // A speed of zero is no speed: stock does not report how fast it loads.
    if spread.max == 0.0 && measure.unit.ends_with("/s") {
        return "-".to_owned();
    }
    range(measure.digits, spread)
}

/// Median, minimum and maximum.
pub fn range(digits: usize, spread: Summary) -> String {
    format!(
        "{:.digits$} ({:.digits$} to {:.digits$})",
        spread.median, spread.min, spread.max
    )
}

/// Prints a ratio, or that no difference was measured.
pub fn said(ratio: Ratio) -> String {
    let Ratio { mean, low, high, n } = ratio;
    if ratio.is_different() {
        // More digits for small ratios, so that they do not read 0.000.
        let digits = if mean < 0.01 { 5 } else { 3 };
        format!("{mean:.digits$} ({low:.digits$} to {high:.digits$}, n={n})")
    } else if high < 10.0 * low {
        format!("{mean:.3} ({low:.3} to {high:.3}, n={n}, no difference measured)")
    } else {
        // Such a wide interval carries no information.
        format!("no difference measured (n={n})")
    }
}

fn servers(text: &mut String, report: &Report) {
    for many in &report.servers {
        line(
            text,
            format!("\n## {}: {} servers at once", many.model, many.servers),
        );
        head(
            text,
            [
                "",
                "PSS of all servers, MiB",
                "pool, MiB",
                "total, MiB",
                "in the page cache, MiB",
            ],
        );
        for side in &many.sides {
            let mib = |bytes: u64| format!("{:.0}", bytes as f64 / MIB);
            row(
                text,
                [
                    &side.name,
                    &mib(side.pss_bytes),
                    &mib(side.pool_bytes),
                    &mib(side.total_bytes()),
                    &mib(side.residue_bytes),
                ],
            );
        }
    }
}

fn restarted(text: &mut String, restart: &Restart) {
    line(
        text,
        format!("\n## {}: a {}\n", restart.model, restart.pause.name()),
    );
    line(text, restart.sentence());
    head(text, Restart::HEAD);
    for cells in restart.rows() {
        row(text, cells.each_ref().map(String::as_str));
    }
}

/// A section with a column for each side and one for their ratio.
fn both(
    text: &mut String,
    title: &str,
    sentence: &str,
    [a, b]: &[String; 2],
    rows: impl Iterator<Item = [String; 4]>,
) {
    line(text, format!("\n## {title}\n"));
    line(text, sentence);
    head(text, ["", a, b, "ratio"]);
    for cells in rows {
        row(text, cells.each_ref().map(String::as_str));
    }
}

fn pressed(text: &mut String, pressure: &Pressure) {
    line(
        text,
        format!("\n## {}: too little memory\n", pressure.model),
    );
    line(text, pressure.sentence());
    head(
        text,
        [
            "",
            "t/s without the limit",
            "t/s with the limit",
            "ratio",
            "major faults during generation",
        ],
    );
    for side in &pressure.sides {
        let (free, pressed, faults) = side.means();
        row(
            text,
            [
                &side.name,
                &format!("{free:.2}"),
                &format!("{pressed:.2}"),
                &side.ratio().map_or_else(|| "-".to_owned(), said),
                &format!("{faults:.0}"),
            ],
        );
    }
}

impl Pressure {
    /// Describes the case in a sentence.
    pub fn sentence(&self) -> String {
        let counted = if self.counts_huge_pages {
            "Huge pages count against the limit"
        } else {
            "Huge pages do not count against the limit"
        };
        format!(
            "Each server runs in a cgroup (version {}) with a limit of {:.0} MiB. The limit is two thirds of the {:.0} MiB that \
             stock maps of the model, plus stock's own memory and 16 MiB for the kernel. {counted}.",
            self.cgroup_version,
            self.limit_bytes as f64 / MIB,
            self.mapped_bytes as f64 / MIB
        )
    }
}

fn perplexity(text: &mut String, report: &Report) {
    if report.perplexity.is_empty() {
        return;
    }
    line(text, "\n## Perplexity");
    head(
        text,
        [
            "model",
            "output of stock and of huge pages, equal to the last digit",
        ],
    );
    for perplexity in &report.perplexity {
        row(text, [&perplexity.model, &perplexity.said]);
    }
}

fn bounds(text: &mut String, report: &Report) {
    if report.bounds.is_empty() {
        return;
    }
    line(text, "\n## Counts and bounds");
    head(text, ["", "count", "limit", "reason", ""]);
    for bound in &report.bounds {
        let verdict = if bound.holds() {
            ""
        } else {
            "**out of bounds**"
        };
        let number = |value: f64| format!("{value:.0}");
        row(
            text,
            [
                &bound.what,
                &number(bound.value),
                &number(bound.limit),
                &bound.why,
                verdict,
            ],
        );
    }
}

fn missing(text: &mut String, report: &Report) {
    if !report.failed.is_empty() {
        line(text, "\n## Failed cases");
        head(text, ["model", "case", "reason", "hint"]);
        for failed in &report.failed {
            let hint = failed.hint.as_deref().unwrap_or_default();
            row(text, [&failed.model, &failed.case, &failed.reason, hint]);
        }
    }
    if !report.left_out.is_empty() {
        line(text, "\n## Skipped cases");
        head(text, ["model", "case", "reason", "hint"]);
        for left_out in &report.left_out {
            let hint = left_out.hint.as_deref().unwrap_or_default();
            row(
                text,
                [&left_out.model, &left_out.case, &left_out.reason, hint],
            );
        }
    }
}

fn sources(text: &mut String, report: &Report) {
    if report.cases.is_empty() {
        return;
    }
    line(text, "\n## Sources of the numbers\n");
    line(
        text,
        "Each cell shows the median, the minimum and the maximum of all runs that count. The ratio is the geometric mean over the \
         pairs, with its 95 % interval. If the interval contains 1, no difference was measured.",
    );
    head(text, ["measure", "source"]);
    for measure in &MEASURES {
        row(text, [measure.title().trim_start(), measure.source]);
    }
}
