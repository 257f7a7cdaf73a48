//! Undoes a change to the machine when the test ends, however it ends.

use std::fs::File;
use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};

/// A shell that waits for the end of its input and then cleans up.
///
/// The kernel closes the pipes of a process at its end. So the same code cleans up after a test that passed, failed or was killed, and
/// holds the test's lock until then.
pub struct Guardian {
    shell: Child,
    input: Option<ChildStdin>,
}

impl Guardian {
    /// `script` reads its settings from standard input, and cleans up at the end of the input.
    pub fn start(script: &str, lock: Option<&File>) -> Self {
        let stdout = lock.map_or(Stdio::null(), |lock| {
            Stdio::from(lock.try_clone().expect("the lock can be shared"))
        });
        // In a session of its own the guardian survives a Ctrl-C at the terminal, which ends the tests.
        let mut shell = Command::new("setsid")
            .args(["sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(stdout)
            .spawn()
            .expect("setsid and sh are installed");
        let input = shell.stdin.take();
        Self { shell, input }
    }

    /// Sends one more line to the script.
    pub fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("open until the end");
        writeln!(input, "{line}").expect("the guardian is alive");
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.input.take());
        let status = self.shell.wait().expect("the guardian is a child of ours");
        // A second panic would hide the first.
        assert!(
            status.success() || std::thread::panicking(),
            "could not clean up after the test: {status}"
        );
    }
}
