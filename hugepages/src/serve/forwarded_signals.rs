//! Signals that end this process, and the server with it.

use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;

use super::ServeError;
use crate::ending_signals::ending_signals;

/// Signals that ask this process to end. It forwards each signal to the server, which ends at once after the second one.
#[derive(Debug)]
pub struct ForwardedSignals {
    stopped: Arc<AtomicBool>,
    /// The server's process, 0 while none runs.
    server: Arc<AtomicI32>,
    /// Whether the terminal sends its signals to the server too.
    is_in_group: Arc<AtomicBool>,
}

impl ForwardedSignals {
    /// Takes the signals over.
    ///
    /// # Errors
    /// [`ServeError::NoSignals`]
    pub fn new() -> Result<Self, ServeError> {
        let mut signals = Signals::new(ending_signals()).map_err(ServeError::NoSignals)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let server = Arc::new(AtomicI32::new(0));
        let is_in_group = Arc::new(AtomicBool::new(false));
        let (is_stopped, pid, is_shared) = (
            Arc::clone(&stopped),
            Arc::clone(&server),
            Arc::clone(&is_in_group),
        );
        thread::spawn(move || {
            for signal in signals.forever() {
                is_stopped.store(true, Ordering::SeqCst);
                let server = Pid::from_raw(pid.load(Ordering::SeqCst));
                // A terminal that hangs up ends the server as `kill` does.
                let signal = if signal == SIGINT {
                    Signal::INT
                } else {
                    Signal::TERM
                };
                // Twice would mean "end at once" to many programs.
                let has_it = signal != Signal::TERM && is_shared.load(Ordering::SeqCst);
                if let Some(server) = server.filter(|_| !has_it) {
                    let _ = kill_process(server, signal);
                }
            }
        });
        Ok(Self {
            stopped,
            server,
            is_in_group,
        })
    }

    /// The program runs in the group of this process, so that it can read from the terminal. The terminal sends Ctrl-C to both.
    pub fn share_terminal(&self) {
        self.is_in_group.store(true, Ordering::SeqCst);
    }

    /// Forwards to this server from now on, also a signal that arrived before.
    pub(super) fn forward_to(&self, server: &Child) {
        let pid = Pid::from_child(server);
        self.server
            .store(pid.as_raw_nonzero().get(), Ordering::SeqCst);
        if self.stopped() {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// The server has ended.
    pub(super) fn forward_to_none(&self) {
        self.server.store(0, Ordering::SeqCst);
    }

    /// Whether a signal arrived.
    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// The flag that the first signal sets.
    pub fn flag(&self) -> &AtomicBool {
        &self.stopped
    }
}
