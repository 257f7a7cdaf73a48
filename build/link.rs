//! The libraries to link, in the order of CMake.
//!
//! CMake's File API lists what it links `llama-server` with: our archives, the backends that it configured, and the libraries of the
//! system. So a backend that CMake configures needs no line here.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::cargo;

/// The program whose libraries we link.
const TARGET: &str = "llama-server";
/// The folder of the File API, below a build directory.
const API: &str = ".cmake/api/v1";

/// Asks CMake for the libraries of each target. Call it before the configuration.
pub fn ask(build: &Path) -> Result<()> {
    let query = build.join(API).join("query");
    fs::create_dir_all(&query)
        .and_then(|()| fs::write(query.join("codemodel-v2"), ""))
        .with_context(|| format!("cannot write in {}", query.display()))
}

/// Prints the link directives for the CMake build.
///
/// `is_whole`: the build made all archives. Without the server, an archive that does not exist is none that the library needs.
pub fn emit(build: &Path, is_whole: bool) -> Result<()> {
    for library in libraries(build)? {
        match library {
            Library::Archive(path) => {
                let exists = path.is_file();
                ensure!(
                    exists || !is_whole,
                    "the CMake build did not create `{}`",
                    path.display()
                );
                if let (true, Some(dir), Some(name)) = (exists, path.parent(), name(&path)) {
                    cargo::link_search(dir);
                    cargo::link_static(name);
                }
            }
            Library::File(path) => {
                if let (Some(dir), Some(name)) = (path.parent(), name(&path)) {
                    cargo::link_search(dir);
                    cargo::link_shared(name);
                }
            }
            Library::Directory(path) => cargo::link_search(&path),
            Library::Name(name) => cargo::link_shared(&name),
        }
    }
    cargo::link_shared("stdc++");
    Ok(())
}

/// Copies programs of llama.cpp, and its libraries if they are shared, to where Cargo puts our programs. Without the features that need
/// them, the build has none.
pub fn copy_beside_programs(build: &Path, out: &Path, programs: &[&str]) -> Result<()> {
    // target/release/build/llama-hugepages-HASH/out
    let target = out
        .ancestors()
        .nth(3)
        .context("OUT_DIR is not in a target folder")?;
    let dir = build.join("bin");
    if !dir.is_dir() {
        return Ok(());
    }
    let mut has_libraries = false;
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        let is_library = path.extension() == Some("so".as_ref());
        has_libraries |= is_library;
        if is_library || programs.iter().any(|program| name == *program) {
            let copy = target.join(name);
            // A running program keeps the old file.
            let _ = fs::remove_file(&copy);
            fs::copy(&path, &copy)
                .with_context(|| format!("cannot copy {} to {}", path.display(), copy.display()))?;
        }
    }
    if has_libraries {
        cargo::find_libraries_beside_programs();
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Library {
    /// An archive of this build.
    Archive(PathBuf),
    /// A library of the system, or a shared one of this build.
    File(PathBuf),
    Directory(PathBuf),
    Name(String),
}

/// `reply/index-*.json`, the newest of which CMake wrote last.
#[derive(Deserialize)]
struct Index {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    kind: String,
    #[serde(rename = "jsonFile")]
    file: PathBuf,
}

#[derive(Deserialize)]
struct CodeModel {
    configurations: Vec<Configuration>,
}

#[derive(Deserialize)]
struct Configuration {
    targets: Vec<TargetFile>,
}

#[derive(Deserialize)]
struct TargetFile {
    name: String,
    #[serde(rename = "jsonFile")]
    file: PathBuf,
}

#[derive(Deserialize)]
struct Target {
    link: Link,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    command_fragments: Vec<Fragment>,
}

#[derive(Deserialize)]
struct Fragment {
    fragment: String,
    role: String,
}

fn libraries(build: &Path) -> Result<Vec<Library>> {
    let reply = build.join(API).join("reply");
    let index: Index = read(&newest_index(&reply)?)?;
    let model = index.objects.iter().find(|it| it.kind == "codemodel");
    let model = model.context("CMake answered no question about its targets")?;
    let model: CodeModel = read(&reply.join(&model.file))?;
    let mut targets = model.configurations.iter().flat_map(|it| &it.targets);
    let target = targets
        .find(|it| it.name == TARGET)
        .with_context(|| format!("CMake has no target {TARGET}"))?;
    let target: Target = read(&reply.join(&target.file))?;
    Ok(parse(build, &target.link.command_fragments))
}

fn newest_index(reply: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(reply).with_context(|| {
        format!(
            "CMake wrote no {}: CMake 3.14 or newer does",
            reply.display()
        )
    })?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_index = |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str);
        name.is_some_and(|name| name.starts_with("index-"))
    };
    // The name contains the time.
    paths
        .filter(is_index)
        .max()
        .with_context(|| format!("{} has no index", reply.display()))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is not an answer of CMake", path.display()))
}

fn parse(build: &Path, fragments: &[Fragment]) -> Vec<Library> {
    let words = fragments
        .iter()
        .filter(|it| it.role == "libraries" || it.role == "libraryPath");
    let words = words.flat_map(|it| shell_words::split(&it.fragment).unwrap_or_default());
    words
        .filter_map(|word| {
            if let Some(name) = word.strip_prefix("-l") {
                return Some(Library::Name(name.to_owned()));
            }
            if let Some(dir) = word.strip_prefix("-L") {
                return Some(Library::Directory(dir.into()));
            }
            // Flags such as --start-group do not matter to a linker that knows all archives.
            let path = Path::new(&word);
            if word.starts_with('-') || path.extension().is_none() {
                return None;
            }
            Some(if path.is_absolute() {
                Library::File(path.to_owned())
            } else if path.extension() == Some("so".as_ref()) {
                Library::File(build.join(path))
            } else {
                Library::Archive(build.join(path))
            })
        })
        .collect()
}

/// `/usr/lib/libssl.so.3` is `ssl` to the linker.
fn name(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?.strip_prefix("lib")?;
    let end = name.find(".so").or_else(|| name.find(".a"))?;
    Some(&name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_library_is_linked_in_its_own_way() {
        let fragment = |role: &str, text: &str| Fragment {
            fragment: text.to_owned(),
            role: role.to_owned(),
        };
        let found = parse(
            Path::new("/b"),
            &[
                fragment("flags", "-O3 -lnot"),
                fragment("libraryPath", "-L/usr/local/cuda/lib64"),
                fragment("libraries", "src/libllama.a bin/libggml.so"),
                fragment("libraries", "-ldl -lm"),
                fragment("libraries", "/usr/lib/libssl.so.3"),
                fragment("libraries", "-Wl,--end-group"),
            ],
        );
        assert_eq!(
            found,
            [
                Library::Directory("/usr/local/cuda/lib64".into()),
                Library::Archive("/b/src/libllama.a".into()),
                Library::File("/b/bin/libggml.so".into()),
                Library::Name("dl".into()),
                Library::Name("m".into()),
                Library::File("/usr/lib/libssl.so.3".into()),
            ]
        );
    }

    #[test]
    fn a_library_is_named_without_its_version() {
        assert_eq!(name(Path::new("/usr/lib/libssl.so.3")), Some("ssl"));
        assert_eq!(name(Path::new("/usr/lib/libpthread.a")), Some("pthread"));
        assert_eq!(name(Path::new("ggml/libggml-cpu.a")), Some("ggml-cpu"));
        assert_eq!(name(Path::new("/usr/lib/plugin.so")), None);
    }

    #[test]
    fn the_newest_answer_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let reply = dir.path().join(API).join("reply");
        ask(dir.path()).unwrap();
        assert!(libraries(dir.path()).is_err());
        fs::create_dir_all(&reply).unwrap();
        let write = |name: &str, text: &str| fs::write(reply.join(name), text).unwrap();
        write("index-2026-01-01.json", "{}");
        write(
            "index-2026-01-02.json",
            r#"{"objects": [{"kind": "codemodel", "jsonFile": "m.json"}]}"#,
        );
        write(
            "m.json",
            r#"{"configurations": [{"targets": [{"name": "llama-server", "jsonFile": "t.json"}]}]}"#,
        );
        write(
            "t.json",
            r#"{"link": {"commandFragments": [{"fragment": "src/libllama.a", "role": "libraries"}]}}"#,
        );
        let expected = Library::Archive(dir.path().join("src/libllama.a"));
        assert_eq!(libraries(dir.path()).unwrap(), [expected]);
    }
}
