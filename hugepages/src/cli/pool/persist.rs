//! `hugepages pool persist` and `unpersist`: print the changes, ask, then change the files.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, Result};

use hugepages::kernel::Root;
use hugepages::pool::persist::{Persistent, written};

use super::which_pool::WhichPool;
use crate::cli::Exit;

#[derive(Debug, clap::Args)]
pub struct Persist {
    #[command(flatten)]
    which: WhichPool,
    /// Total of the pool at boot, including the pages for other programs: a number, or `current`
    #[arg(long, value_name = "N", default_value = "current")]
    pages: Pages,
    /// Replace files that were edited by hand
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Debug, clap::Args)]
pub struct Unpersist {
    /// Also remove files that were edited by hand
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    consent: Consent,
}

/// Whether the command may change files.
#[derive(Debug, clap::Args)]
struct Consent {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Print the changes, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Consent {
    /// Asks if neither option is set.
    fn is_given(&self) -> Result<bool> {
        if self.dry_run || self.yes {
            return Ok(!self.dry_run);
        }
        if !io::stdin().is_terminal() {
            eprintln!(
                "error: cannot ask for confirmation: standard input is not a terminal\nhint: --yes changes the files without a question"
            );
            return Ok(false);
        }
        write!(io::stderr(), "change the files? [y/N] ")?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    fn not_done(&self) -> Exit {
        if self.dry_run {
            Exit::Success
        } else {
            Exit::Failure
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Pages {
    Current,
    Number(u64),
}

impl std::str::FromStr for Pages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "current" => Ok(Self::Current),
            _ => text
                .parse()
                .map(Self::Number)
                .map_err(|_| format!("`{text}` is neither a number of pages nor `current`")),
        }
    }
}

pub fn persist(root: &Root, args: &Persist) -> Result<Exit> {
    let counter = args.which.counter(root)?;
    let now = counter.read()?.persistent();
    let pages = match args.pages {
        Pages::Current => now,
        Pages::Number(pages) => pages,
    };
    let persistent = Persistent::new(root, counter.size, counter.node, pages);
    let mut changed = Vec::new();
    for setting in &persistent.settings {
        let present = setting.present(args.force)?;
        if present != setting.text {
            diff(&setting.path.display().to_string(), &present, &setting.text)?;
            changed.push(setting);
        }
    }
    if changed.is_empty() {
        writeln!(io::stdout(), "nothing to change")?;
    } else if !args.consent.is_given()? {
        return Ok(args.consent.not_done());
    }
    for setting in changed {
        setting.write()?;
        writeln!(io::stdout(), "wrote `{}`", setting.path.display())?;
    }
    if let Some(parameters) = &persistent.kernel_parameters {
        boot_notes(parameters, pages > now)?;
    }
    Ok(Exit::Success)
}

pub fn unpersist(root: &Root, args: &Unpersist) -> Result<Exit> {
    let files = written(root, args.force)?;
    if files.is_empty() {
        writeln!(io::stdout(), "nothing to remove")?;
        return Ok(Exit::Success);
    }
    for path in &files {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read `{}`", path.display()))?;
        diff(&path.display().to_string(), &text, "")?;
    }
    if !args.consent.is_given()? {
        return Ok(args.consent.not_done());
    }
    for path in &files {
        fs::remove_file(path).with_context(|| format!("cannot remove `{}`", path.display()))?;
        writeln!(io::stdout(), "removed `{}`", path.display())?;
        if path.extension().is_some_and(|extension| extension == "cfg") {
            writeln!(
                io::stdout(),
                "run `update-grub`, so that the next boot omits these kernel parameters"
            )?;
        }
    }
    Ok(Exit::Success)
}

/// Prints all lines of both files, because each has only a few lines.
fn diff(path: &str, old: &str, new: &str) -> io::Result<()> {
    let name = |text: &str| if text.is_empty() { "/dev/null" } else { path }.to_owned();
    let mut out = io::stdout().lock();
    writeln!(out, "--- {}\n+++ {}", name(old), name(new))?;
    for (sign, text) in [('-', old), ('+', new)] {
        for line in text.lines() {
            writeln!(out, "{sign}{line}")?;
        }
    }
    Ok(())
}

fn boot_notes(parameters: &str, more: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if more {
        writeln!(
            out,
            "reboot with these kernel parameters: a running machine rarely has free memory in pieces of this size"
        )?;
    }
    writeln!(
        out,
        "\
kernel parameters: {parameters}
  GRUB          add them to a file in /etc/default/grub.d, or to GRUB_CMDLINE_LINUX in /etc/default/grub, then run `update-grub`
                (Fedora and derivatives: `grubby --update-kernel=ALL --args=\"{parameters}\"`)
  systemd-boot  add them to /etc/kernel/cmdline, then run `kernel-install add-all`; or to `options` in the loader's entry
  cloud images  do the steps for GRUB in a script of the first boot, then reboot; without GRUB, add them when you build the image"
    )
}
