//! How an error ends the program: its message, its hint and its exit code.

use std::io;

use hugepages::compare::CompareError;
use hugepages::demo_model::Error as DemoModelError;
use hugepages::plan::{LimitsError, PlanError};
use hugepages::pool::PoolError;
use hugepages::serve::ServeError;
use hugepages::store::StoreError;
use hugepages::tlb::TlbError;

use super::{Exit, programs};

/// Prints an error with its hint, and returns the exit code.
pub fn report(error: &anyhow::Error) -> Exit {
    let broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    // `hugepages … | head` is a success.
    if error.chain().any(broken_pipe) {
        return Exit::Success;
    }
    eprintln!("error: {error:#}");
    let (hint, exit) = advice(error);
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    exit
}

/// The hint for an error, and its exit code.
fn advice(error: &anyhow::Error) -> (Option<String>, Exit) {
    if let Some(cause) = error.downcast_ref::<DemoModelError>() {
        let exit = match cause {
            DemoModelError::Cancelled => Exit::Interrupted,
            _ => Exit::Failure,
        };
        return (cause.hint(), exit);
    }
    if let Some(cause) = error.downcast_ref::<PoolError>() {
        let exit = if cause.is_short() {
            Exit::Short
        } else {
            Exit::Failure
        };
        return (cause.hint(&programs::own_command()), exit);
    }
    if let Some(cause) = error.downcast_ref::<StoreError>() {
        let exit = match cause {
            StoreError::Cancelled => Exit::Interrupted,
            StoreError::Differs { .. } => Exit::Unequal,
            cause if cause.is_short() => Exit::Short,
            _ => Exit::Failure,
        };
        return (cause.hint(&programs::own_command()), exit);
    }
    if let Some(cause) = error.downcast_ref::<CompareError>() {
        let exit = match cause {
            CompareError::Cancelled(_) => Exit::Interrupted,
            cause if cause.is_unequal() => Exit::Unequal,
            _ => Exit::Failure,
        };
        return (cause.hint(), exit);
    }
    if let Some(cause) = error.downcast_ref::<TlbError>() {
        let exit = match cause {
            TlbError::Cancelled(_) => Exit::Interrupted,
            TlbError::NoRoom { .. } => Exit::Short,
            _ => Exit::Failure,
        };
        return (cause.hint(), exit);
    }
    if let Some(cause) = error.downcast_ref::<ServeError>() {
        return (cause.hint(), Exit::Failure);
    }
    if let Some(cause) = error.downcast_ref::<PlanError>() {
        return (cause.hint().map(str::to_owned), Exit::Failure);
    }
    if let Some(cause) = error.downcast_ref::<LimitsError>() {
        let exit = match cause {
            LimitsError::Model { .. } | LimitsError::NoMemory | LimitsError::NoPool => {
                Exit::Failure
            }
            _ => Exit::Usage,
        };
        return (cause.hint().map(str::to_owned), exit);
    }
    (None, Exit::Failure)
}
