//! Sentences about a program that this one runs: for `serve` and `exec`.

use std::io::{self, Write};

use hugepages::pool::lease;
use hugepages::serve::{Event, Missing};

/// Prints what happened, for a command of this name.
pub fn tell(command: &str, event: &Event<'_>) {
    let say = |text: &str| say(command, text);
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

/// Prints on standard error, and ignores an error such as a closed pipe.
pub fn say(command: &str, text: &str) {
    let _ = writeln!(io::stderr(), "{command}: {text}");
}
