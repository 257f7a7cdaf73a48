//! Seccomp filters: which system calls the kernel refuses to a process that a test starts.
//! Lives here: building a filter, installing it, the lists of systemd. Not here: the refused calls and their outcomes.

use std::collections::BTreeSet;
use std::ffi::{c_int, c_long, c_ulong};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::{env, ptr};

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, sock_filter, sock_fprog,
};

/// The effect of a refused call on its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The call fails with this error number.
    Errno(c_int),
    /// The process dies of SIGSYS.
    Kill,
}

impl Refusal {
    pub const ALL: [Self; 3] = [
        Self::Errno(libc::EPERM),
        Self::Errno(libc::ENOSYS),
        Self::Kill,
    ];

    fn value(self) -> u32 {
        match self {
            Self::Errno(number) => SECCOMP_RET_ERRNO | number.cast_unsigned(),
            Self::Kill => SECCOMP_RET_KILL_PROCESS,
        }
    }
}

/// The name of a system call, and the patterns by which a filter recognizes it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub name: &'static str,
    pub matches: &'static [Match],
}

/// A call's number, and for calls with many purposes the index of an argument and the required value of its lower half.
#[derive(Clone, Copy, Debug)]
pub struct Match {
    pub number: c_long,
    pub argument: Option<(u32, Is)>,
}

impl Match {
    pub const fn any(number: c_long) -> Self {
        Self {
            number,
            argument: None,
        }
    }

    pub const fn with(number: c_long, index: u32, is: Is) -> Self {
        Self {
            number,
            argument: Some((index, is)),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Is {
    Equal(c_int),
    /// At least one of these bits.
    With(c_int),
}

/// A filter program for the kernel. Processes that a filtered process starts inherit the filter.
#[derive(Clone, Debug)]
pub struct Filter {
    program: Vec<(u16, u8, u8, u32)>,
}

// struct seccomp_data of linux/seccomp.h
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

// linux/audit.h
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

impl Filter {
    /// Refuses these calls and allows all others.
    pub fn refusing(calls: &[Call], refusal: Refusal) -> Self {
        let mut filter = Self::native();
        for Match { number, argument } in calls.iter().flat_map(|call| call.matches) {
            let number = u32::try_from(*number).expect("a number of a system call");
            filter.load(NUMBER);
            if let Some((index, is)) = argument {
                filter.unless(BPF_JEQ, number, 3);
                // Little-endian: the lower half of an argument comes first.
                filter.load(ARGUMENTS + 8 * index);
                match is {
                    Is::Equal(value) => filter.unless(BPF_JEQ, value.cast_unsigned(), 1),
                    Is::With(bits) => filter.unless(BPF_JSET, bits.cast_unsigned(), 1),
                }
            } else {
                filter.unless(BPF_JEQ, number, 1);
            }
            filter.result(refusal.value());
        }
        filter.result(SECCOMP_RET_ALLOW);
        filter
    }

    /// Allows these calls and refuses all others.
    pub fn allowing(numbers: &BTreeSet<u32>, refusal: Refusal) -> Self {
        let mut filter = Self::native();
        filter.load(NUMBER);
        for number in numbers {
            filter.unless(BPF_JEQ, *number, 1);
            filter.result(SECCOMP_RET_ALLOW);
        }
        filter.result(refusal.value());
        filter
    }

    /// Allows calls of other architectures, whose numbers differ, because no program of the tests makes them.
    fn native() -> Self {
        let mut filter = Self {
            program: Vec::new(),
        };
        filter.load(ARCHITECTURE);
        filter.push(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, NATIVE);
        filter.result(SECCOMP_RET_ALLOW);
        filter
    }

    fn push(&mut self, code: u32, if_true: u8, if_false: u8, value: u32) {
        self.program.push((code as u16, if_true, if_false, value));
    }

    fn load(&mut self, offset: u32) {
        self.push(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset);
    }

    /// Skips some instructions unless the loaded value compares.
    fn unless(&mut self, comparison: u32, value: u32, skipped: u8) {
        self.push(BPF_JMP | comparison | BPF_K, 0, skipped, value);
    }

    fn result(&mut self, value: u32) {
        self.push(BPF_RET | BPF_K, 0, 0, value);
    }

    /// Puts the program under the filter from its first instruction on.
    pub fn apply(&self, command: &mut Command) {
        let mut program: Vec<sock_filter> = self
            .program
            .iter()
            .map(|&(code, jt, jf, k)| sock_filter { code, jt, jf, k })
            .collect();
        let install = move || {
            let filter = sock_fprog {
                len: program.len() as u16,
                filter: program.as_mut_ptr(),
            };
            set(libc::PR_SET_NO_NEW_PRIVS, 1, ptr::null())?;
            set(
                libc::PR_SET_SECCOMP,
                c_ulong::from(libc::SECCOMP_MODE_FILTER),
                &raw const filter,
            )
        };
        // SAFETY: between fork and exec the closure makes two system calls on memory that was allocated before the fork.
        unsafe { command.pre_exec(install) };
    }
}

fn set(option: c_int, value: c_ulong, filter: *const sock_fprog) -> io::Result<()> {
    let zero: c_ulong = 0;
    // SAFETY: `filter` is null or points to a program that outlives the call, and the kernel copies the program.
    match unsafe { libc::prctl(option, value, filter, zero, zero) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The calls that `SystemCallFilter=@system-service` of this machine's systemd allows. An error is the reason to skip the test.
pub fn system_service() -> Result<BTreeSet<u32>, String> {
    let mut names = BTreeSet::new();
    let mut groups = vec!["@default".to_owned(), "@system-service".to_owned()];
    let mut seen: BTreeSet<String> = groups.iter().cloned().collect();
    while let Some(group) = groups.pop() {
        let output = Command::new("systemd-analyze")
            .args(["syscall-filter", &group])
            .output()
            .map_err(|error| format!("systemd-analyze cannot be run: {error}"))?;
        if !output.status.success() {
            return Err(format!("systemd-analyze knows no {group}: {output:?}"));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // The first line repeats the group's name.
        for word in text.lines().skip(1).map(str::trim) {
            if word.starts_with('@') {
                if seen.insert(word.to_owned()) {
                    groups.push(word.to_owned());
                }
            } else if !word.is_empty() && !word.starts_with('#') {
                names.insert(word.to_owned());
            }
        }
    }
    numbers(&names)
}

/// The numbers of these calls, from the compiler. Names of other architectures yield no number.
fn numbers(names: &BTreeSet<String>) -> Result<BTreeSet<u32>, String> {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let source = dir.path().join("numbers.c");
    let mut text = "#include <sys/syscall.h>\n".to_owned();
    for name in names {
        text.extend(["number __NR_", name, "\n"]);
    }
    fs::write(&source, text).expect("just made");
    let text = preprocessed(&source)?;
    let numbers: BTreeSet<u32> = text
        .lines()
        .filter_map(|line| line.strip_prefix("number ")?.trim().parse().ok())
        .collect();
    if numbers.len() < 100 {
        return Err(format!("only {} system calls are known", numbers.len()));
    }
    Ok(numbers)
}

fn preprocessed(source: &Path) -> Result<String, String> {
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new("sh")
        .args(["-c", r#"$1 -E -P -x c "$2""#, "sh", &compiler])
        .arg(source)
        .output()
        .map_err(|error| format!("sh: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{compiler} knows no sys/syscall.h: {said}"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_filter_refuses_what_it_should_and_nothing_else() {
    use std::os::unix::process::ExitStatusExt;

    const NICE: Call = Call {
        name: "setpriority",
        matches: &[Match::any(libc::SYS_setpriority)],
    };
    const PDEATHSIG: Call = Call {
        name: "prctl(PR_SET_PDEATHSIG)",
        matches: &[Match::with(
            libc::SYS_prctl,
            0,
            Is::Equal(libc::PR_SET_PDEATHSIG),
        )],
    };
    let run = |call: Call, refusal: Refusal, words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        Filter::refusing(&[call], refusal).apply(&mut command);
        command.output().expect("the program can be started")
    };
    // A shell that changes its own priority.
    let renice = ["sh", "-c", "renice -n 1 -p $$"];
    let refused = run(NICE, Refusal::Errno(libc::ENOSYS), &renice);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("Function not implemented"), "{said}");
    let killed = run(NICE, Refusal::Kill, &["sh", "-c", "exec renice -n 1 -p $$"]);
    assert_eq!(killed.status.signal(), Some(libc::SIGSYS), "{killed:?}");
    let other = run(NICE, Refusal::Kill, &["true"]);
    assert!(other.status.success(), "{other:?}");

    let argument = ["setpriv", "--pdeathsig", "KILL", "true"];
    let argument = run(PDEATHSIG, Refusal::Kill, &argument);
    assert_eq!(argument.status.signal(), Some(libc::SIGSYS), "{argument:?}");
    // The same call with other arguments.
    let others = run(PDEATHSIG, Refusal::Kill, &["setpriv", "--dump"]);
    assert!(others.status.success(), "{others:?}");
}
