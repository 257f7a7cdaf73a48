//! Programs of others that contain an unmodified llama.cpp, under the preload library.
//!
//! `make other-programs` installs them, so only `make test-full` runs these tests.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::preload::{buffers, mapped, pages, preloaded, suspicious_lines};
use crate::support::pool::{PAGE, Pool};
use crate::support::server::QUIET_THREADS;
use crate::support::{models, or_skip, smaps, target_dir, wait_for};

/// Why a test is skipped.
const NO_SUCH: &str = "`cargo xtask other-programs` installs it";

/// The folders of one kind of program, one for each version.
fn installed(kind: &str) -> Result<Vec<PathBuf>, String> {
    let dir = target_dir().join("other-programs");
    let entries = fs::read_dir(&dir).map_err(|_| format!("{kind} is missing: {NO_SUCH}"))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let folder = name.strip_suffix(".complete")?;
            folder.starts_with(kind).then(|| dir.join(folder))
        })
        .collect();
    found.sort();
    if found.is_empty() {
        return Err(format!("{kind} is missing: {NO_SUCH}"));
    }
    Ok(found)
}

/// The script of a kind of program, with the interpreter of a folder.
fn script(folder: &Path) -> Vec<PathBuf> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/other_programs");
    let python = folder.join("bin/python");
    if python.exists() {
        vec![python, scripts.join("ask.py")]
    } else {
        vec!["node".into(), scripts.join("ask.mjs"), folder.to_owned()]
    }
}

/// A program that has answered, and waits for a command.
struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
    /// Lines of the output before the answers.
    said: String,
    answers: String,
    dir: TempDir,
}

impl Program {
    fn start(mut command: Command, words: &[PathBuf], model: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let log = File::create(dir.path().join("log")).expect("the folder is new");
        let mut child = command
            // A shell starts programs in the background with SIGINT ignored.
            .arg("--default-signal")
            .args(words)
            .arg(model)
            .env(QUIET_THREADS.0, QUIET_THREADS.1)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the program can be started");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut program = Self {
            child,
            output,
            said: String::new(),
            answers: String::new(),
            dir,
        };
        program.answers = program.line_with("[[");
        program
    }

    /// Reads the output up to a line with this start.
    fn line_with(&mut self, start: &str) -> String {
        loop {
            let mut line = String::new();
            let n = self.output.read_line(&mut line).expect("text");
            assert!(n > 0, "no line `{start}`:\n{}", self.log());
            if line.starts_with(start) {
                return line;
            }
            self.said += &line;
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What llama.cpp and the library wrote.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).expect("made above");
        self.said.clone() + &log
    }

    fn tell(&mut self, command: &str) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{command}").expect("the program reads");
    }

    /// Ends the program in the given way, and returns its status and its log.
    fn end(mut self, how: End) -> (ExitStatus, String) {
        match how {
            End::Returns => {}
            End::Exits => self.tell("exit"),
            End::By(signal) => {
                kill_process(Pid::from_child(&self.child), signal).expect("it runs");
                // The end of its input would end it too.
                let has_ended = || self.child.try_wait().expect("a child").is_some();
                assert!(wait_for(Duration::from_secs(30), has_ended), "{signal:?}");
            }
        }
        drop(self.child.stdin.take());
        let status = self.child.wait().expect("a child");
        let mut line = String::new();
        while self.output.read_line(&mut line).is_ok_and(|n| n > 0) {}
        self.said += &line;
        let log = self.log();
        (status, log)
    }
}

/// A failed assertion leaves no process.
impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Clone, Copy, Debug)]
enum End {
    Returns,
    Exits,
    By(Signal),
}

impl End {
    const ALL: [Self; 5] = [
        Self::Returns,
        Self::Exits,
        Self::By(Signal::INT),
        Self::By(Signal::TERM),
        Self::By(Signal::KILL),
    ];

    fn is(self, status: ExitStatus) -> bool {
        match self {
            Self::Returns => status.success(),
            Self::Exits => status.code() == Some(7),
            // Node.js and Python exit after some signals.
            Self::By(signal) => status.signal() == Some(signal.as_raw()) || !status.success(),
        }
    }
}

/// The sizes in the lines `CPU_REPACK model buffer size = N MiB`: the program reads these tensors there, and not from the file.
fn repacked(log: &str) -> u64 {
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("CPU_REPACK"))
        .collect();
    buffers(&lines.join("\n"))
}

/// Asserts that at least 97 % of what the CPU reads is on huge pages: the tensors in the file that are not repacked, and the buffers.
fn assert_on_huge_pages(program: &Program, model: &Path) {
    let log = program.log();
    let (of_file, on_huge) = mapped(program.pid(), model, |_| true);
    let of_file = of_file.saturating_sub(repacked(&log));
    let buffers = buffers(&log);
    assert!(buffers > 0, "{log}");
    let kinds = ["repacked", "other"].map(|kind| smaps::hugetlb_bytes_of(program.pid(), kind));
    let in_buffers = kinds.iter().sum::<u64>().min(buffers);
    let share = (on_huge.min(of_file) + in_buffers) as f64 / (of_file + buffers) as f64;
    println!(
        "mapped: {on_huge} of {of_file} bytes; buffers of {buffers} bytes on {kinds:?}; {share:.3}"
    );
    assert!(share >= 0.97, "{share}\n{log}");
}

fn works_on_huge_pages(kind: &str, weights: &str) {
    let model = models::demo("100M", weights);
    let folders = or_skip!(installed(kind));
    let pool = or_skip!(Pool::with(2 * pages(&model)));
    for folder in folders {
        println!("{}", folder.display());
        let words = script(&folder);
        let plain = Program::start(Command::new("env"), &words, &model);
        let expected = plain.answers.clone();
        let (status, plain_log) = plain.end(End::Returns);
        assert!(status.success(), "{plain_log}");

        for how in End::ALL {
            let program = Program::start(preloaded("env", "require"), &words, &model);
            assert_eq!(program.answers, expected);
            assert_on_huge_pages(&program, &model);
            let (status, log) = program.end(how);
            assert!(how.is(status), "{how:?}: {status}\n{log}");
            let new: Vec<_> = suspicious_lines(&log)
                .into_iter()
                .filter(|line| !plain_log.contains(line))
                .collect();
            assert!(new.is_empty(), "{how:?}: {new:?}");
            pool.assert_all_back();
        }

        // The pages come back as soon as the program frees its model.
        let mut program = Program::start(preloaded("env", "require"), &words, &model);
        assert!(smaps::hugetlb_bytes(program.pid()) > 40 * PAGE);
        program.tell("free");
        program.line_with("freed");
        let is_free = || smaps::hugetlb_bytes(program.pid()) == 0;
        assert!(
            wait_for(Duration::from_secs(10), is_free),
            "{} bytes of huge pages are left",
            smaps::hugetlb_bytes(program.pid())
        );
        program.end(End::Returns);
        pool.assert_all_back();
    }
}

#[test]
#[ignore = "long: make test-full"]
fn node_llama_cpp_works_on_huge_pages() {
    works_on_huge_pages("node", "Q8_0");
}

#[test]
#[ignore = "long: make test-full"]
fn node_llama_cpp_repacks_on_huge_pages() {
    works_on_huge_pages("node", "Q4_K");
}

#[test]
#[ignore = "long: make test-full"]
fn llama_cpp_python_works_on_huge_pages() {
    works_on_huge_pages("python", "Q8_0");
}

#[test]
#[ignore = "long: make test-full"]
fn llama_cpp_python_repacks_on_huge_pages() {
    works_on_huge_pages("python", "Q4_K");
}
