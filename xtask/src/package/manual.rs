//! Man pages: those of the tool, and one for each program of llama.cpp, whose text is that of `--help`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::release::{VERSION, WORKER, make, write};
use crate::run::{captured, output, run};

/// Writes all pages. `worker`: `ggml-rpc-server`, if the package has it.
pub fn write_all(server: &Path, tool: &Path, worker: Option<&Path>, dir: &Path) -> Result<()> {
    make(dir)?;
    run(Command::new(tool).arg("man").arg(dir))?;
    // Defaults in the text may come from the environment.
    let help = output(Command::new(server).arg("--help").env_clear())?;
    let text = page(
        "llama-server",
        "serve a model over HTTP, with its memory on huge pages",
        "-m MODEL [OPTIONS]",
        &help,
    );
    write(&dir.join("llama-server.1"), &text)?;
    let Some(worker) = worker else {
        return Ok(());
    };
    // The worker prints its help among its messages.
    let output = captured(Command::new(worker).arg("--help").env_clear())?;
    let messages = String::from_utf8(output.stderr)?;
    let help = messages
        .split_once("options:\n")
        .context("the help of ggml-rpc-server lists no options")?
        .1;
    let text = page(
        WORKER,
        "lend this machine to a llama.cpp server, with its memory on huge pages",
        "[OPTIONS]",
        help,
    );
    write(&dir.join(WORKER).with_extension("1"), &text)
}

fn page(name: &str, does: &str, arguments: &str, help: &str) -> String {
    let escaped = |text: &str| text.replace('\\', "\\e").replace('-', "\\-");
    let mut page = format!(
        ".TH {} 1 \"\" \"llama-hugepages {VERSION}\"\n.SH NAME\n{} \\- {does}\n.SH SYNOPSIS\n.B {}\n{}\n.SH OPTIONS\n.nf\n",
        name.to_uppercase(),
        escaped(name),
        escaped(name),
        escaped(arguments),
    );
    for line in help.lines() {
        // A dot or a quote at the start of a line would be a command.
        page += if line.starts_with(['.', '\'']) {
            "\\&"
        } else {
            ""
        };
        page += &escaped(line);
        page += "\n";
    }
    page + ".fi\n.SH SEE ALSO\n.BR hugepages (1)\n"
}
