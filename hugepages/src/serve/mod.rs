//! Serving a model: adds the pages that it lacks, runs the server, and returns the pages. Also for a program that is not our server.
//! Not here: changes of a pool, and what the user sees.
//!
//! ```text
//! launch.rs             the order of the steps      missing_pages.rs  pages on loan
//! server.rs             one run of the server       address.rs        its host and port
//! preloaded.rs          another program         executable.rs     whether it can have a preload library
//! forwarded_signals.rs  signals for the server      sudo_user.rs      the user who called sudo
//! progress.rs           what the user sees          error.rs          why a model cannot be served
//! ```

mod address;
mod error;
mod executable;
mod forwarded_signals;
mod launch;
mod missing_pages;
mod preloaded;
mod progress;
mod server;
mod sudo_user;

pub use address::Address;
pub use error::ServeError;
pub use forwarded_signals::ForwardedSignals;
pub use launch::{Launch, Outcome};
pub use preloaded::{LIBRARY, Options, Preloaded, pages_of_program};
pub(crate) use preloaded::{ON, POLICY, PRELOAD, PRELOAD_MIN};
pub use progress::{Event, Missing, Progress};
pub use sudo_user::SudoUser;
