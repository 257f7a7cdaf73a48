//! A program that knows nothing of huge pages, under the preload library.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::fs::{MemfdFlags, memfd_create};

use super::server::code;
use super::{ForwardedSignals, Outcome, Progress, ServeError, SudoUser, executable, missing_pages};
use crate::child_process::end_with_parent;
use crate::kernel::{HugePageSize, processes};
use crate::plan::Plan;

/// File name of the preload library, as Cargo builds it.
pub const LIBRARY: &str = "libhugepages_preload.so";

/// Variables of the preload library.
pub(crate) const ON: &str = "LLAMA_ARG_HUGEPAGES";
pub(crate) const POLICY: &str = "LLAMA_ARG_HUGEPAGE_POLICY";
pub(crate) const PRELOAD_MIN: &str = "HUGEPAGES_PRELOAD_MIN";
const SIZE: &str = "LLAMA_ARG_HUGEPAGE_SIZE";
const REPORT: &str = "HUGEPAGES_PRELOAD_REPORT";
pub(crate) const PRELOAD: &str = "LD_PRELOAD";

/// Starts a report in the file of all reports.
const SEPARATOR: char = '\x1e';

/// A program to run under the preload library.
#[derive(Debug)]
pub struct Preloaded {
    program: PathBuf,
    arguments: Vec<OsString>,
    library: PathBuf,
    policy: Option<String>,
    size: Option<String>,
    wrapper: Vec<OsString>,
}

/// How huge pages are used.
#[derive(Debug, Default)]
pub struct Options {
    /// `require` or `prefer`; `None`: the environment, or `prefer`.
    pub policy: Option<String>,
    /// As `--hugepage-size`.
    pub size: Option<String>,
}

impl Preloaded {
    /// Checks the program and the library. Under sudo, the program runs as the user who called sudo.
    ///
    /// # Errors
    /// [`ServeError`], before anything is taken.
    pub fn new(words: &[OsString], library: PathBuf, options: Options) -> Result<Self, ServeError> {
        let (name, arguments) = words.split_first().ok_or(ServeError::NoProgramName)?;
        let program = executable::find(name)?;
        if !library.is_file() {
            return Err(ServeError::NoLibrary(library));
        }
        // ld.so(8): both separate the libraries of the list.
        if library
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .any(|byte| b" :".contains(byte))
        {
            return Err(ServeError::LibraryPath(library));
        }
        let user = SudoUser::read()?;
        Ok(Self {
            program,
            arguments: arguments.to_vec(),
            library,
            policy: options.policy,
            size: options.size,
            wrapper: user.as_ref().map(SudoUser::wrapper).unwrap_or_default(),
        })
    }

    /// Words before the program: they run it as another user, and end it with this process.
    pub fn wrapper(&self) -> &[OsString] {
        &self.wrapper
    }

    /// The arguments of the program, if it is a llama-server, whose arguments decide the need too.
    pub fn server_arguments(&self) -> &[OsString] {
        if self
            .program
            .file_name()
            .is_some_and(|name| name == "llama-server")
        {
            &self.arguments
        } else {
            &[]
        }
    }

    /// Adds the missing pages, runs the program, and returns the pages. Also returns the report of each process that used a model.
    ///
    /// # Errors
    /// [`ServeError`]
    pub fn run(
        &self,
        pages: &BTreeMap<HugePageSize, u64>,
        signals: &ForwardedSignals,
        progress: &dyn Progress,
    ) -> Result<(Outcome, Vec<String>), ServeError> {
        let mut leases = Vec::new();
        missing_pages::add(pages, signals, &mut leases, progress)?;
        if signals.stopped() {
            return Ok((Outcome::Interrupted, Vec::new()));
        }
        let reports = memfd_create("hugepages-reports", MemfdFlags::CLOEXEC)
            .map_err(|error| ServeError::Wait(error.into()))?;
        let mut reports = File::from(reports);
        let mut child = self.spawn(&reports)?;
        signals.forward_to(&child);
        let status = child.wait().map_err(ServeError::Wait)?;
        signals.forward_to_none();
        drop(leases);
        let mut text = String::new();
        let _ = reports
            .rewind()
            .and_then(|()| reports.read_to_string(&mut text));
        Ok((Outcome::Served(code(status)), last_of_each(&text)))
    }

    fn spawn(&self, reports: &File) -> Result<Child, ServeError> {
        let mut words = self.wrapper.clone();
        words.push(self.program.clone().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(&self.arguments);
        command
            .env(ON, "1")
            .env(PRELOAD, preload(&self.library, env::var_os(PRELOAD)));
        // By its path, because the program may close all files that it inherits.
        command.env(REPORT, processes::path_of(reports.as_fd()));
        if let Some(policy) = &self.policy {
            command.env(POLICY, policy);
        } else if env::var_os(POLICY).is_none() {
            // A program that knows nothing of huge pages cannot explain a shortage.
            command.env(POLICY, "prefer");
        }
        if let Some(size) = &self.size {
            command.env(SIZE, size);
        }
        if !io::stdin().is_terminal() {
            // A signal to the group of this process reaches the program once, through this process.
            command.process_group(0);
        }
        if self.wrapper.is_empty() {
            end_with_parent(&mut command);
        }
        command.spawn().map_err(|source| ServeError::Start {
            program: self.program.display().to_string(),
            source,
        })
    }
}

/// The value of `LD_PRELOAD`: the library first, so that it sees every call before another preload library does.
fn preload(library: &Path, before: Option<OsString>) -> OsString {
    let mut value = library.as_os_str().to_owned();
    if let Some(before) = before.filter(|before| !before.is_empty()) {
        value.push(":");
        value.push(before);
    }
    value
}

/// The last report of each process.
fn last_of_each(text: &str) -> Vec<String> {
    let mut reports: Vec<(&str, &str)> = Vec::new();
    for entry in text.split(SEPARATOR) {
        let Some((pid, table)) = entry.split_once('\n') else {
            continue;
        };
        reports.retain(|(of, _)| *of != pid);
        reports.push((pid, table));
    }
    reports
        .into_iter()
        .map(|(_, table)| table.to_owned())
        .collect()
}

/// The pages that a program needs that maps its model whole, as stock llama.cpp does.
///
/// The preload library gives pages to the whole file. If the program then repacks weights, the library returns their pages, except some
/// at the borders of tensors that stay.
pub fn pages_of_program(plan: &Plan) -> BTreeMap<HugePageSize, u64> {
    let mut pages = plan.pages();
    let Some((size, planned)) = plan.pages_that_may_be_missing() else {
        return pages;
    };
    let of_weights = plan
        .needs
        .iter()
        .filter(|need| matches!(need.kind.as_str(), "weights" | "repacked"));
    let of_weights: u64 = of_weights.map(|need| need.pages).sum();
    let file = std::fs::metadata(&plan.model).map_or(0, |it| it.len());
    let borders = if plan.repacked_bytes() > 0 {
        BORDERS + of_weights / BORDERS
    } else {
        0
    };
    let needed = size.pages_for(file).max(of_weights + borders);
    pages.insert(size, planned.saturating_sub(of_weights) + needed);
    pages
}

/// So many pages, and one in so many, stay at borders of repacked tensors.
const BORDERS: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_comes_before_those_of_the_user() {
        let library = Path::new("/l.so");
        assert_eq!(preload(library, None), "/l.so");
        assert_eq!(preload(library, Some("".into())), "/l.so");
        assert_eq!(preload(library, Some("/j.so".into())), "/l.so:/j.so");
    }

    #[test]
    fn only_the_last_report_of_a_process_is_shown() {
        let text = "\u{1e}7\nfirst\n\u{1e}8\nother\n\u{1e}7\nlast\n";
        assert_eq!(last_of_each(text), ["other\n", "last\n"]);
        assert!(last_of_each("").is_empty());
    }
}
