//! Huge pages on loan: `hugepages pool reserve --lease` returns its pages once its input closes, so however this process ends.

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
    /// Sees to it that `amount` can be had from the pool.
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
            // A Ctrl-C at the terminal is for this process; the pages stay until the tests are over.
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
            Some("none") => bail!("the pool cannot be changed here"),
            Some("memory") => bail!("too little memory is available for {amount} of huge pages"),
            Some("short") => bail!("the kernel gave fewer huge pages than {amount}"),
            _ => bail!("no huge pages"),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.input.take());
        // The pages are back when it has ended; it says itself what went wrong.
        let _ = self.holder.wait();
    }
}
