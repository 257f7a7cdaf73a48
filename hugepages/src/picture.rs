//! Common parts of the diagrams: size, colours, text alternatives.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::stats::Summary;

/// Colours for dark and bright backgrounds that colour-blind readers can tell apart (Okabe and Ito).
pub const COLOURS: [RGBColor; 6] = [
    RGBColor(0x8c, 0x8c, 0x8c),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
];

/// Colours of text and lines for the reader's colour scheme, because the diagram has no background.
const STYLE: &str = "\
svg { color: #1f2328 }
@media (prefers-color-scheme: dark) { svg { color: #e6edf3 } }
text { fill: currentColor; opacity: 1 }
line, polyline[stroke='#000000'] { stroke: currentColor }";

pub const BAR: i32 = 18;

pub type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
pub type Drawn<'a> =
    Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// An SVG document with a title and a description, which must not contain special characters of XML.
pub fn document(
    (width, height): (i32, i32),
    title: &str,
    description: &str,
    draw: impl for<'a> FnOnce(&Area<'a>) -> Drawn<'a>,
) -> String {
    let mut picture = String::new();
    {
        let size = (width.cast_unsigned(), height.cast_unsigned());
        let area = SVGBackend::with_string(&mut picture, size).into_drawing_area();
        // A write to a string cannot fail.
        let _ = draw(&area);
    }
    let Some(end) = picture.find('>') else {
        return picture;
    };
    let (open, rest) = picture.split_at(end);
    let labels = r#" role="img" aria-labelledby="title desc""#;
    format!(
        "{open}{labels}>\n<title id=\"title\">{title}</title>\n<desc id=\"desc\">{description}</desc>\n<style>\n{STYLE}\n</style>{}",
        &rest[1..]
    )
}

/// A small count as a coordinate.
pub fn coordinate(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Writes text to the right or to the left of a point.
pub fn write<'a>(
    area: &Area<'a>,
    text: &str,
    at: (i32, i32),
    size: i32,
    anchor: HPos,
) -> Drawn<'a> {
    let style = ("sans-serif", size)
        .into_font()
        .color(&BLACK)
        .pos(Pos::new(anchor, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style))
}

/// A bar to the median, and a line from the smallest to the largest value over it.
pub fn bar<'a>(
    area: &Area<'a>,
    summary: Summary,
    (left, middle): (i32, i32),
    scale: f64,
    colour: RGBColor,
) -> Drawn<'a> {
    let x = |value: f64| left + (value * scale).round() as i32;
    let corners = [
        (left, middle - BAR / 2),
        (x(summary.median), middle + BAR / 2),
    ];
    area.draw(&Rectangle::new(corners, colour.filled()))?;
    let (min, max) = (x(summary.min), x(summary.max));
    let line = |from, to| PathElement::new(vec![from, to], BLACK);
    area.draw(&line((min, middle), (max, middle)))?;
    for end in [min, max] {
        area.draw(&line((end, middle - 4), (end, middle + 4)))?;
    }
    Ok(())
}
