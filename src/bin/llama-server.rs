//! llama.cpp's server, with `--hugepages`: command line in, exit code out.

use std::env;
use std::ffi::{CString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;
use std::process;
use std::ptr;

use llama_hugepages::ffi;

fn main() {
    // The kernel hands over C strings, so none holds a zero byte.
    let args: Vec<CString> = env::args_os()
        .filter_map(|arg| CString::new(arg.into_vec()).ok())
        .collect();
    let mut argv: Vec<*mut c_char> = args.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
    argv.push(ptr::null_mut());
    // SAFETY: `argv` holds `args.len()` strings and a null pointer, and lives until the process ends.
    let code = unsafe { ffi::lh_server_main(args.len() as c_int, argv.as_mut_ptr()) };
    process::exit(code)
}
