//! `hugepages doctor`: finds problems with huge pages on this machine.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use hugepages::doctor::{Diagnosis, Severity, examine};
use hugepages::kernel::Root;
use hugepages::plan::Plan;

use super::output::{self, Format, Screen};
use super::{Exit, programs};

const SCHEMA: u32 = 1;

/// Find problems with huge pages on this machine, and the commands that fix them
///
/// Changes nothing. With a model it reads up to 64 MiB of the file. The exit code is 0 if no finding is a problem, and 3
/// otherwise.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory with the `sys` and `proc` of another kernel
    #[arg(long, hide = true, value_name = "DIR")]
    root: Option<PathBuf>,

    #[command(flatten)]
    output: output::Args,

    /// Arguments of llama-server, for example -m model.gguf --ctx-size 8192
    #[arg(last = true, value_name = "LLAMA-SERVER ARGUMENTS")]
    server: Vec<OsString>,
}

/// Runs all checks and prints their findings.
pub fn run(args: &Args) -> Result<Exit> {
    let root = args
        .root
        .as_ref()
        .map_or_else(|| Ok(Root::system()), Root::at)?;
    let server = programs::beside("llama-server")?;
    let plan = (!args.server.is_empty()).then(|| Plan::ask(&server, &args.server));
    let diagnosis = examine(&root, &args.server, plan);
    match args.output.format {
        Format::Json => output::json(SCHEMA, &diagnosis)?,
        Format::Human => io::stdout().write_all(human(&diagnosis, Screen::stdout()).as_bytes())?,
    }
    Ok(if diagnosis.usable {
        Exit::Success
    } else {
        Exit::Short
    })
}

fn human(diagnosis: &Diagnosis, screen: Screen) -> String {
    let mut findings: Vec<_> = diagnosis.findings.iter().collect();
    // The worst finding stands last, next to the verdict at the end of the output.
    findings.sort_by_key(|finding| finding.severity);
    let rows = findings.iter().map(|finding| {
        let severity = match finding.severity {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Problem => "problem",
        };
        vec![
            severity.to_owned(),
            finding.id.to_owned(),
            finding.found.clone(),
            finding.meaning.clone(),
        ]
    });
    let mut text = output::table(screen, &["level", "check", "finding", "meaning"], rows);
    let commands = findings
        .iter()
        .filter_map(|finding| Some((finding.id, finding.command.as_ref()?)));
    text.push('\n');
    let mut title = Some("\nCommands\n");
    for (id, command) in commands {
        // Not in a table, because users cannot copy a command that the table breaks into lines.
        text.extend(title.take());
        text.extend([id, ":\n    ", command.as_str(), "\n"]);
    }
    text += "\nExpectations\n";
    let rows = diagnosis
        .verdict
        .iter()
        .map(|line| vec![line.of.to_owned(), line.expect.clone()]);
    text += &output::table(screen, &["subject", "expect"], rows);
    text.push('\n');
    let letter = |c: char| if c.is_control() && c != '\n' { '?' } else { c };
    text.chars().map(letter).collect()
}
