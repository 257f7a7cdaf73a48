//! Serving a model: adds the pages that it lacks, runs the server, and returns the pages.
//! Not here: changes of a pool, and what the user sees.
//!
//! ```text
//! launch.rs             the order of the steps      missing_pages.rs  pages on loan
//! server.rs             one run of the server       address.rs        its host and port
//! forwarded_signals.rs  signals for the server      sudo_user.rs      the user who called sudo
//! progress.rs           what the user sees          error.rs          why a model cannot be served
//! ```

mod address;
mod error;
mod forwarded_signals;
mod launch;
mod missing_pages;
mod progress;
mod server;
mod sudo_user;

pub use address::Address;
pub use error::ServeError;
pub use forwarded_signals::ForwardedSignals;
pub use launch::{Launch, Outcome};
pub use progress::{Event, Missing, Progress};
pub use sudo_user::SudoUser;
