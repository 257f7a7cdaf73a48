//! Adding the pages that a program lacks.

use std::collections::BTreeMap;

use super::{Event, ForwardedSignals, Missing, Progress, ServeError};
use crate::kernel::{self, HugePageSize, Root};
use crate::pool::lease::{Answer, Lease};

/// Adds pages until so many of each size are usable. Returns `false`, and tells the reason, if some of them stay missing.
pub(super) fn add(
    pages: &BTreeMap<HugePageSize, u64>,
    signals: &ForwardedSignals,
    leases: &mut Vec<Lease>,
    progress: &dyn Progress,
) -> Result<bool, ServeError> {
    let mut is_complete = true;
    for (&size, &pages) in pages {
        let usable = kernel::usable(&Root::system(), size);
        if usable >= pages {
            continue;
        }
        let asked = Lease::ask(size, pages, &["--at-least", "0"], signals.flag())?;
        let Some((lease, answer)) = asked else {
            return Ok(false);
        };
        leases.push(lease);
        let (usable, why) = match answer {
            Answer::Complete { .. } => continue,
            Answer::Short { usable, .. } => (usable, Missing::Fragmented),
            Answer::Memory {
                available,
                needed,
                keep,
            } => {
                let why = Missing::Memory {
                    available,
                    needed,
                    keep,
                };
                (usable, why)
            }
            Answer::Refused => (usable, Missing::NoRight),
        };
        is_complete = false;
        progress.tell(&Event::Short {
            size,
            pages,
            usable,
            why,
        });
    }
    Ok(is_complete)
}
