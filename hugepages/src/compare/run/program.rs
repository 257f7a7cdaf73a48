//! A program of a comparison: its options, version and hash.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::CompareError;
use super::server::spawn;

/// Time limit for `--version` and `--help`.
const PATIENCE: Duration = Duration::from_secs(60);

/// A `llama-server` with its version and its help.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Program {
    /// Path.
    pub path: PathBuf,
    /// Output of `--version`.
    pub version: String,
    /// SHA-256 of its file, in hexadecimal; empty if unreadable.
    pub sha256: String,
    /// Output of `--help`.
    #[serde(skip)]
    pub help: String,
}

impl Program {
    /// Runs the program with `--version` and `--help`.
    ///
    /// # Errors
    /// [`CompareError::Start`] if it cannot run. A program without these options is no error.
    pub fn ask(path: &Path) -> Result<Self, CompareError> {
        let ask = |option| {
            said(path, option).map_err(|source| CompareError::Start {
                program: path.to_owned(),
                source,
            })
        };
        let version = ask("--version")?;
        let version: Vec<_> = version
            .lines()
            .filter(|line| line.starts_with("version") || line.starts_with("built"))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            version: version.join(", "),
            sha256: sha256(path).unwrap_or_default(),
            help: ask("--help")?,
        })
    }

    /// Whether its help lists an option.
    pub fn has(&self, option: &str) -> bool {
        let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
        self.help
            .split(|letter| !is_part(letter))
            .any(|word| word == option)
    }
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut part = vec![0; 1 << 20];
    loop {
        match file.read(&mut part)? {
            0 => break,
            count => hash.update(&part[..count]),
        }
    }
    let digits = hash.finalize();
    let hex = |text: String, byte: &u8| text + &format!("{byte:02x}");
    Ok(digits.iter().fold(String::new(), hex))
}

fn said(path: &Path, option: &str) -> io::Result<String> {
    let mut log = tempfile::tempfile()?;
    let mut command = Command::new(path);
    command
        .arg(option)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?);
    let mut child = spawn(&mut command, None)?;
    let asked = Instant::now();
    while child.try_wait()?.is_none() {
        if asked.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other(format!(
                "no answer to `{option}` within the time limit"
            )));
        }
        thread::sleep(Duration::from_millis(5));
    }
    let mut said = Vec::new();
    log.rewind()?;
    log.read_to_end(&mut said)?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_a_whole_word_of_the_help() {
        let program = Program {
            path: "x".into(),
            version: String::new(),
            sha256: String::new(),
            help: "-lm,   --load-mode MODE  loading\n--hugepage-store-size N".into(),
        };
        assert!(program.has("--load-mode") && program.has("-lm"));
        assert!(!program.has("--hugepage-store") && !program.has("--load"));
    }
}
