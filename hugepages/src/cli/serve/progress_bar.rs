//! The bar of the load, and the server's log above it.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;

use hugepages::serve::{Event, Progress};

use crate::cli::{events, output};

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
        events::tell("serve", event);
    }
}
