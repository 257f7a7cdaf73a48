//! Undoes a change to the machine when the test ends, however it ends.

use std::fs::File;
use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};

/// A shell that waits for the end of its input and then cleans up.
///
/// The end of a process closes its pipes, whatever killed it. So the same code cleans up after a test that
/// passed, one that failed, and one that was killed; and until it has, it holds the lock that it was given.
pub struct Guardian {
    shell: Child,
    input: Option<ChildStdin>,
}

impl Guardian {
    /// `script` reads what it has to know from its standard input, and cleans up behind its end.
    pub fn start(script: &str, lock: Option<&File>) -> Self {
        let stdout = lock.map_or(Stdio::null(), |lock| {
            Stdio::from(lock.try_clone().expect("the lock can be shared"))
        });
        // A session of its own: a Ctrl-C at the terminal ends the tests and not what cleans up behind them.
        let mut shell = Command::new("setsid")
            .args(["sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(stdout)
            .spawn()
            .expect("setsid and sh are there");
        let input = shell.stdin.take();
        Self { shell, input }
    }

    /// One more line for the script.
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
