//! The times to the first token of the case `traffic` as a diagram: a line for each side, from the fastest message to the slowest.

use std::fmt::Write;

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use crate::compare::run::{PERCENTILES, Percentile, Traffic};
use crate::picture::{self, Area, COLOURS, Drawn};
use crate::stats::figure;

const SIZE: (i32, i32) = (900, 360);
const MARGIN: i32 = 24;
const LEFT: i32 = 90;
const RIGHT: i32 = 620;
const TOP: i32 = 60;
const BOTTOM: i32 = 310;
const TITLE: &str = "Time to the first token of messages to models behind a router";

impl Traffic {
    /// The times as an SVG document. `None` without messages.
    pub fn svg(&self) -> Option<String> {
        let times = [0, 1].map(|side| self.sorted(side));
        let all = || times.iter().flatten().copied();
        let (fastest, slowest) = (all().reduce(f64::min)?, all().reduce(f64::max)?);
        let scale = Scale::new(fastest, slowest);
        let picture = picture::document(SIZE, TITLE, &self.description(&times), |area| {
            picture::write(area, TITLE, (MARGIN, MARGIN + 6), 18, HPos::Left)?;
            axes(area, &scale)?;
            for (row, ((name, times), colour)) in
                (0..).zip(self.sides.iter().zip(&times).zip([COLOURS[0], COLOURS[3]]))
            {
                area.draw(&PathElement::new(
                    line(times, &scale),
                    colour.stroke_width(3),
                ))?;
                let middle = TOP + 10 + row * 70;
                let mark = [(RIGHT + 24, middle - 5), (RIGHT + 34, middle + 5)];
                area.draw(&Rectangle::new(mark, colour.filled()))?;
                picture::write(area, name, (RIGHT + 42, middle), 13, HPos::Left)?;
                for (below, text) in (1..).zip(percentiles(times)) {
                    let at = (RIGHT + 42, middle + below * 18);
                    picture::write(area, &text, at, 12, HPos::Left)?;
                }
            }
            area.present()
        });
        Some(picture)
    }

    /// Text alternative of the diagram.
    fn description(&self, times: &[Vec<f64>; 2]) -> String {
        let mut text = String::new();
        for (name, times) in self.sides.iter().zip(times) {
            let _ = write!(text, "{name}: {}. ", percentiles(times).join(", "));
        }
        text.trim_end().to_owned()
    }
}

/// The percentiles in the legend, in two lines.
fn percentiles(sorted: &[f64]) -> [String; 2] {
    let of = |percentile: Percentile| {
        let time = percentile.of(sorted).unwrap_or_default();
        format!("{} {} s", percentile.id, figure(time))
    };
    let [a, b, c, d] = PERCENTILES.map(of);
    [[a, b], [c, d]].map(|line| line.join(", "))
}

/// Seconds on a logarithmic axis, between two powers of ten.
struct Scale {
    first: i32,
    last: i32,
}

impl Scale {
    fn new(fastest: f64, slowest: f64) -> Self {
        let first = fastest.max(1e-6).log10().floor() as i32;
        let last = (slowest.max(1e-6).log10().ceil() as i32).max(first + 1);
        Self { first, last }
    }

    fn x(&self, seconds: f64) -> i32 {
        let share =
            (seconds.max(1e-6).log10() - f64::from(self.first)) / f64::from(self.last - self.first);
        LEFT + (share * f64::from(RIGHT - LEFT)).round() as i32
    }
}

/// A point for each message: its time, and the share of messages that were not slower.
fn line(sorted: &[f64], scale: &Scale) -> Vec<(i32, i32)> {
    let count = sorted.len() as f64;
    let points = sorted.iter().enumerate().map(|(before, &seconds)| {
        let share = (before + 1) as f64 / count;
        (scale.x(seconds), y(share))
    });
    let mut points: Vec<_> = points.collect();
    points.dedup();
    points
}

fn y(share: f64) -> i32 {
    BOTTOM - (share * f64::from(BOTTOM - TOP)).round() as i32
}

fn axes<'a>(area: &Area<'a>, scale: &Scale) -> Drawn<'a> {
    let thin = BLACK.mix(0.2);
    for percent in [0, 50, 90, 99] {
        let height = y(f64::from(percent) / 100.0);
        let across = vec![(LEFT, height), (RIGHT, height)];
        area.draw(&PathElement::new(across, thin))?;
        let text = format!("{percent} %");
        picture::write(area, &text, (LEFT - 10, height), 12, HPos::Right)?;
    }
    for power in scale.first..=scale.last {
        let seconds = 10_f64.powi(power);
        let at = scale.x(seconds);
        area.draw(&PathElement::new(vec![(at, TOP), (at, BOTTOM)], thin))?;
        let text = format!("{seconds} s");
        picture::write(area, &text, (at, BOTTOM + 16), 12, HPos::Center)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_message_is_at_the_right_and_at_the_top() {
        let scale = Scale::new(0.02, 7.0);
        assert_eq!((scale.first, scale.last), (-2, 1));
        let line = line(&[0.02, 0.02, 0.5, 10.0], &scale);
        assert_eq!(line.last(), Some(&(RIGHT, TOP)));
        assert!(
            line.is_sorted_by(|a, b| a.0 <= b.0 && a.1 >= b.1),
            "{line:?}"
        );
    }
}
