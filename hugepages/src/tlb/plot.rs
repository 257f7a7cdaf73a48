//! The report as a diagram: bars with the range of the rounds.

use std::fmt::Write;

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::report::{Metric, Report, Series};
use super::stats::Better;
use crate::picture::{self, Area, BAR, COLOURS, Drawn, coordinate};
use crate::size::ByteSize;
use crate::stats::figure;

const WIDTH: i32 = 760;
const MARGIN: i32 = 24;
const HEAD: i32 = 64;
const PANEL_HEAD: i32 = 34;
const ROW: i32 = 28;
const BARS: i32 = 110;
const BARS_END: i32 = 560;

/// An SVG document: one panel for each loop, one bar for each memory that was measured, a line from the slowest to the fastest
/// round, and the figures beside it.
pub fn svg(report: &Report) -> String {
    let rows = coordinate(report.measured().count());
    let panel = PANEL_HEAD + rows * ROW;
    let height = HEAD + coordinate(Metric::ALL.len()) * panel + MARGIN;
    let (title, description) = (title(report), description(report));
    picture::document((WIDTH, height), &title, &description, |area| {
        draw(report, area, panel)
    })
}

fn title(report: &Report) -> String {
    let size = ByteSize::new(report.size_bytes);
    format!("The same work on pages of different sizes, {size} of memory")
}

/// Text alternative of the picture. It contains no special character of XML.
fn description(report: &Report) -> String {
    let mut text = String::new();
    for metric in Metric::ALL {
        let _ = write!(text, "{} in {}:", metric.name(), metric.unit());
        for (pages, measured) in report.measured() {
            let median = figure(measured.series(metric).summary.median);
            let _ = write!(text, " {pages} {median},");
        }
        text.pop();
        text.push_str(". ");
    }
    text.trim_end().to_owned()
}

fn draw<'a>(report: &Report, area: &Area<'a>, panel: i32) -> Drawn<'a> {
    let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    area.draw(&Text::new(title(report), (MARGIN, MARGIN), text(18)))?;
    for (number, metric) in (0i32..).zip(Metric::ALL) {
        let top = HEAD + number * panel;
        let better = match metric.better() {
            Better::Less => "lower is better",
            Better::More => "higher is better",
        };
        let head = format!("{}, {} ({better})", metric.name(), metric.unit());
        area.draw(&Text::new(head, (MARGIN, top + 8), text(14)))?;
        let largest = report
            .measured()
            .map(|(_, measured)| measured.series(metric).summary.max)
            .fold(f64::MIN_POSITIVE, f64::max);
        let scale = f64::from(BARS_END - BARS) / largest;
        let rows = (0i32..).zip(report.measured());
        for ((row, (pages, measured)), colour) in rows.zip(COLOURS.into_iter().cycle()) {
            let middle = top + PANEL_HEAD + row * ROW + BAR / 2;
            let name = pages.to_string();
            picture::write(area, &name, (BARS - 10, middle), 13, HPos::Right)?;
            draw_bar(area, measured.series(metric), middle, scale, colour)?;
        }
    }
    area.present()
}

fn draw_bar<'a>(
    area: &Area<'a>,
    series: &Series,
    middle: i32,
    scale: f64,
    colour: RGBColor,
) -> Drawn<'a> {
    picture::bar(area, series.summary, (BARS, middle), scale, colour)?;
    let ratio = series.against_base.as_ref();
    let against = ratio.map_or(String::new(), |ratio| {
        if ratio.difference {
            format!("  {}x", figure(ratio.times.median))
        } else {
            "  no difference".to_owned()
        }
    });
    let label = format!("{}{against}", figure(series.summary.median));
    picture::write(area, &label, (BARS_END + 12, middle), 13, HPos::Left)
}
