//! llama.cpp's server, with `--hugepages`: command line in, exit code out.

mod notify;

use std::env;
use std::ffi::{CString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;
use std::process;
use std::ptr;

use llama_hugepages::ffi;

fn main() {
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
    // SAFETY: `pointers` holds `count` strings and a null pointer, and lives until the process ends.
    let code = unsafe { ffi::lh_server_main(count, pointers.as_mut_ptr()) };
    process::exit(code)
}
