//! llama.cpp's server, with `--hugepages`: command line in, exit code out.

mod notify;

use std::env;
use std::ffi::{CString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;
use std::process;
use std::ptr;
use std::thread::{self, JoinHandle};

use llama_hugepages::ffi;

/// As much as the kernel usually gives a main thread.
const STACK: usize = 8 << 20;

/// Runs the server in a second thread. The kernel gives signals to the main thread, where llama.cpp's handler locks a mutex.
/// If this thread already holds the mutex, SIGTERM blocks the server forever instead of ending it.
fn main() {
    let server = thread::Builder::new()
        .name("server".into())
        .stack_size(STACK)
        .spawn(serve);
    let code = match server.map(JoinHandle::join) {
        Ok(Ok(code)) => code,
        // The standard library has printed the panic, and uses this code for one of the main thread.
        Ok(Err(_)) => 101,
        Err(error) => {
            eprintln!("llama-server: cannot start a thread: {error}");
            1
        }
    };
    process::exit(code)
}

/// Returns the exit code.
fn serve() -> c_int {
    let args: Vec<_> = env::args_os().collect();
    notify::when_ready(&args);
    // The kernel passes C strings, which contain no zero byte.
    let args: Vec<CString> = args
        .into_iter()
        .filter_map(|arg| CString::new(arg.into_vec()).ok())
        .collect();
    let mut pointers: Vec<*mut c_char> = args.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
    pointers.push(ptr::null_mut());
    #[expect(
        clippy::cast_possible_wrap,
        reason = "the kernel counted them in an int"
    )]
    let count = args.len() as c_int;
    // SAFETY: `pointers` holds `count` strings and a null pointer, and outlives the call.
    unsafe { ffi::lh_server_main(count, pointers.as_mut_ptr()) }
}
