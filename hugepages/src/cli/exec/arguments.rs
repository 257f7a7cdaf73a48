//! The arguments of `hugepages exec`.

use std::ffi::OsString;
use std::path::PathBuf;

/// Run a program that was built without huge pages, with its models on huge pages
///
/// Preloads a library that maps GGUF files and large aligned buffers on huge pages, for a dynamically linked program such as the
/// llama-server of a distribution, Ollama, or Python with llama-cpp-python. With --plan-from, adds the missing pages to the pool,
/// and returns them when the program ends, however it ends. Prints a report at the end.
///
/// Under sudo, it changes the pool as root and runs the program as the user who called sudo.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hugepages exec --plan-from model.gguf -- llama-server -m model.gguf -c 8192
  hugepages exec -- python3 chat.py

The exit code is the program's. Variables of the library:
  HUGEPAGES_PRELOAD_MIN  size of the smallest file that is a model [default: 64M]
  HUGEPAGES_PRELOAD_LOG  file for its whole log; without it, stderr gets warnings and one line")]
pub struct Args {
    /// Model that the program will load. Its need is added to the pool. For a llama-server, its arguments count too
    #[arg(long, value_name = "MODEL")]
    pub plan_from: Option<PathBuf>,

    /// If pages are short: fail (require), or use ordinary memory for the rest (prefer)
    /// [default: `LLAMA_ARG_HUGEPAGE_POLICY`, or prefer]
    #[arg(long, value_parser = ["require", "prefer"])]
    pub policy: Option<String>,

    /// Page size: auto, thp, 2M, 1G [default: `LLAMA_ARG_HUGEPAGE_SIZE`, or auto]
    #[arg(long, value_name = "SIZE")]
    pub size: Option<String>,

    /// Preload library [default: in the directory of this program]
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,

    /// Program and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "PROGRAM"
    )]
    pub words: Vec<OsString>,
}
