//! The output of a comparison: tables on stdout, and the report files.

use std::fs;
use std::io::{self, Write};

use anyhow::{Context, Result};

use hugepages::compare::{
    CaseResult, Many, Pressure, Report, Restart, Switch, Traffic, rows, said,
};

use super::arguments::{Args, SCHEMA};
use crate::cli::output::{self, Screen};

const MIB: f64 = 1024.0 * 1024.0;

/// The table of a case.
pub fn case(result: &CaseResult) -> io::Result<()> {
    let case = &result.case;
    let name = format!("{}, {}", case.model, case.name);
    let head = [&name, case.a.name.as_str(), case.b.name.as_str(), "ratio"];
    let mut text = output::table(Screen::stdout(), &head, rows(result).map(Vec::from));
    if let Some(ratio) = result.of_direct_read() {
        text += "\nload speed, divided by the speed of fio with O_DIRECT: ";
        text += &said(ratio);
    } else if case.direct_read {
        text += "\nfio is not installed, so the read speed has no reference";
    }
    writeln!(io::stdout(), "{text}\n")
}

/// The table of the case `pressure`.
pub fn pressure(pressure: &Pressure) -> io::Result<()> {
    let name = format!("{}, pressure", pressure.model);
    let head = [
        &name,
        "t/s without the limit",
        "t/s with the limit",
        "ratio",
        "major faults",
    ];
    let lines = pressure.sides.iter().map(|side| {
        let (free, pressed, faults) = side.means();
        vec![
            side.name.clone(),
            format!("{free:.2}"),
            format!("{pressed:.2}"),
            side.ratio().map_or_else(|| "-".to_owned(), said),
            format!("{faults:.0}"),
        ]
    });
    let table = output::table(Screen::stdout(), &head, lines);
    writeln!(io::stdout(), "{table}\n{}\n", pressure.sentence())
}

/// The table of the case `servers`.
pub fn servers(many: &Many) -> io::Result<()> {
    let name = format!("{}, {} servers", many.model, many.servers);
    let head = [&name, "PSS of all servers, MiB", "pool, MiB", "total, MiB"];
    let mib = |bytes: u64| format!("{:.0}", bytes as f64 / MIB);
    let lines = many.sides.iter().map(|side| {
        vec![
            side.name.clone(),
            mib(side.pss_bytes),
            mib(side.pool_bytes),
            mib(side.total_bytes()),
        ]
    });
    writeln!(
        io::stdout(),
        "{}\n",
        output::table(Screen::stdout(), &head, lines)
    )
}

/// The table of the case `restart` or `sleep`.
pub fn restart(restart: &Restart) -> io::Result<()> {
    let name = format!("{}, {}", restart.model, restart.pause.name());
    let mut head = Restart::HEAD;
    head[0] = &name;
    let table = output::table(Screen::stdout(), &head, restart.rows().map(Vec::from));
    writeln!(io::stdout(), "{table}\n{}\n", restart.sentence())
}

/// The table of the case `switch`.
pub fn switch(switch: &Switch) -> io::Result<()> {
    both("switch", &switch.sides, switch.rows(), &switch.sentence())
}

/// The table of the case `traffic`.
pub fn traffic(traffic: &Traffic) -> io::Result<()> {
    both(
        "traffic",
        &traffic.sides,
        traffic.rows(),
        &traffic.sentence(),
    )
}

/// A table with a column for each side and one for their ratio.
fn both(
    case: &str,
    [a, b]: &[String; 2],
    rows: impl Iterator<Item = [String; 4]>,
    sentence: &str,
) -> io::Result<()> {
    let head = [case, a, b, "ratio"];
    let table = output::table(Screen::stdout(), &head, rows.map(Vec::from));
    writeln!(io::stdout(), "{table}\n{sentence}\n")
}

/// The summary after all cases.
pub fn end(report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for perplexity in &report.perplexity {
        writeln!(
            out,
            "{}: perplexity equal to the last digit: {}\n",
            perplexity.model, perplexity.said
        )?;
    }
    for left_out in &report.left_out {
        let hint = left_out.hint.as_ref();
        let hint = hint.map_or_else(String::new, |hint| format!(" (hint: {hint})"));
        writeln!(
            out,
            "skipped: {}, {}: {}{hint}",
            left_out.model, left_out.case, left_out.reason
        )?;
    }
    for failed in &report.failed {
        writeln!(
            out,
            "failed: {}, {}: {}",
            failed.model, failed.case, failed.reason
        )?;
    }
    let kept = report.bounds.iter().filter(|bound| bound.holds()).count();
    if !report.bounds.is_empty() {
        writeln!(
            out,
            "{kept} of {} counts are within their bounds",
            report.bounds.len()
        )?;
    }
    for bound in report.broken() {
        writeln!(
            out,
            "out of bounds: {} is {:.0}, limit {:.0}: {}",
            bound.what, bound.value, bound.limit, bound.why
        )?;
    }
    writeln!(out, "{}", report.machine)
}

/// `report.json`, `report.md`, and the diagrams.
pub fn files(args: &Args, report: &Report) -> Result<()> {
    let Some(dir) = &args.out else {
        return Ok(());
    };
    let mut json = Vec::new();
    output::write_json(&mut json, SCHEMA, report)?;
    let mut markdown = report.markdown();
    let svg = report.svg();
    if svg.is_some() {
        markdown += "\n![bars of the measurements](report.svg)\n";
    }
    let waiting = report.traffic.as_ref().and_then(Traffic::svg);
    if waiting.is_some() {
        markdown += "\n![times to the first token](traffic.svg)\n";
    }
    let files = [
        ("report.json", Some(json)),
        ("report.md", Some(markdown.into_bytes())),
        ("report.svg", svg.map(String::into_bytes)),
        ("traffic.svg", waiting.map(String::into_bytes)),
    ];
    for (name, content) in files {
        let path = dir.join(name);
        let written = match content {
            Some(content) => fs::create_dir_all(dir).and_then(|()| fs::write(&path, content)),
            None => Ok(()),
        };
        written.with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}
