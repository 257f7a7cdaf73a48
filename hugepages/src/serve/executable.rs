//! Whether a library can be preloaded into a program. The dynamic linker only prints a line or ignores the library, so this asks before.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, getxattr};
use rustix::process::{getegid, geteuid};

use super::ServeError;

/// A script may name an interpreter that is a script itself; the kernel follows four.
const MOST_SCRIPTS: usize = 4;
/// The kernel reads so much of a script's first line.
const LINE: usize = 256;

/// Finds a program as a shell does, and checks that the dynamic linker would load a library into it.
///
/// # Errors
/// [`ServeError`], with the reason.
pub(super) fn find(name: &OsStr) -> Result<PathBuf, ServeError> {
    let program = search(name).ok_or_else(|| ServeError::NotFound(name.to_owned()))?;
    let mut path = program.clone();
    for _ in 0..MOST_SCRIPTS {
        match check(&path).map_err(|source| ServeError::Unreadable {
            program: path.clone(),
            source,
        })? {
            Kind::Suitable => return Ok(program),
            Kind::Script(interpreter) => path = interpreter,
            Kind::Refused(why) => {
                let program = path.display().to_string();
                return Err(ServeError::NoPreload { program, why });
            }
        }
    }
    Ok(program)
}

fn search(name: &OsStr) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(is_program);
    }
    let dirs = env::var_os("PATH")?;
    env::split_paths(&dirs)
        .map(|dir| dir.join(name))
        .find(is_program)
}

enum Kind {
    Suitable,
    Script(PathBuf),
    Refused(&'static str),
}

fn check(path: &Path) -> io::Result<Kind> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mode = metadata.permissions().mode();
    let changes_user = mode & 0o4000 != 0 && metadata.uid() != geteuid().as_raw();
    let changes_group = mode & 0o2000 != 0 && metadata.gid() != getegid().as_raw();
    let has_capabilities = getxattr(path, "security.capability", &mut [0u8; 64]).is_ok();
    if changes_user || changes_group || (has_capabilities && !geteuid().is_root()) {
        return Ok(Kind::Refused(
            "gets other rights when it starts (setuid, setgid or capabilities), and the dynamic linker ignores preloaded libraries then",
        ));
    }
    let mut start = [0; LINE];
    let n = (&file).take(LINE as u64).read(&mut start)?;
    let start = &start[..n];
    if let Some(line) = start.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut words = line
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        let interpreter = words.next().unwrap_or_default();
        // `#!/usr/bin/env python3` runs python3.
        let named = words.find(|word| !word.starts_with(b"-"));
        return Ok(
            match named
                .filter(|_| interpreter.ends_with(b"/env"))
                .and_then(|name| search(OsStr::from_bytes(name)))
            {
                Some(program) => Kind::Script(program),
                None => Kind::Script(OsStr::from_bytes(interpreter).into()),
            },
        );
    }
    if start.starts_with(b"MZ") || start.starts_with(b"jartsr") {
        return Ok(Kind::Refused(
            "is statically linked, as every llamafile is, so nothing can be preloaded",
        ));
    }
    let Some(theirs) = Elf::read(&file)? else {
        // A script without a first line: a shell runs it.
        return Ok(Kind::Suitable);
    };
    let ours = Elf::read(&File::open(env::current_exe()?)?)?;
    let Some(ours) =
        ours.filter(|ours| (ours.class, ours.machine) == (theirs.class, theirs.machine))
    else {
        return Ok(Kind::Refused(
            "is built for another kind of processor than the preload library",
        ));
    };
    Ok(match (&theirs.interpreter, &ours.interpreter) {
        (None, _) => Kind::Refused("is statically linked, so nothing can be preloaded"),
        (Some(theirs), Some(ours)) if name_of(theirs) != name_of(ours) => {
            Kind::Refused("uses another C library than the preload library, such as musl")
        }
        _ => Kind::Suitable,
    })
}

/// The dynamic linker of a C library has the same name everywhere, but not the same folder.
fn name_of(path: &Path) -> Option<&OsStr> {
    path.file_name()
}

/// The parts of an ELF header that decide whether a library fits.
#[derive(Debug, PartialEq, Eq)]
struct Elf {
    /// 1: 32 bits, 2: 64 bits.
    class: u8,
    machine: u16,
    /// `None`: static.
    interpreter: Option<PathBuf>,
}

impl Elf {
    /// `None` for other files. elf(5) has the layout.
    fn read(file: &File) -> io::Result<Option<Self>> {
        const PT_INTERP: u32 = 3;
        let mut head = [0; 64];
        if file.read_exact_at(&mut head, 0).is_err() || !head.starts_with(b"\x7fELF") {
            return Ok(None);
        }
        let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let (class, machine) = (head[4], u16_at(18));
        let mut elf = Self {
            class,
            machine,
            interpreter: None,
        };
        if class != 2 || head[5] != 1 {
            // Not ours, whatever the rest says.
            return Ok(Some(elf));
        }
        let table = u64::from_le_bytes(head[32..40].try_into().expect("8 bytes"));
        let (size, count) = (u64::from(u16_at(54)), u64::from(u16_at(56)));
        for index in 0..count {
            let mut entry = [0; 56];
            file.read_exact_at(&mut entry, table + index * size)?;
            let kind = u32::from_le_bytes(entry[0..4].try_into().expect("4 bytes"));
            if kind == PT_INTERP {
                let at = u64::from_le_bytes(entry[8..16].try_into().expect("8 bytes"));
                let len = u64::from_le_bytes(entry[32..40].try_into().expect("8 bytes"));
                let mut name = vec![0; usize::try_from(len.min(4096)).expect("small")];
                file.read_exact_at(&mut name, at)?;
                name.retain(|byte| *byte != 0);
                elf.interpreter = Some(OsStr::from_bytes(&name).into());
            }
        }
        Ok(Some(elf))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn refusal(path: &Path) -> String {
        match find(path.as_os_str()) {
            Err(ServeError::NoPreload { why, .. }) => why.to_owned(),
            other => panic!("{other:?}"),
        }
    }

    fn program(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// This program, without its dynamic linker or for another machine.
    fn changed(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = fs::read(env::current_exe().unwrap()).unwrap();
        bytes.truncate(1 << 16);
        change(&mut bytes);
        bytes
    }

    #[test]
    fn programs_into_which_nothing_can_be_preloaded_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let without_linker = changed(|bytes| {
            let table =
                usize::try_from(u64::from_le_bytes(bytes[32..40].try_into().unwrap())).unwrap();
            let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
            for at in (0..count).map(|index| table + index * 56) {
                if bytes[at] == 3 {
                    bytes[at] = 4;
                }
            }
        });
        let fixed = program(dir.path(), "fixed", &without_linker);
        assert!(refusal(&fixed).contains("statically linked"));
        let other = program(dir.path(), "other", &changed(|bytes| bytes[18] ^= 0x55));
        assert!(refusal(&other).contains("another kind of processor"));
        let llamafile = program(dir.path(), "llamafile", b"MZqFpD='\n...");
        assert!(refusal(&llamafile).contains("llamafile"));
        let script = format!("#!{}\n", fixed.display());
        let script = program(dir.path(), "script", script.as_bytes());
        assert!(refusal(&script).contains("statically linked"));
    }

    #[test]
    fn programs_and_scripts_of_this_system_are_suitable() {
        let dir = tempfile::tempdir().unwrap();
        let own = env::current_exe().unwrap();
        assert_eq!(find(own.as_os_str()).unwrap(), own);
        assert!(find(OsStr::new("sh")).is_ok());
        for line in [
            "#!/bin/sh\n",
            "#! /usr/bin/env sh\n",
            "#!/usr/bin/env -S sh -e\n",
        ] {
            let script = program(dir.path(), "script", line.as_bytes());
            assert!(find(script.as_os_str()).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_name_that_no_program_has_is_told() {
        let missing = find(OsStr::new("no-such-program-of-ours"));
        assert!(
            matches!(missing, Err(ServeError::NotFound(_))),
            "{missing:?}"
        );
    }
}
