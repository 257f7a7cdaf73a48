//! Kernel settings that a test changes and then restores.
//! Lives here: writing and restoring. Not here: the pool (`pool`). Hold its lock, because settings cover the whole machine too.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::guardian::Guardian;

const RESTORE: &str = r#"
    trap '' INT TERM HUP QUIT PIPE
    lines=
    while IFS= read -r line; do lines="$lines$line
"; done
    printf '%s' "$lines" | { while read -r path value; do echo "$value" > "$path" || left=1; done; exit ${left:-0}; }
"#;

/// A setting and its value.
pub type Setting<'a> = (&'a str, String);

/// Dropping the value, or killing its process, restores the settings.
pub struct Settings {
    _guardian: Guardian,
}

impl Settings {
    /// Sets `new` and later `old`, each in its order. An error is the reason to skip the test.
    pub fn change(new: &[Setting], old: &[Setting]) -> Result<Self, String> {
        for (path, _) in new {
            OpenOptions::new()
                .write(true)
                .open(path)
                .map_err(|error| format!("no right to change {path}: {error}"))?;
        }
        let mut guardian = Guardian::start(RESTORE, None);
        // The guardian learns of the change first, so that it restores even if this process is killed in between.
        for (path, value) in old {
            guardian.tell(&format!("{path} {value}"));
        }
        let settings = Self {
            _guardian: guardian,
        };
        for (path, value) in new {
            fs::write(path, value).map_err(|error| format!("{path}: {error}"))?;
        }
        Ok(settings)
    }
}

/// `vm.overcommit_*`
pub mod overcommit {
    use super::{Setting, Settings, fs};

    pub const MODE: &str = "/proc/sys/vm/overcommit_memory";
    const KBYTES: &str = "/proc/sys/vm/overcommit_kbytes";
    const RATIO: &str = "/proc/sys/vm/overcommit_ratio";

    fn value(path: &str) -> Result<String, String> {
        let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        Ok(text.trim().to_owned())
    }

    /// Mode, size and ratio.
    pub fn values() -> Result<[String; 3], String> {
        Ok([value(MODE)?, value(KBYTES)?, value(RATIO)?])
    }

    /// Limits ordinary memory to the current use of all processes and `left` more bytes. An error is the reason to skip the test.
    pub fn strict(left: u64) -> Result<Settings, String> {
        let [mode, kbytes, ratio] = values()?;
        // The kernel sets the ratio to 0 if the size is written, and the size to 0 if the ratio is.
        let limit: Setting = if kbytes == "0" {
            (RATIO, ratio)
        } else {
            (KBYTES, kbytes)
        };
        let meminfo = fs::read_to_string("/proc/meminfo").map_err(|error| error.to_string())?;
        let committed = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("Committed_AS:"))
            .ok_or("no Committed_AS in /proc/meminfo")?;
        let committed: u64 = committed
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .map_err(|error| format!("Committed_AS: {error}"))?;
        Settings::change(
            &[
                (KBYTES, (committed + left / 1024).to_string()),
                (MODE, "2".to_owned()),
            ],
            &[(MODE, mode), limit],
        )
    }
}

/// Not a test: the process that the test below kills.
#[test]
#[ignore = "started by `settings_are_restored_after_the_test_process_is_killed`"]
fn change_a_setting_until_killed() {
    let path = env::var("LLAMA_HUGEPAGES_TEST_SETTING").expect("the test that starts this sets it");
    let _settings = Settings::change(&[(&path, "2".to_owned())], &[(&path, "1".to_owned())])
        .expect("the file can be written");
    println!("changed");
    loop {
        std::thread::park();
    }
}

/// Uses a file in place of a setting, because the test must not lose a setting of the machine.
#[test]
fn settings_are_restored_after_the_test_process_is_killed() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = dir.path().join("setting");
    fs::write(&path, "1\n").expect("the file is ours");
    let mut process = Command::new(env::current_exe().expect("the test has a path"))
        .args(["--ignored", "--exact", "--nocapture"])
        .arg("support::settings::change_a_setting_until_killed")
        .env("LLAMA_HUGEPAGES_TEST_SETTING", &path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("this binary can be started");
    let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
    let is_changed = lines
        .map_while(Result::ok)
        .any(|line| line.contains("changed"));
    let during = fs::read_to_string(&path).expect("the file is ours");
    process.kill().expect("the child is ours");
    process.wait().expect("the child is ours");
    assert!(is_changed, "the other process never changed the file");
    assert_eq!(during, "2");
    let is_restored = super::wait_for(std::time::Duration::from_secs(10), || {
        fs::read_to_string(&path).is_ok_and(|text| text == "1\n")
    });
    assert!(is_restored, "{:?}", fs::read_to_string(&path));
}
