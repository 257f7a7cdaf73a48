//! Processes that this one starts.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

/// Makes the kernel kill the process of a command when the thread that starts it ends, also after SIGKILL.
///
/// ```
/// use std::process::Command;
/// use hugepages::child_process::end_with_parent;
///
/// let mut command = Command::new("true");
/// end_with_parent(&mut command);
/// assert!(command.status()?.success());
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn end_with_parent(command: &mut Command) {
    let parent = getpid();
    let enter = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before the kernel could send the signal.
        if getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::Error::from(rustix::io::Errno::SRCH))
        }
    };
    // SAFETY: between fork and exec it makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(enter) };
}
