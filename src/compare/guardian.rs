//! Puts away what must not outlive this process, also when that is killed.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Reads what to put away until its input ends, which the end of this process brings about, whatever ended it. Servers die with
/// this process, too, but take a moment, and until then a cgroup and a mount are busy.
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

/// A shell that waits. Dropping it puts everything away and waits for that.
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
            // A Ctrl-C at the terminal is not for it.
            .process_group(0)
            .spawn()?;
        let input = shell.stdin.take();
        Ok(Self { shell, input })
    }

    /// What to put away, said before it is there: `cgroup`, `mount`, `control`, `folder`. Of folders only ones with our name
    /// are removed: a line may be a part of a path.
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
