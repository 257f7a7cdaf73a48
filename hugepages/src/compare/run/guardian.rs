//! Cleans up cgroups, mounts and directories, even if this process is killed.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Reads names until its input ends with this process, then cleans up. It retries, because a cgroup and a mount stay busy until their
/// servers have died.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT PIPE
cgroup= mount= control= folder=
while IFS= read -r line; do
    case $line in
        cgroup\ *) cgroup=${line#cgroup } ;;
        control\ *) control=${line#control } ;;
        mount\ *) mount=${line#mount } ;;
        folder\ */llama-hugepages-compare-*) folder=${line#folder } ;;
    esac
done
tries=0
while [ $tries -lt 100 ]; do
    [ -z "$cgroup" ] || [ ! -d "$cgroup" ] || rmdir "$cgroup" 2>/dev/null
    if [ -n "$mount" ] && [ -d "$mount" ]; then
        umount "$mount" 2>/dev/null
        rmdir "$mount" 2>/dev/null
    fi
    [ -d "$cgroup" ] || [ -d "$mount" ] || break
    tries=$((tries + 1))
    sleep 0.1
done
[ -z "$folder" ] || rm -rf "$folder"
[ -z "$control" ] || echo -memory > "$control" 2>/dev/null
[ ! -d "$cgroup" ] && [ ! -d "$mount" ] && [ ! -d "$folder" ]
"#;

/// A waiting shell. Dropping the value starts the clean-up and waits for its end.
#[derive(Debug)]
pub struct Guardian {
    shell: Child,
    input: Option<ChildStdin>,
}

impl Guardian {
    pub fn start() -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Its own process group, so that a Ctrl-C at the terminal does not reach it.
            .process_group(0)
            .spawn()?;
        let input = shell.stdin.take();
        Ok(Self { shell, input })
    }

    /// Registers a thing to clean up before it exists: `cgroup`, `mount`, `control`, `folder`. The shell removes only directories
    /// with our name, because a killed process may write only a part of a path.
    pub fn tell(&mut self, what: &str, path: &Path) -> io::Result<()> {
        let Some(input) = &mut self.input else {
            return Ok(());
        };
        writeln!(input, "{what} {}", path.display())?;
        input.flush()
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.shell.wait();
    }
}
