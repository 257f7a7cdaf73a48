//! The arguments of `hugepages plan`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ValueEnum;

/// Compute how many huge pages a model needs, and how many are missing
///
/// Takes the arguments of llama-server. Reads only the headers of the model, takes no page and needs no root. The numbers are
/// those of a load with the same arguments, because llama-server computes both with the same code.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes:\n  0  enough pages are usable, or the limits are printed\n  1  llama-server refuses the model or the arguments\n  2  the arguments give no limits\n  3  pages are missing; the output has the number"
)]
pub struct Args {
    /// llama-server that computes the plan [default: in the directory of this program]
    #[arg(long, value_name = "PROGRAM")]
    pub server: Option<PathBuf>,

    /// Format of the output
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,

    /// Arguments of llama-server, for example -m model.gguf --ctx-size 8192
    #[arg(last = true, required = true)]
    pub server_arguments: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables and sentences
    #[default]
    Human,
    /// One JSON object with a `schema` number
    Json,
    /// Values for deploy/chart: the limits of containers
    Helm,
    /// Variables for deploy/compose/.env: the same limits
    Env,
}
