//! The order of the steps: plan, add pages, run the server, and again if other processes took the pages.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::missing_pages;
use super::server::{Ended, Run};
use super::{Address, Event, ForwardedSignals, Progress, ServeError, SudoUser};
use crate::plan::{GROW, Plan};
use crate::server_arguments::{STORE, chooses_policy, names_model, switches_off};

/// Maximum number of starts, because other processes may take the pages first.
const ATTEMPTS: usize = 5;
/// Pause before the next start: another starting server takes its pages within this time.
const PAUSE: Duration = Duration::from_millis(500);

/// A server to start.
#[derive(Debug)]
pub struct Launch {
    program: PathBuf,
    arguments: Vec<OsString>,
    store: Option<PathBuf>,
    wrapper: Vec<OsString>,
    address: Address,
}

/// How the service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The exit code of the server, as a shell reports it.
    Served(u8),
    /// Too few pages under the policy `require`.
    Short,
    /// A signal arrived before the server started.
    Interrupted,
}

impl Launch {
    /// Checks the program and its arguments. Under sudo, the server runs as the user who called sudo.
    ///
    /// # Errors
    /// [`ServeError`], before anything is taken.
    pub fn new(program: PathBuf, arguments: Vec<OsString>) -> Result<Self, ServeError> {
        if !program.is_file() {
            return Err(ServeError::NoProgram(program));
        }
        if !names_model(&arguments) {
            return Err(ServeError::NoModel);
        }
        if switches_off(&arguments) {
            return Err(ServeError::SwitchedOff);
        }
        let address = Address::of(&arguments);
        if address.is_taken() {
            return Err(ServeError::AddressInUse {
                address: address.to_string(),
                port: address.port(),
            });
        }
        let user = SudoUser::read()?;
        Ok(Self {
            program,
            arguments,
            store: None,
            wrapper: user.as_ref().map(SudoUser::wrapper).unwrap_or_default(),
            address,
        })
    }

    /// Words before the program: they run it as another user, and end it with this process.
    pub fn wrapper(&self) -> &[OsString] {
        &self.wrapper
    }

    /// Makes the server attach to a store.
    pub fn use_store(&mut self, store: PathBuf) {
        self.store = Some(store);
    }

    /// Adds the missing pages, and runs the server until it ends.
    ///
    /// # Errors
    /// [`ServeError`]
    pub fn run(
        &self,
        signals: &ForwardedSignals,
        progress: &Arc<dyn Progress>,
    ) -> Result<Outcome, ServeError> {
        let arguments = self.server_arguments();
        let mut leases = Vec::new();
        for attempt in 1..=ATTEMPTS {
            let with_growth = [&arguments[..], &[GROW.into()]].concat();
            let plan = Plan::ask_through(&self.wrapper, &self.program, &with_growth)?;
            let bytes = plan.page_bytes();
            let is_complete = missing_pages::add(&plan.pages(), signals, &mut leases, &**progress)?;
            if signals.stopped() {
                return Ok(Outcome::Interrupted);
            }
            let mut arguments = arguments.clone();
            if let Some(context) = plan.context.filter(|_| is_complete) {
                // The pages are for exactly this context.
                arguments.extend(["--ctx-size".into(), context.tokens.to_string().into()]);
            }
            let policy = (!is_complete && !chooses_policy(&arguments)).then_some("prefer");
            let run = Run {
                program: &self.program,
                arguments: &arguments,
                policy,
                wrapper: &self.wrapper,
                address: &self.address,
                bytes,
                progress,
            };
            match run.wait(signals)? {
                Ended::Served(code) => return Ok(Outcome::Served(code)),
                // A process that starts at the same time may take the pages before the server reserves them.
                Ended::Short if attempt < ATTEMPTS && is_complete && !signals.stopped() => {
                    progress.tell(&Event::PagesTaken);
                    thread::sleep(PAUSE);
                }
                Ended::Short => break,
            }
        }
        Ok(Outcome::Short)
    }

    fn server_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--hugepages".into()];
        if let Some(store) = &self.store {
            arguments.extend([STORE.into(), store.into()]);
        }
        // Last, so that the user's arguments override ours.
        arguments.extend(self.arguments.iter().cloned());
        arguments
    }
}
