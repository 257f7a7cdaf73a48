//! The bar of the load, the server's log above it, and sentences.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;

use hugepages::pool::lease;
use hugepages::serve::{Event, Missing, Progress};

use crate::cli::output;

/// The bar of the running load. A new one for each load.
pub struct Bar(Mutex<ProgressBar>);

impl Default for Bar {
    fn default() -> Self {
        Self(Mutex::new(ProgressBar::hidden()))
    }
}

impl Bar {
    fn bar(&self) -> ProgressBar {
        let bar = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bar.clone()
    }
}

impl Progress for Bar {
    fn begin(&self, bytes: u64) {
        let bar = output::progress_bar(output::LOADING);
        bar.set_prefix("loading");
        bar.set_length(bytes);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bar;
    }

    fn is_shown(&self) -> bool {
        !self.bar().is_hidden()
    }

    fn loaded(&self, bytes: u64) {
        self.bar().set_position(bytes);
    }

    fn log(&self, line: &[u8]) {
        self.bar().suspend(|| {
            let _ = io::stderr().write_all(line);
        });
    }

    fn end(&self) {
        self.bar().finish_and_clear();
    }

    fn tell(&self, event: &Event<'_>) {
        match event {
            Event::Ready(address) => say(&format!(
                "ready at {address} (Ctrl-C ends the server and returns the pages)"
            )),
            Event::PagesTaken => {
                say("other processes took pages in the meantime; adding more pages");
            }
            Event::Short {
                size,
                pages,
                usable,
                why,
            } => match why {
                Missing::Fragmented => {
                    say(&format!(
                        "{usable} of {pages} huge pages are usable; the rest of the model uses ordinary memory"
                    ));
                    say(
                        "hint: the kernel finds most pages right after boot, before memory is fragmented",
                    );
                }
                Missing::Memory {
                    available,
                    needed,
                    keep,
                } => say(&format!(
                    "adding pages takes {needed} MiB of memory, but {available} MiB are available and {keep} MiB must stay free; \
                     {usable} of {pages} huge pages are usable; the rest of the model uses ordinary memory"
                )),
                Missing::NoRight => {
                    say(&format!(
                        "{usable} of {pages} huge pages of {size} are usable, and this user cannot change the pool; \
                         the rest of the model uses ordinary memory"
                    ));
                    say(&format!("hint: {}", lease::command(*size, *pages)));
                }
            },
        }
    }
}

/// Prints on standard error, and ignores an error such as a closed pipe.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "serve: {text}");
}
