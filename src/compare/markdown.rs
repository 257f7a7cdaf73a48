//! The report for people who read it later: tables, what was left out, where the numbers come from.

use std::fmt::{Display, Write};

use super::{CaseResult, MEASURES, Machine, Measure, Pressure, Ratio, Report};
use crate::size::ByteSize;
use crate::stats::Summary;
use crate::status::HvoState;

const MIB: f64 = 1024.0 * 1024.0;

/// Sections in the order in which they are asked for: is it equal, what was measured, on what, what is missing.
pub fn markdown(report: &Report) -> String {
    let mut text = String::from("# llama-server with and without huge pages\n");
    machine(&mut text, &report.machine);
    hvo(&mut text, report);
    programs(&mut text, report);
    for result in &report.cases {
        case(&mut text, result);
    }
    servers(&mut text, report);
    for pressure in &report.pressure {
        pressed(&mut text, pressure);
    }
    perplexity(&mut text, report);
    bounds(&mut text, report);
    missing(&mut text, report);
    sources(&mut text, report);
    text
}

/// Whatever is written to a string is there.
fn line(text: &mut String, what: impl Display) {
    let _ = writeln!(text, "{what}");
}

/// In a cell of a table.
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

/// What the kernel gets back of its own tables.
fn hvo(text: &mut String, report: &Report) {
    let Some(hvo) = &report.hvo else {
        return;
    };
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / MIB);
    let measured = hvo.given_back_bytes.map_or_else(String::new, |bytes| {
        format!(", {} are given back now, of all pools", mib(bytes))
    });
    let possible = mib(hvo.possible_bytes);
    let state = match hvo.state {
        HvoState::On => "on",
        HvoState::Off => "off",
        HvoState::Unsupported => "not in this kernel",
    };
    line(
        text,
        format!(
            "\nHVO is {state}: with it, the pool of the largest case gives back {possible} of `struct page`{measured}."
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
        super::Cache::Cold => "nothing of the model in the page cache",
        super::Cache::Warm => "all of the model in the page cache",
    };
    line(text, format!("\n## {}: {}\n", case.model, case.name));
    line(
        text,
        format!(
            "{} and {}, {cache}; {} pairs in the order A B B A after one run each that does not count. {} tokens and their \
             probabilities are equal bit for bit.",
            case.a.name,
            case.b.name,
            result.pairs.len(),
            result.equal_tokens
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
                "\nread and placed, over what fio reads with O_DIRECT: {}",
                said(ratio)
            ),
        );
    }
}

/// Name, A, B, ratio of each measure that is not nothing.
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
    let digits = measure.digits;
    format!(
        "{:.digits$} ({:.digits$} to {:.digits$})",
        spread.median, spread.min, spread.max
    )
}

/// Never a difference that the spread does not carry.
pub fn said(ratio: Ratio) -> String {
    let Ratio { mean, low, high, n } = ratio;
    if ratio.is_different() {
        // What is nearly nothing is not nothing.
        let digits = if mean < 0.01 { 5 } else { 3 };
        format!("{mean:.digits$} ({low:.digits$} to {high:.digits$}, n={n})")
    } else if high < 10.0 * low {
        format!("{mean:.3} ({low:.3} to {high:.3}, n={n}, no difference measured)")
    } else {
        // Ends so far apart say nothing that n does not say.
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
                "PSS of all, MiB",
                "pool, MiB",
                "together, MiB",
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
            "t/s without limit",
            "t/s with it",
            "ratio",
            "major faults while generating",
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
    /// What was done, in a sentence.
    pub fn sentence(&self) -> String {
        let counted = if self.counts_huge_pages {
            "huge pages count against it"
        } else {
            "huge pages do not count against it"
        };
        format!(
            "A cgroup (version {}) with {:.0} MiB of memory: two thirds of the {:.0} MiB that are mapped of the model, and what \
             stock needs besides; {counted}.",
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
            "of stock and on huge pages, equal to the last digit",
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
    line(text, "\n## What was counted, and its bounds");
    head(text, ["", "counted", "at most", "why", ""]);
    for bound in &report.bounds {
        let verdict = if bound.holds() { "" } else { "**broken**" };
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
        line(text, "\n## What went wrong");
        head(text, ["model", "case", "", "hint"]);
        for failed in &report.failed {
            let hint = failed.hint.as_deref().unwrap_or_default();
            row(text, [&failed.model, &failed.case, &failed.reason, hint]);
        }
    }
    if !report.left_out.is_empty() {
        line(text, "\n## What was left out");
        head(text, ["model", "case", "why", "hint"]);
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
    line(text, "\n## Where the numbers come from\n");
    line(
        text,
        "Median, smallest and largest of all runs that count; the ratio is the geometric mean over the pairs with its 95 % \
         interval. Where that contains 1, no difference was measured.",
    );
    head(text, ["measure", "source"]);
    for measure in &MEASURES {
        row(text, [measure.title().trim_start(), measure.source]);
    }
}
