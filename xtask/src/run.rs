//! Programs that a command runs to their end.

use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// Runs a program. An error names it.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status();
    let name = command.get_program().display();
    let status = status.with_context(|| format!("cannot run `{name}`"))?;
    ensure!(status.success(), "`{name}` failed: {status}");
    Ok(())
}

/// Runs a program, and returns its output. Its messages go to the terminal.
pub fn output(command: &mut Command) -> Result<String> {
    let output = captured(command.stderr(Stdio::inherit()))?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a program, and returns its output and its messages. An error contains the messages.
pub fn captured(command: &mut Command) -> Result<Output> {
    let output = command.output();
    let name = command.get_program().display();
    let output = output.with_context(|| format!("cannot run `{name}`"))?;
    if !output.status.success() {
        let messages = String::from_utf8_lossy(&output.stderr);
        let error = format!("`{name}` failed: {}\n{messages}", output.status);
        bail!("{}", error.trim_end());
    }
    Ok(output)
}
