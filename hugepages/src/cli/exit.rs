//! The exit codes, and their table in `--help`.

use std::process::{ExitCode, Termination};

/// Exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Success,
    Failure,
    Usage,
    /// Too few huge pages or too little memory. Nothing was changed.
    Short,
    /// A comparison found a difference: tokens of two programs, or an image and its checksums.
    Unequal,
    /// The code with which a shell reports a process that Ctrl-C ended.
    Interrupted,
    /// The exit code of the server that this process ran.
    Server(u8),
}

impl Exit {
    pub const TABLE: &str = "\
Exit codes:
  0    success, or the reader of the output closed the pipe
  1    failure; stderr contains the reason
  2    invalid arguments
  3    too few huge pages, or too little memory
  5    difference found: tokens with and without huge pages, or a resident image and its checksums
  130  interrupted by Ctrl-C, SIGTERM or SIGHUP; no partial result remains";
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Short => 3,
            Self::Unequal => 5,
            Self::Interrupted => 130,
            Self::Server(code) => code,
        })
    }
}
