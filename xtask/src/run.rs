//! Programs that a command runs to their end.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Runs a program. An error names it.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status();
    let name = command.get_program().display();
    let status = status.with_context(|| format!("cannot run `{name}`"))?;
    ensure!(status.success(), "`{name}` failed: {status}");
    Ok(())
}

/// Runs a program, and returns what it prints.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output();
    let name = command.get_program().display();
    let output = output.with_context(|| format!("cannot run `{name}`"))?;
    ensure!(
        output.status.success(),
        "`{name}` failed: {}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a program that warns of what is right here, and prints its warnings only if it fails.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command.output();
    let name = command.get_program().display();
    let output = output.with_context(|| format!("cannot run `{name}`"))?;
    ensure!(
        output.status.success(),
        "`{name}` failed: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
