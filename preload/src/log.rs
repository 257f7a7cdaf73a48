//! The output of this library: errors, warnings and one line about the first model to stderr, or everything to the file that
//! `HUGEPAGES_PRELOAD_LOG` names.
//!
//! stderr belongs to the program, so the library writes whole lines with one call each, and nothing that the user cannot use.

use std::cell::RefCell;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, mem, ptr};

use crate::{ffi, next};

/// Names the file for the whole log.
const LOG: &str = "HUGEPAGES_PRELOAD_LOG";
/// Starts every line.
const PREFIX: &str = "hugepages-preload: ";

unsafe extern "C" {
    fn ggml_log_set(
        callback: Option<unsafe extern "C" fn(ffi::ggml_log_level, *const c_char, *mut c_void)>,
        data: *mut c_void,
    );
}

/// Sends the engine's log here. Engines of the program have logs of their own.
pub fn install() {
    // SAFETY: the callback lives as long as the process, and never unwinds.
    unsafe { ggml_log_set(Some(on_engine_log), ptr::null_mut()) };
}

/// A line about the memory of a model: to stderr once, because a program may map many models.
pub fn tell(text: &str) {
    static IS_TOLD: AtomicBool = AtomicBool::new(false);
    write(text, !IS_TOLD.swap(true, Ordering::Relaxed));
}

/// A line for the user, always.
pub fn warn(text: &str) {
    write(text, true);
}

thread_local! {
    /// The start of a line, because the engine logs in pieces.
    static LINE: RefCell<(ffi::ggml_log_level, String)> = const { RefCell::new((ffi::GGML_LOG_LEVEL_NONE, String::new())) };
}

unsafe extern "C" fn on_engine_log(
    level: ffi::ggml_log_level,
    text: *const c_char,
    _data: *mut c_void,
) {
    // SAFETY: the engine passes a C string.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let _ = LINE.try_with(|line| {
        let Ok(mut line) = line.try_borrow_mut() else {
            return;
        };
        if level != ffi::GGML_LOG_LEVEL_CONT {
            line.0 = level;
        }
        line.1.push_str(&text);
        if line.1.ends_with('\n') {
            let whole = mem::take(&mut line.1);
            let is_for_user =
                matches!(line.0, ffi::GGML_LOG_LEVEL_WARN | ffi::GGML_LOG_LEVEL_ERROR);
            write(
                &with_variables(without_function(whole.trim_end())),
                is_for_user,
            );
        }
    });
}

/// The engine starts its lines with the name of a function, which tells the user nothing.
fn without_function(line: &str) -> &str {
    let is_function = |name: &str| {
        name.contains('_')
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    match line.split_once(": ") {
        Some((name, rest)) if is_function(name) => rest,
        _ => line,
    }
}

/// The engine's hints name options of llama-server. Here, variables take their place.
pub fn with_variables(hint: &str) -> String {
    let hint = hint.replace("--hugepage-policy ", "LLAMA_ARG_HUGEPAGE_POLICY=");
    let hint = hint.replace("--hugepage-size ", "LLAMA_ARG_HUGEPAGE_SIZE=");
    hint.replace("--hugepage-store ", "LLAMA_ARG_HUGEPAGE_STORE=")
}

fn write(text: &str, is_for_user: bool) {
    let line = format!("{PREFIX}{text}\n");
    let is_logged = env::var_os(LOG).is_some_and(|path| append(&path, true, line.as_bytes()));
    if is_for_user && !is_logged {
        put(libc::STDERR_FILENO, line.as_bytes());
    }
}

/// Appends to a file, which other processes may write too. Returns whether the file could be opened.
pub fn append(path: &OsStr, may_create: bool, bytes: &[u8]) -> bool {
    let Ok(path) = CString::new(path.as_bytes()) else {
        return false;
    };
    let create = if may_create { libc::O_CREAT } else { 0 };
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CLOEXEC | create;
    // SAFETY: a C string.
    let file = unsafe { libc::open(path.as_ptr(), flags, 0o644) };
    if file == -1 {
        return false;
    }
    put(file, bytes);
    // SAFETY: opened above.
    unsafe { libc::close(file) };
    true
}

/// A program whose stderr is closed or full loses the line. A pipe that nobody reads would end the program, which has written nothing, with
/// SIGPIPE; so this thread takes the signal itself.
fn put(file: c_int, bytes: &[u8]) {
    // SAFETY: zero is a value of both types.
    let (mut pipe, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { mem::zeroed() };
    // SAFETY: room for the sets.
    unsafe {
        libc::sigemptyset(&raw mut pipe);
        libc::sigaddset(&raw mut pipe, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const pipe, &raw mut before);
    }
    // SAFETY: the bytes are whole.
    let n = unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) };
    if n == -1 && next::errno() == libc::EPIPE {
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: no room for the description of the signal is needed.
        unsafe { libc::sigtimedwait(&raw const pipe, ptr::null_mut(), &raw const now) };
    }
    // SAFETY: the set from before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_function_is_left_out_of_a_line() {
        assert_eq!(
            without_function("ggml_hugepages_plan: no pages: 3"),
            "no pages: 3"
        );
        assert_eq!(without_function("check_shortage: only 5"), "only 5");
        assert_eq!(without_function("hint: run this"), "hint: run this");
        assert_eq!(without_function("needs: x"), "needs: x");
    }

    #[test]
    fn a_hint_names_what_this_user_can_set() {
        let hint = "sysctl vm.nr_hugepages=13, or use --hugepage-policy prefer to load with fewer huge pages";
        let expected = "sysctl vm.nr_hugepages=13, or use LLAMA_ARG_HUGEPAGE_POLICY=prefer to load with fewer huge pages";
        assert_eq!(with_variables(hint), expected);
    }
}
