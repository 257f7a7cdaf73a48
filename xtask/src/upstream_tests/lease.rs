//! A lease on huge pages. `hugepages pool reserve --lease` returns its pages when its input closes, however this process ends.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context as _, Result, bail};

pub struct Lease {
    holder: Child,
    input: Option<ChildStdin>,
}

impl Lease {
    /// Adds pages to the pool until `amount` is usable.
    pub fn take(tool: &Path, amount: &str) -> Result<Self> {
        let mut holder = Command::new(tool)
            .args([
                "pool",
                "reserve",
                amount,
                "--usable",
                "--try-hard",
                "--lease",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A process group of its own, so that Ctrl-C does not return the pages before the tests end.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run `{}`", tool.display()))?;
        let output = holder.stdout.take();
        let lease = Self {
            input: holder.stdin.take(),
            holder,
        };
        let mut answer = String::new();
        if let Some(output) = output {
            BufReader::new(output).read_line(&mut answer)?;
        }
        match answer.split_whitespace().next() {
            Some("ok") => Ok(lease),
            Some("none") => bail!("cannot change the pool of huge pages on this machine"),
            Some("memory") => bail!("too little memory is available for {amount} of huge pages"),
            Some("short") => bail!("the kernel could not allocate {amount} of huge pages"),
            _ => bail!("`hugepages pool reserve` gave no valid answer"),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.input.take());
        // The holder returns the pages before it ends, and prints its own errors.
        let _ = self.holder.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    /// A script that prints `answer`, waits for the end of its input, and writes its arguments to a file.
    ///
    /// Another process writes it. If this one had it open for writing while a parallel test starts a program, that program would
    /// inherit the open file for a moment, and the kernel would refuse to run the script (ETXTBSY).
    fn tool(dir: &TempDir, answer: &str) -> PathBuf {
        let (text, path) = (dir.path().join("text"), dir.path().join("tool"));
        let mark = dir.path().join("returned").display().to_string();
        let script = format!("#!/bin/sh\necho '{answer}'\ncat\necho \"$@\" > '{mark}'\n");
        fs::write(&text, script).unwrap();
        let mut install = Command::new("install");
        let done = install.arg("--mode=755").args([&text, &path]).status();
        assert!(done.unwrap().success());
        path
    }

    #[test]
    fn pages_are_lent_until_the_lease_is_dropped() {
        let dir = TempDir::new().unwrap();
        let returned = dir.path().join("returned");
        let lease = Lease::take(&tool(&dir, "ok 128"), "256M").unwrap();
        assert!(!returned.exists());
        drop(lease);
        let arguments = fs::read_to_string(returned).unwrap();
        assert!(
            arguments.starts_with("pool reserve 256M ") && arguments.contains("--lease"),
            "{arguments}"
        );
    }

    #[test]
    fn a_refusal_says_why() {
        for (answer, why) in [
            ("none", "cannot change the pool"),
            ("memory 100 256 1024", "too little memory"),
            ("short 0 3", "could not allocate"),
            ("", "no valid answer"),
        ] {
            let dir = TempDir::new().unwrap();
            let said = Lease::take(&tool(&dir, answer), "256M").err().unwrap();
            assert!(said.to_string().contains(why), "{answer}: {said}");
        }
    }
}
