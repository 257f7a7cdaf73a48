//! `hugepages pool persist` and `unpersist`: shows what would change, asks, then does it.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, Result};

use llama_hugepages::pool::Root;
use llama_hugepages::pool::persist::{Persistent, written};

use super::Which;
use crate::cli::Exit;

#[derive(Debug, clap::Args)]
pub struct Persist {
    #[command(flatten)]
    which: Which,
    /// Total of the pool at boot, what others need included: a number, or `current`
    #[arg(long, value_name = "N", default_value = "current")]
    pages: Pages,
    /// Replace a file that was changed since
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Debug, clap::Args)]
pub struct Unpersist {
    /// Remove files that were changed since, too
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    consent: Consent,
}

/// Whether files are to be changed at all.
#[derive(Debug, clap::Args)]
struct Consent {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Show the changes only
    #[arg(long)]
    dry_run: bool,
}

impl Consent {
    /// Asks where neither option says it.
    fn is_given(&self) -> Result<bool> {
        if self.dry_run || self.yes {
            return Ok(!self.dry_run);
        }
        if !io::stdin().is_terminal() {
            eprintln!("error: nobody to ask\nhint: --yes does it without asking");
            return Ok(false);
        }
        write!(io::stderr(), "do it? [y/N] ")?;
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
            _ => text.parse().map(Self::Number).map_err(|_| {
                format!("`{text}` is not a number of pages, and not `current` either")
            }),
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
                "run `update-grub`, the parameters end with the next boot"
            )?;
        }
    }
    Ok(Exit::Success)
}

/// The files are a few lines each: all of the old one, all of the new one.
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
            "pages of this size are rarely to be had while the machine runs: a reboot with these parameters is needed"
        )?;
    }
    writeln!(
        out,
        "\
kernel parameters: {parameters}
  GRUB          a file in /etc/default/grub.d, or GRUB_CMDLINE_LINUX in /etc/default/grub, then `update-grub`
                (Fedora and its kin: `grubby --update-kernel=ALL --args=\"{parameters}\"`)
  systemd-boot  append them to /etc/kernel/cmdline, then `kernel-install add-all`, or to `options` in the loader's entry
  cloud images  the GRUB way in a start script of the first boot, then a reboot; on images without GRUB in the image's build"
    )
}
