//! The engine compiled straight with a C++ compiler, without CMake.
//! Lives here: sources, objects, programs. Not here: the purpose of the programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

use super::programs;

/// A compiler and the flags of all its calls.
#[derive(Clone, Debug)]
pub struct Compiler {
    words: Vec<String>,
}

impl Compiler {
    /// The compiler that `CXX` names.
    pub fn given() -> Self {
        let given = env::var("CXX").unwrap_or_default();
        let mut words: Vec<String> = given.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            words.push("c++".to_owned());
        }
        Self { words }
    }

    pub fn named(name: &str) -> Self {
        Self {
            words: vec![name.to_owned()],
        }
    }

    pub fn with(mut self, flags: &[&str]) -> Self {
        self.words.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
    }

    /// Compiles all sources at the same time, each by itself.
    pub fn objects(&self, sources: &[PathBuf], dir: &Path) -> Vec<PathBuf> {
        fs::create_dir_all(dir).expect("the target folder can be written");
        let engine = engine();
        let upstream = Path::new(env!("OUT_DIR")).join("llama.cpp/ggml");
        let compile = |source: &Path| {
            let name = source.file_name().expect("the source is a file");
            let object = dir.join(name).with_extension("o");
            // A C++ compiler takes a file of C for C++.
            let is_c = source.extension().is_some_and(|extension| extension == "c");
            let language = if is_c {
                ["-x", "c", "-std=gnu11"]
            } else {
                ["-x", "c++", "-std=c++17"]
            };
            let mut command = self.command();
            command
                .args(language)
                .args(["-O1", "-g", "-pthread"])
                .args([&engine, &upstream].map(|dir| format!("-I{}/include", dir.display())))
                .args([&engine, &upstream].map(|dir| format!("-I{}/src", dir.display())))
                .args(["-c".as_ref(), source, "-o".as_ref(), &object]);
            programs::run(&mut command).map(|()| object)
        };
        let compiled: Vec<_> = thread::scope(|scope| {
            let handles: Vec<_> = sources
                .iter()
                .map(|source| scope.spawn(move || compile(source)))
                .collect();
            let joined = handles.into_iter().map(thread::ScopedJoinHandle::join);
            joined
                .map(|result| result.expect("the thread only compiles"))
                .collect()
        });
        compiled
            .into_iter()
            .map(|object| object.unwrap_or_else(|error| panic!("{error}")))
            .collect()
    }

    /// Links objects to a program. An error is the linker's output.
    pub fn link(&self, objects: &[PathBuf], flags: &[&str], program: &Path) -> Result<(), String> {
        let mut command = self.command();
        command
            .arg("-pthread")
            .args(flags)
            .args(objects)
            .arg("-o")
            .arg(program);
        programs::run(&mut command)
    }

    /// Tries to build a program, because some distributions package the library that a flag needs separately.
    pub fn try_program(&self, text: &str, dir: &Path) -> Result<PathBuf, String> {
        fs::create_dir_all(dir).expect("the target folder can be written");
        let source = dir.join("try.cpp");
        fs::write(&source, text).expect("the target folder can be written");
        let program = dir.join("try");
        programs::run(self.command().arg(&source).arg("-o").arg(&program))?;
        Ok(program)
    }
}

/// `patches/files/ggml`
fn engine() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("patches/files/ggml")
}

pub fn header() -> PathBuf {
    engine().join("include/ggml-hugepages.h")
}

/// The sources of the engine.
pub fn engine_sources() -> Vec<PathBuf> {
    sources_in(&engine().join("src/ggml-hugepages"))
}

/// The sources in a folder of the tests, such as `tests/engine`.
pub fn test_sources(dir: &str) -> Vec<PathBuf> {
    sources_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir))
}

fn sources_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("the file is part of this repository");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|e| e == "cpp"))
        .collect();
    files.sort();
    files
}
