//! The arguments of `hugepages serve`.

use std::ffi::OsString;
use std::path::PathBuf;

/// Serve a model on huge pages
///
/// Computes the pages that the model needs, adds exactly the missing ones to the pool, runs `llama-server --hugepages`, and
/// returns the pages when the server ends, however it ends. If this user may not change the pool, it prints the command for an
/// administrator, and the server uses the free pages.
///
/// Under sudo, it changes the pool as root and runs the server as the user who called sudo.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Put the options of `serve` before the options of llama-server:
  hugepages serve -m model.gguf --port 8081
  hugepages serve --keep -m model.gguf

The exit code is llama-server's: 3 if too few pages are usable under `--hugepage-policy require`.")]
pub struct Args {
    /// Keep the weights on huge pages after the end, in a store, so that the next start attaches to them
    #[arg(long)]
    pub keep: bool,

    /// llama-server to run [default: in the directory of this program]
    #[arg(long, value_name = "PROGRAM")]
    pub server: Option<PathBuf>,

    /// Arguments of llama-server, such as -m model.gguf
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "SERVER ARGUMENTS"
    )]
    pub arguments: Vec<OsString>,
}
