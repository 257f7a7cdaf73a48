//! Programs that a command runs to their end.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Runs a program. An error names it.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status();
    let name = command.get_program().display();
    let status = status.with_context(|| format!("cannot run `{name}`"))?;
    ensure!(status.success(), "`{name}` failed: {status}");
    Ok(())
}
