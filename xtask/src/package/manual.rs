//! Man pages: those of the tool, and one for the server, whose text is that of `--help`.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::release::{VERSION, make, write};
use crate::run::{output, run};

/// Writes all pages.
pub fn write_all(server: &Path, tool: &Path, dir: &Path) -> Result<()> {
    make(dir)?;
    run(Command::new(tool).arg("man").arg(dir))?;
    // Defaults in the text may come from the environment.
    let help = output(Command::new(server).arg("--help").env_clear())?;
    write(&dir.join("llama-server.1"), &page_of_server(&help))
}

fn page_of_server(help: &str) -> String {
    let mut page = format!(
        ".TH LLAMA-SERVER 1 \"\" \"llama-hugepages {VERSION}\"\n\
         .SH NAME\nllama\\-server \\- serve a model over HTTP, with its memory on huge pages\n\
         .SH SYNOPSIS\n.B llama\\-server\n\\-m MODEL [OPTIONS]\n.SH OPTIONS\n.nf\n"
    );
    for line in help.lines() {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        // A dot or a quote at the start of a line would be a command.
        page += if line.starts_with(['.', '\'']) {
            "\\&"
        } else {
            ""
        };
        page += &line;
        page += "\n";
    }
    page + ".fi\n.SH SEE ALSO\n.BR hugepages (1)\n"
}
