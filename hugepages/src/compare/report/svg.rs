//! The report as a diagram: a bar for each side of each case, and memory over the time of a load.

use std::fmt::Write;

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::Report;
use crate::compare::measure::{MEASURES, Measure, Moment};
use crate::compare::run::CaseResult;
use crate::picture::{self, Area, BAR, COLOURS, Drawn, coordinate};
use crate::stats::{Summary, figure};

const WIDTH: i32 = 900;
const MARGIN: i32 = 24;
const HEAD: i32 = 64;
const PANEL_HEAD: i32 = 34;
const ROW: i32 = 24;
const BARS: i32 = 250;
const BARS_END: i32 = 640;
const LINES: i32 = 180;
const MIB: f64 = 1024.0 * 1024.0;

/// A bar: its side, its value, and whether the value differs from the bar above.
struct Bar {
    name: String,
    summary: Summary,
    against: String,
    colour: RGBColor,
}

/// A panel of bars.
struct Panel {
    title: String,
    bars: Vec<Bar>,
}

impl Report {
    /// The report as a diagram. `None` without results.
    pub fn svg(&self) -> Option<String> {
        svg(self)
    }
}

/// An SVG document: a panel for each plotted measure, and the memory of both sides of the first case. `None` if no case ran.
fn svg(report: &Report) -> Option<String> {
    let panels: Vec<Panel> = MEASURES
        .iter()
        .filter(|measure| measure.drawn)
        .map(|measure| panel(report, measure))
        .filter(|panel| !panel.bars.is_empty())
        .collect();
    let first = report.cases.first()?;
    let height = |panel: &Panel| PANEL_HEAD + coordinate(panel.bars.len()) * ROW;
    let bars: i32 = panels.iter().map(height).sum();
    let size = (WIDTH, HEAD + bars + PANEL_HEAD + LINES + 3 * MARGIN);
    let title = "llama-server with and without huge pages";
    let picture = picture::document(size, title, &description(&panels), |area| {
        picture::write(area, title, (MARGIN, MARGIN + 6), 18, HPos::Left)?;
        let mut top = HEAD;
        for panel in &panels {
            draw_panel(area, panel, top)?;
            top += height(panel);
        }
        draw_lines(area, first, top)?;
        area.present()
    });
    Some(picture)
}

fn panel(report: &Report, measure: &Measure) -> Panel {
    let mut bars = Vec::new();
    for result in &report.cases {
        let Some((a, b)) = result.summaries(measure.of) else {
            continue;
        };
        if a.max <= 0.0 && b.max <= 0.0 {
            continue;
        }
        let case = &result.case;
        let against = result.ratio(measure.of).map_or(String::new(), |ratio| {
            if ratio.is_different() {
                format!(", {}x", figure(ratio.mean))
            } else {
                ", no difference".to_owned()
            }
        });
        let name = |side: &str| plain(&format!("{}, {}: {side}", case.model, case.name));
        bars.push(Bar {
            name: name(&case.a.name),
            summary: a,
            against: String::new(),
            colour: COLOURS[0],
        });
        bars.push(Bar {
            name: name(&case.b.name),
            summary: b,
            against,
            colour: COLOURS[3],
        });
    }
    Panel {
        title: measure.title(),
        bars,
    }
}

/// Text alternative of the diagram.
fn description(panels: &[Panel]) -> String {
    let mut text = String::new();
    for panel in panels {
        let _ = write!(text, "{}:", panel.title);
        for bar in &panel.bars {
            let _ = write!(text, " {} {},", bar.name, figure(bar.summary.median));
        }
        text.pop();
        text.push_str(". ");
    }
    text.trim_end().to_owned()
}

/// Escapes text, because file names may contain any character.
fn plain(text: &str) -> String {
    let keep = |letter: char| {
        if "<>&\"'".contains(letter) {
            '_'
        } else {
            letter
        }
    };
    text.chars().map(keep).collect()
}

fn draw_panel<'a>(area: &Area<'a>, panel: &Panel, top: i32) -> Drawn<'a> {
    picture::write(area, &panel.title, (MARGIN, top + 14), 14, HPos::Left)?;
    let largest = panel.bars.iter().map(|bar| bar.summary.max);
    let largest = largest.fold(f64::MIN_POSITIVE, f64::max);
    let scale = f64::from(BARS_END - BARS) / largest;
    for (row, bar) in (0..).zip(&panel.bars) {
        let middle = top + PANEL_HEAD + row * ROW + BAR / 2;
        picture::write(area, &bar.name, (BARS - 10, middle), 12, HPos::Right)?;
        picture::bar(area, bar.summary, (BARS, middle), scale, bar.colour)?;
        let label = format!("{}{}", figure(bar.summary.median), bar.against);
        picture::write(area, &label, (BARS_END + 12, middle), 12, HPos::Left)?;
    }
    Ok(())
}

/// Memory of the first run of each side that counted, from the start of the process to the first token.
fn draw_lines<'a>(area: &Area<'a>, result: &CaseResult, top: i32) -> Drawn<'a> {
    let Some((a, b)) = result.pairs.first() else {
        return Ok(());
    };
    let case = &result.case;
    let title = plain(&format!(
        "memory during the load, {}, {}: MiB over seconds",
        case.model, case.name
    ));
    picture::write(area, &title, (MARGIN, top + 14), 14, HPos::Left)?;
    let own: fn(&Moment) -> u64 = |moment| moment.own_bytes;
    let file: fn(&Moment) -> u64 = |moment| moment.file_bytes;
    let series = [
        (&a.side, "own", &a.moments, own, COLOURS[1]),
        (&a.side, "mapped files", &a.moments, file, COLOURS[0]),
        (&b.side, "own", &b.moments, own, COLOURS[3]),
        (&b.side, "mapped files", &b.moments, file, COLOURS[5]),
    ];
    let moments = || a.moments.iter().chain(&b.moments);
    let seconds = moments().map(|moment| moment.seconds);
    let seconds = seconds.fold(f64::MIN_POSITIVE, f64::max);
    let bytes = moments().map(|moment| moment.own_bytes.max(moment.file_bytes));
    let most = bytes.max().unwrap_or(1).max(1) as f64;
    let bottom = top + PANEL_HEAD + LINES;
    let right = BARS_END;
    let point = |moment: &Moment, bytes: u64| {
        let x = f64::from(right - BARS) * moment.seconds / seconds;
        let y = f64::from(LINES) * bytes as f64 / most;
        (BARS + x.round() as i32, bottom - y.round() as i32)
    };
    let axes = vec![(BARS, bottom - LINES), (BARS, bottom), (right, bottom)];
    area.draw(&PathElement::new(axes, BLACK))?;
    let most = format!("{:.0}", most / MIB);
    picture::write(area, &most, (BARS - 10, bottom - LINES), 12, HPos::Right)?;
    picture::write(area, "0", (BARS - 10, bottom), 12, HPos::Right)?;
    let seconds = format!("{seconds:.2}");
    picture::write(area, &seconds, (right, bottom + 14), 12, HPos::Right)?;
    for (row, (side, what, moments, of, colour)) in (0..).zip(series) {
        let points = moments.iter().map(|moment| point(moment, of(moment)));
        let line = PathElement::new(points.collect::<Vec<_>>(), colour.stroke_width(2));
        area.draw(&line)?;
        let middle = bottom - LINES + 10 + row * ROW;
        let mark = [(right + 14, middle - 5), (right + 24, middle + 5)];
        area.draw(&Rectangle::new(mark, colour.filled()))?;
        let label = plain(&format!("{side}: {what}"));
        picture::write(area, &label, (right + 32, middle), 12, HPos::Left)?;
    }
    Ok(())
}
