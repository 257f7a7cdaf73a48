//! The perplexity of a text from `llama-perplexity` of both sides, which must be equal to the last digit.

use std::env;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::server::spawn;
use super::{Cancelled, CompareError, Runner, Scratch};

/// Some thousand words that the repository contains anyway.
const TEXT: &str = include_str!("../../../README.md");

/// Small, so that the text fills the context a few times.
const CONTEXT: &str = "128";

/// The equal output of both programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Perplexity {
    /// Name of the model.
    pub model: String,
    /// Command lines.
    pub commands: Vec<Vec<String>>,
    /// Output: `[1]…,[2]…` for each part, and the estimate.
    pub said: String,
}

/// Arguments of `llama-perplexity` for a model, without the text.
pub fn perplexity_arguments(model: &Path) -> Vec<String> {
    let model = model.to_string_lossy().into_owned();
    ["--model", &model, "--ctx-size", CONTEXT, "--chunks", "4"]
        .map(str::to_owned)
        .to_vec()
}

impl Runner<'_> {
    /// Runs both programs over the same text. Only ours gets the arguments `more`.
    ///
    /// # Errors
    /// [`CompareError::UnequalPerplexity`], and errors of a program.
    pub fn perplexity(
        &self,
        name: &str,
        model: &Path,
        programs: [&Path; 2],
        more: &[String],
    ) -> Result<Perplexity, CompareError> {
        let read_error = |source| CompareError::Read {
            path: PathBuf::from("the text"),
            source,
        };
        let scratch = Scratch::new_in(&env::temp_dir()).map_err(read_error)?;
        let text = scratch.path().join("text");
        fs::write(&text, TEXT).map_err(read_error)?;
        let mut commands = Vec::new();
        let mut said = Vec::new();
        for (program, more) in programs.into_iter().zip([&[][..], more]) {
            let mut args = perplexity_arguments(model);
            args.extend(["--file".to_owned(), text.to_string_lossy().into_owned()]);
            args.extend(more.iter().cloned());
            said.push(self.estimate(program, &args)?);
            args.insert(0, program.to_string_lossy().into_owned());
            commands.push(args);
        }
        let (said_b, said_a) = (
            said.pop().unwrap_or_default(),
            said.pop().unwrap_or_default(),
        );
        if said_a != said_b {
            return Err(CompareError::UnequalPerplexity {
                a: "stock".to_owned(),
                b: "hugepages".to_owned(),
                said_a,
                said_b,
            });
        }
        Ok(Perplexity {
            model: name.to_owned(),
            commands,
            said: said_a,
        })
    }

    fn estimate(&self, program: &Path, args: &[String]) -> Result<String, CompareError> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let failed = |reason: String| CompareError::NoAnswer {
            name: name.clone().into_owned(),
            reason,
        };
        let start_error = |source| CompareError::Start {
            program: program.to_owned(),
            source,
        };
        let mut log = tempfile::tempfile().map_err(start_error)?;
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(start_error)?)
            .stderr(log.try_clone().map_err(start_error)?);
        let mut child = spawn(&mut command, None).map_err(start_error)?;
        let began = Instant::now();
        let status = loop {
            if let Ok(Some(status)) = child.try_wait() {
                break status;
            }
            let is_cancelled = self.cancelled.load(Ordering::Relaxed);
            if is_cancelled || began.elapsed() > self.patience {
                let _ = child.kill();
                let _ = child.wait();
                return Err(if is_cancelled {
                    Cancelled.into()
                } else {
                    failed("did not end within the time limit".to_owned())
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut said = String::new();
        let read = std::io::Seek::rewind(&mut log).and_then(|()| log.read_to_string(&mut said));
        read.map_err(|error| failed(error.to_string()))?;
        figures(&said).ok_or_else(|| {
            let last = said.lines().last().unwrap_or_default();
            failed(format!("{status}: {last}"))
        })
    }
}

/// The line with the parts and the line with the estimate, without their prefixes.
fn figures(said: &str) -> Option<String> {
    let line = |mark: &str| {
        let line = said.lines().find(|line| line.contains(mark))?;
        Some(line[line.find(mark)?..].trim().to_owned())
    };
    let estimate = line("Final estimate:")?;
    Some(match line("[1]") {
        Some(parts) => format!("{parts} {estimate}"),
        None => estimate,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_figures_are_compared() {
        let log = "0.01 I perplexity: 0.05 seconds per pass\n[1]4.1,[2]5.2,\nFinal estimate: PPL = 5.2 +/- 0.1\n\nload time = 3 ms";
        assert_eq!(
            figures(log).unwrap(),
            "[1]4.1,[2]5.2, Final estimate: PPL = 5.2 +/- 0.1"
        );
        assert_eq!(figures("error: no model"), None);
    }
}
