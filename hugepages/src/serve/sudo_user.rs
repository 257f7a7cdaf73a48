//! The user who called sudo. The pool needs the rights of root, the server does not.

use std::env;
use std::ffi::OsString;
use std::process::Command;

use rustix::process::geteuid;

use super::ServeError;

/// A user who became root with sudo.
#[derive(Debug)]
pub struct SudoUser {
    uid: u32,
    gid: u32,
    name: String,
    home: String,
}

impl SudoUser {
    /// `None` for root itself, and for everybody who is not root.
    ///
    /// # Errors
    /// [`ServeError::NoUsers`]
    pub fn read() -> Result<Option<Self>, ServeError> {
        let number = |name| env::var(name).ok()?.parse::<u32>().ok();
        let (Some(uid), Some(gid)) = (number("SUDO_UID"), number("SUDO_GID")) else {
            return Ok(None);
        };
        if uid == 0 || !geteuid().is_root() {
            return Ok(None);
        }
        // `getent` also finds users of a directory service, which /etc/passwd lacks.
        let output = Command::new("getent")
            .args(["passwd", &uid.to_string()])
            .output()
            .map_err(ServeError::NoUsers)?;
        let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let fields: Vec<&str> = line.split(':').collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or_default().to_owned();
        Ok(Some(Self {
            uid,
            gid,
            name: field(0),
            home: field(5),
        }))
    }

    /// Words before a command: they run it as the user, and the kernel kills it when this process ends. A change of user clears the death
    /// signal of a process, so `setpriv` sets it afterwards.
    pub fn wrapper(&self) -> Vec<OsString> {
        let groups = if self.name.is_empty() {
            "--clear-groups"
        } else {
            "--init-groups"
        };
        let mut words: Vec<OsString> = vec!["setpriv".into()];
        words.extend(["--reuid".into(), self.uid.to_string().into()]);
        words.extend(["--regid".into(), self.gid.to_string().into()]);
        words.extend([groups, "--pdeathsig", "KILL", "env"].map(OsString::from));
        if !self.name.is_empty() {
            words.push(format!("HOME={}", self.home).into());
            words.push(format!("USER={}", self.name).into());
            words.push(format!("LOGNAME={}", self.name).into());
        }
        words
    }
}
