//! The target of llama.cpp's log, and the causes of errors.
//!
//! llama.cpp has one log callback for the process, and calls it on the thread that logs, with pieces of lines. This module joins the pieces
//! of each thread into lines. During a call that can fail, it captures the error lines of the calling thread. If the call fails, these
//! lines become part of the [`Error`](crate::Error); otherwise they go to the log. So two loads on two threads cannot mix their causes, and
//! each cause appears once.
//!
//! A program that replaces the callback with `ffi::llama_log_set` removes these causes: errors then contain "llama.cpp
//! gave no reason".

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU8, Ordering};
use std::{io, mem};

use crate::ffi;

/// The target of llama.cpp's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogTarget {
    /// stderr, the default of llama.cpp.
    Stderr,
    /// The [`log`] crate, target `llama`, one record a line.
    LogCrate,
    /// No target.
    Nowhere,
}

static TARGET: AtomicU8 = AtomicU8::new(LogTarget::Stderr as u8);

/// The setup must be complete before this call, because it installs the callback.
pub(crate) fn set_target(target: LogTarget) {
    TARGET.store(target as u8, Ordering::Relaxed);
}

/// Makes [`on_log`] llama.cpp's callback.
pub(crate) fn install() {
    // SAFETY: `on_log` never unwinds and lives as long as the process. llama.cpp requires that no other thread logs during the call, so it
    // runs before the setup of the backends.
    unsafe { ffi::llama_log_set(Some(on_log), std::ptr::null_mut()) };
}

/// Runs `call`, and returns its result with the error lines that llama.cpp logged on this thread.
///
/// If the call succeeded, pass these lines to [`release`].
pub(crate) fn capture<T>(call: impl FnOnce() -> T) -> (T, Vec<String>) {
    // A nested call, from a progress callback, has its own lines.
    let outer = LINES.with_borrow_mut(|lines| lines.captured.replace(Vec::new()));
    let result = call();
    let lines = LINES.with_borrow_mut(|lines| mem::replace(&mut lines.captured, outer));
    (result, lines.unwrap_or_default())
}

/// Runs `call`, and drops what llama.cpp logs on this thread except the error lines, which it returns.
pub(crate) fn capture_quietly<T>(call: impl FnOnce() -> T) -> (T, Vec<String>) {
    let outer = LINES.with_borrow_mut(|lines| mem::replace(&mut lines.is_quiet, true));
    let result = capture(call);
    LINES.with_borrow_mut(|lines| lines.is_quiet = outer);
    result
}

/// Sends captured error lines to the target.
pub(crate) fn release(lines: &[String]) {
    for line in lines {
        write_line(ffi::GGML_LOG_LEVEL_ERROR, line);
    }
}

#[derive(Default)]
struct Lines {
    /// An incomplete line.
    partial: String,
    /// The level of its first piece.
    level: ffi::ggml_log_level,
    captured: Option<Vec<String>>,
    /// Whether to drop the lines that are not captured.
    is_quiet: bool,
}

thread_local! {
    static LINES: RefCell<Lines> = RefCell::default();
}

impl Lines {
    /// Takes a piece of the log. Returns the lines that it completes, without captured lines.
    fn push(
        &mut self,
        level: ffi::ggml_log_level,
        text: &str,
    ) -> Vec<(ffi::ggml_log_level, String)> {
        let mut done = Vec::new();
        if level != ffi::GGML_LOG_LEVEL_CONT {
            if !self.partial.is_empty() {
                self.end_line(&mut done);
            }
            self.level = level;
        }
        for piece in text.split_inclusive('\n') {
            self.partial.push_str(piece.trim_end_matches('\n'));
            if piece.ends_with('\n') {
                self.end_line(&mut done);
            }
        }
        done
    }

    fn end_line(&mut self, done: &mut Vec<(ffi::ggml_log_level, String)>) {
        let line = mem::take(&mut self.partial);
        match &mut self.captured {
            Some(captured) if self.level == ffi::GGML_LOG_LEVEL_ERROR => captured.push(line),
            _ if self.is_quiet => {}
            _ => done.push((self.level, line)),
        }
    }
}

unsafe extern "C" fn on_log(level: ffi::ggml_log_level, text: *const c_char, _: *mut c_void) {
    // SAFETY: llama.cpp passes a C string that lives until the callback returns.
    let text = unsafe { CStr::from_ptr(text) };
    // A logger of the `log` crate may panic, and the panic must not reach C. Only this line is lost.
    let _ = panic::catch_unwind(AssertUnwindSafe(|| {
        let text = text.to_string_lossy();
        // An ending thread has no lines any more.
        let done = LINES
            .try_with(|lines| lines.borrow_mut().push(level, &text))
            .unwrap_or_default();
        // Not under the borrow, because a logger may call llama.cpp.
        for (level, line) in done {
            write_line(level, &line);
        }
    }));
}

fn write_line(level: ffi::ggml_log_level, line: &str) {
    match TARGET.load(Ordering::Relaxed) {
        target if target == LogTarget::Stderr as u8 => {
            // A closed stderr cannot be reported.
            let _ = writeln!(io::stderr(), "{line}");
        }
        target if target == LogTarget::LogCrate as u8 => {
            log::log!(target: "llama", log_level(level), "{line}");
        }
        _ => {}
    }
}

fn log_level(level: ffi::ggml_log_level) -> log::Level {
    match level {
        ffi::GGML_LOG_LEVEL_ERROR => log::Level::Error,
        ffi::GGML_LOG_LEVEL_WARN => log::Level::Warn,
        ffi::GGML_LOG_LEVEL_DEBUG => log::Level::Debug,
        _ => log::Level::Info,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ffi::{
        GGML_LOG_LEVEL_CONT as CONT, GGML_LOG_LEVEL_ERROR as ERROR, GGML_LOG_LEVEL_INFO as INFO,
    };

    fn lines(
        pieces: &[(ffi::ggml_log_level, &str)],
        captured: bool,
    ) -> (Vec<(ffi::ggml_log_level, String)>, Lines) {
        let mut lines = Lines {
            captured: captured.then(Vec::new),
            ..Lines::default()
        };
        let done = pieces
            .iter()
            .flat_map(|(level, text)| lines.push(*level, text))
            .collect();
        (done, lines)
    }

    #[test]
    fn pieces_become_lines() {
        let (done, rest) = lines(
            &[
                (INFO, "loading ."),
                (CONT, "."),
                (CONT, ".\n"),
                (INFO, "a\nb\n"),
                (INFO, "c"),
            ],
            false,
        );
        assert_eq!(
            done,
            [
                (INFO, "loading ...".into()),
                (INFO, "a".into()),
                (INFO, "b".into())
            ]
        );
        assert_eq!(rest.partial, "c");
    }

    #[test]
    fn a_new_message_ends_the_one_before() {
        let (done, _) = lines(&[(INFO, "dots ..."), (ERROR, "broken\n")], false);
        assert_eq!(done, [(INFO, "dots ...".into()), (ERROR, "broken".into())]);
    }

    #[test]
    fn error_lines_are_set_aside_and_others_are_not() {
        let (done, rest) = lines(
            &[(INFO, "a\n"), (ERROR, "cause\nhint: do\n"), (INFO, "b\n")],
            true,
        );
        assert_eq!(done, [(INFO, "a".into()), (INFO, "b".into())]);
        assert_eq!(rest.captured.unwrap(), ["cause", "hint: do"]);
    }

    #[test]
    fn a_quiet_capture_keeps_only_errors() {
        let ((), lines) = capture_quietly(|| {
            let done = LINES.with_borrow_mut(|lines| lines.push(INFO, "a\n"));
            assert!(done.is_empty());
            LINES.with_borrow_mut(|lines| lines.push(ERROR, "cause\n"));
        });
        assert_eq!(lines, ["cause"]);
        let done = LINES.with_borrow_mut(|lines| lines.push(INFO, "b\n"));
        assert_eq!(done, [(INFO, "b".into())]);
    }

    #[test]
    fn a_capture_inside_a_capture_keeps_its_lines() {
        let say = |text| {
            let pieces = LINES.with_borrow_mut(|lines| lines.push(ERROR, text));
            assert!(pieces.is_empty());
        };
        let (((), inner), outer) = capture(|| {
            say("outer\n");
            capture(|| say("inner\n"))
        });
        assert_eq!((inner, outer), (vec!["inner".into()], vec!["outer".into()]));
    }
}
