//! `--watch`: redraws in place on a terminal, and appends through a pipe.

use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Result;
use hugepages::status::Status;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use super::tables::human;
use crate::cli::Exit;
use crate::cli::output::{Format, Screen};

pub const SCHEMA: u32 = 1;

/// Prints the status until q, Ctrl-C, or the end of the reader.
pub fn run(pause: Duration, format: Format, read: impl Fn() -> Status) -> Result<Exit> {
    // Signals arrive through a socket, so that poll sees them and none is lost between two waits.
    let (stopped, stop) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        pipe::register(signal, stop.try_clone()?)?;
    }
    let in_place = format == Format::Human && io::stdout().is_terminal();
    let _terminal = in_place.then(Terminal::enter).transpose()?;
    let mut first = true;
    loop {
        let status = read();
        let text = match format {
            Format::Json => one_line(&status)?,
            Format::Human if in_place => frame(&human(&status, Screen::stdout()), pause),
            Format::Human if first => human(&status, Screen::stdout()),
            Format::Human => format!("\n{}", human(&status, Screen::stdout())),
        };
        first = false;
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        drop(stdout);
        if let Some(exit) = wait(pause, &stopped, in_place && io::stdin().is_terminal())? {
            return Ok(exit);
        }
    }
}

fn one_line(status: &Status) -> Result<String> {
    #[derive(Serialize)]
    struct Line<'a> {
        schema: u32,
        #[serde(flatten)]
        status: &'a Status,
    }
    let line = Line {
        schema: SCHEMA,
        status,
    };
    Ok(serde_json::to_string(&line)? + "\n")
}

/// Overwrites the last frame line by line, which avoids flicker. Cuts lines that do not fit, and adds a note.
fn frame(text: &str, pause: Duration) -> String {
    let height: usize = tcgetwinsize(io::stdout())
        .map_or(24, |size| size.ws_row)
        .max(4)
        .into();
    let mut lines: Vec<&str> = text.lines().collect();
    let last = format!("every {} s; press q to quit", pause.as_secs_f64());
    if lines.len() > height - 2 {
        lines.truncate(height - 2);
        lines.push("… more lines than this screen can show");
    }
    lines.push(&last);
    format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"))
}

/// Waits for the next frame. Returns the exit code at a signal, at q, or at the end of stdin.
fn wait(pause: Duration, stopped: &UnixStream, keys: bool) -> Result<Option<Exit>> {
    let end = Instant::now() + pause;
    let stdin = io::stdin();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left)?;
        let mut waited = vec![PollFd::new(stopped, PollFlags::IN)];
        if keys {
            waited.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut waited, Some(&left)) {
            Ok(0) => return Ok(None),
            // A new window size interrupts poll.
            Err(rustix::io::Errno::INTR) => continue,
            result => result?,
        };
        if !waited[0].revents().is_empty() {
            return Ok(Some(Exit::Interrupted));
        }
        let mut key = [0];
        match rustix::io::read(&stdin, &mut key) {
            Ok(0) => return Ok(Some(Exit::Success)),
            Ok(_) if key[0].eq_ignore_ascii_case(&b'q') => return Ok(Some(Exit::Success)),
            _ => {}
        }
    }
}

/// The alternate screen of a terminal, without cursor and echo, until the value is dropped.
struct Terminal {
    before: Option<Termios>,
}

impl Terminal {
    fn enter() -> Result<Self> {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut modes = before.clone();
            modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            // Ctrl-Z would leave the shell on the alternate screen.
            modes.special_codes[SpecialCodeIndex::VSUSP] = 0;
            tcsetattr(io::stdin(), OptionalActions::Now, &modes)?;
        }
        let terminal = Self { before };
        write!(io::stdout(), "\x1b[?1049h\x1b[?25l\x1b[2J")?;
        Ok(terminal)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut stdout = io::stdout();
        let _ = write!(stdout, "\x1b[?25h\x1b[?1049l");
        let _ = stdout.flush();
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
