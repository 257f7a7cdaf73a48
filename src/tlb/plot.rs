//! The report as a picture: bars with what the rounds spread over.

use std::fmt::Write;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::{Metric, Report, Series};
use super::stats::Better;
use crate::size::ByteSize;

const WIDTH: i32 = 760;
const MARGIN: i32 = 24;
const HEAD: i32 = 64;
const PANEL_HEAD: i32 = 34;
const BAR: i32 = 18;
const ROW: i32 = 28;
const BARS: i32 = 110;
const BARS_END: i32 = 560;

/// Bright enough for dark and dark enough for bright; alike to nobody, colour-blind readers included (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x8c, 0x8c, 0x8c),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
];

/// Text and lines in a colour that can be read on what the reader's system has behind it. The picture itself has no background.
const STYLE: &str = "\
svg { color: #1f2328 }
@media (prefers-color-scheme: dark) { svg { color: #e6edf3 } }
text { fill: currentColor; opacity: 1 }
line, polyline { stroke: currentColor }";

/// An SVG document: one panel for each loop, one bar for each memory that was measured, a line from the slowest to the fastest
/// round, and the figures beside it.
pub fn svg(report: &Report) -> String {
    let rows = coordinate(report.measured().count());
    let panel = PANEL_HEAD + rows * ROW;
    let height = HEAD + coordinate(Metric::ALL.len()) * panel + MARGIN;
    let size = (WIDTH.cast_unsigned(), height.cast_unsigned());
    let mut picture = String::new();
    {
        let area = SVGBackend::with_string(&mut picture, size).into_drawing_area();
        // A string takes whatever is written to it.
        let _ = draw(report, &area, panel);
    }
    let title = title(report);
    let Some(end) = picture.find('>') else {
        return picture;
    };
    let (open, rest) = picture.split_at(end);
    let labels = r#" role="img" aria-labelledby="title desc""#;
    let description = description(report);
    format!(
        "{open}{labels}>\n<title id=\"title\">{title}</title>\n<desc id=\"desc\">{description}</desc>\n<style>\n{STYLE}\n</style>{}",
        &rest[1..]
    )
}

/// Of a handful of things.
fn coordinate(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn title(report: &Report) -> String {
    let size = ByteSize::new(report.size_bytes);
    format!("The same work on pages of different sizes, {size} of memory")
}

/// For who does not see the picture. No character in it has a meaning in XML.
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

/// A value with three digits that mean something.
///
/// ```
/// use llama_hugepages::tlb::figure;
///
/// assert_eq!([361.4, 10.21, 1.499].map(figure), ["361", "10.2", "1.50"]);
/// ```
pub fn figure(value: f64) -> String {
    match value {
        value if value >= 99.95 => format!("{value:.0}"),
        value if value >= 9.995 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw<'a>(report: &Report, area: &Area<'a>, panel: i32) -> Drawn<'a> {
    let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    area.draw(&Text::new(title(report), (MARGIN, MARGIN), text(18)))?;
    for (number, metric) in (0i32..).zip(Metric::ALL) {
        let top = HEAD + number * panel;
        let better = match metric.better() {
            Better::Less => "less is better",
            Better::More => "more is better",
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
            let right = text(13).pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(pages.to_string(), (BARS - 10, middle), right))?;
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
    let x = |value: f64| BARS + (value * scale).round() as i32;
    let summary = series.summary;
    let corners = [
        (BARS, middle - BAR / 2),
        (x(summary.median), middle + BAR / 2),
    ];
    area.draw(&Rectangle::new(corners, colour.filled()))?;
    let (min, max) = (x(summary.min), x(summary.max));
    let line = |from, to| PathElement::new(vec![from, to], BLACK);
    area.draw(&line((min, middle), (max, middle)))?;
    for end in [min, max] {
        area.draw(&line((end, middle - 4), (end, middle + 4)))?;
    }
    let ratio = series.against_base.as_ref();
    let against = ratio.map_or(String::new(), |ratio| {
        if ratio.difference {
            format!("  {}x", figure(ratio.times.median))
        } else {
            "  no difference".to_owned()
        }
    });
    let label = format!("{}{against}", figure(summary.median));
    let style = ("sans-serif", 13)
        .into_font()
        .color(&BLACK)
        .pos(Pos::new(HPos::Left, VPos::Center));
    area.draw(&Text::new(label, (BARS_END + 12, middle), style))
}
