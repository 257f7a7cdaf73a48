//! Output of all commands: tables and bars for people, JSON for programs.
//! Lives here: width, colour, the JSON envelope. Not here: the content.

use std::env;
use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// `--format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables and sentences
    #[default]
    Human,
    /// One JSON object with a `schema` number
    Json,
}

/// Options of every command that prints a result.
#[derive(Clone, Copy, Debug, clap::Args)]
// No group, because the arguments of a command already form the group `Args`, and a debug build of clap refuses two of the same name.
#[group(skip)]
pub struct Args {
    /// Format of the output
    #[arg(long, value_enum, default_value_t, global = true)]
    pub format: Format,
}

/// Properties of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Columns.
    pub width: u16,
    /// Whether the output may contain escape sequences.
    pub colour: bool,
}

impl Screen {
    const DEFAULT_WIDTH: u16 = 120;
    const MIN_WIDTH: u16 = 40;

    /// Reads the properties of stdout. `COLUMNS` overrides the width of the terminal. A pipe has 120 columns. Pipes and
    /// `NO_COLOR` get no colour.
    pub fn stdout() -> Self {
        let columns = env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
        let is_terminal = io::stdout().is_terminal();
        let of_terminal = || {
            rustix::termios::tcgetwinsize(io::stdout())
                .ok()
                .map(|size| size.ws_col)
        };
        let width = columns
            .or_else(of_terminal)
            .filter(|width| *width > 0)
            .unwrap_or(Self::DEFAULT_WIDTH);
        Self {
            width: width.max(Self::MIN_WIDTH),
            colour: is_terminal && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }
}

/// Formats a table without lines: the first column to the left, numbers to the right, at most as wide as the screen.
pub fn table(screen: Screen, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(screen.width)
        .set_header(head);
    let rows: Vec<_> = rows.into_iter().collect();
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        let is_number = |text: &str| text.starts_with(|c: char| c.is_ascii_digit() || c == '-');
        let numbers = rows
            .iter()
            .filter_map(|row| row.get(index))
            .all(|text| is_number(text));
        if index > 0 && numbers && !rows.is_empty() {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.add_rows(rows);
    let lines = table.lines().map(|line| line.trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// Replaces control characters, because names come from other users and must not control the terminal.
pub fn printable(text: &str) -> String {
    let letter = |c: char| if c.is_control() && c != '\n' { '?' } else { c };
    text.chars().map(letter).collect()
}

/// Template of the bar of a model that is loaded.
pub const LOADING: &str =
    "{prefix} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

/// A progress bar on stderr; hidden if stderr is no terminal.
pub fn progress_bar(template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Prints `{"schema": N, …}` on stdout.
pub fn json<T: Serialize>(schema: u32, what: &T) -> io::Result<()> {
    write_json(io::stdout().lock(), schema, what)
}

/// Writes the same JSON to any writer.
pub fn write_json<T: Serialize>(mut out: impl Write, schema: u32, what: &T) -> io::Result<()> {
    #[derive(Serialize)]
    struct Envelope<'a, T> {
        schema: u32,
        #[serde(flatten)]
        what: &'a T,
    }
    serde_json::to_writer_pretty(&mut out, &Envelope { schema, what })?;
    writeln!(out)
}

/// `1 image`, `2 images`, `2 processes`
pub fn count(n: usize, what: &str) -> String {
    let ending = match n {
        1 => "",
        _ if what.ends_with('s') => "es",
        _ => "s",
    };
    format!("{n} {what}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_flush_right_and_lines_end_without_blanks() {
        let screen = Screen {
            width: 80,
            colour: false,
        };
        let rows = [
            vec!["2 MiB".into(), "12".into(), "a".into()],
            vec!["1 GiB".into(), "3".into(), "b".into()],
        ];
        let text = table(screen, &["size", "pages", "what"], rows);
        assert_eq!(text, "size   pages  what\n2 MiB     12  a\n1 GiB      3  b");
    }
}
