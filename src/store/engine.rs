//! The engine's calls on resident images, with types around them. Nothing here knows what a store is for.

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::Serialize;

use crate::ffi;
use crate::pool::HugePageSize;

/// Why something is not so, in the words of whoever refuses it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Reason {
    /// A lower-case fragment.
    pub message: String,
    /// What the user can do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub status: ffi::ggml_hugepages_status,
    pub reason: Reason,
}

/// What the manifest of an image says. All of it is zero or empty where it has none that can be read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Info {
    /// `weights` or `repacked`; empty where that is not known.
    pub kind: String,
    /// Of the image, in bytes.
    pub size: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Bytes of huge pages that it holds.
    pub used_bytes: u64,
    /// Parts, each of which is there or not.
    pub segments: u64,
    /// Those that are.
    pub complete: u64,
    /// Seconds since 1970.
    pub created: i64,
    /// When it was attached or filled last, in seconds since 1970.
    pub used: i64,
    /// The process that fills it or did so last, 0 if unknown.
    pub filler: u32,
    /// By a process that is alive.
    pub is_filling: bool,
    /// By at least one process.
    pub is_attached: bool,
    /// Its source is gone or not the same any more.
    pub is_stale: bool,
    /// The file that it is made of.
    pub source: String,
    /// All that has to be the same for two processes to share it, a `name value` a line.
    pub identity: String,
}

/// Room for an error, and what is in it afterwards.
fn checked(call: impl FnOnce(*mut ffi::ggml_hugepages_error) -> bool) -> Result<(), Failure> {
    let mut error = MaybeUninit::<ffi::ggml_hugepages_error>::zeroed();
    let ok = call(error.as_mut_ptr());
    // SAFETY: numbers and letters only, zeroed above, and written by the call.
    let error = unsafe { error.assume_init() };
    if ok {
        return Ok(());
    }
    let hint = text(&error.hint);
    Err(Failure {
        status: error.status,
        reason: Reason {
            message: text(&error.message),
            hint: (!hint.is_empty()).then_some(hint),
        },
    })
}

/// Up to the first zero byte. Some of it comes from files that somebody else may have written.
fn text(letters: &[c_char]) -> String {
    String::from_utf8_lossy(&bytes(letters)).into_owned()
}

fn bytes(letters: &[c_char]) -> Vec<u8> {
    let bytes = letters.iter().map(|letter| letter.cast_unsigned());
    bytes.take_while(|byte| *byte != 0).collect()
}

/// Tries what a load does with a page: a filter or a limit may refuse what all counts allow.
pub(crate) fn probe(size: HugePageSize) -> Result<(), Reason> {
    checked(|error| {
        // SAFETY: a number and room for an error that outlives the call.
        unsafe { ffi::ggml_hugepages_probe(size.bytes() as usize, error) }
    })
    .map_err(|failure| failure.reason)
}

/// The directory that an option means, and the size of its pages.
pub(super) fn find(
    wanted: &OsStr,
    size: Option<HugePageSize>,
) -> Result<(PathBuf, HugePageSize), Reason> {
    let wanted = c_string(wanted)?;
    let mut path: [c_char; 4096] = [0; 4096];
    let mut found = 0;
    let size = size.map_or(0, |size| size.bytes() as usize);
    checked(|error| {
        // SAFETY: a C string, room for a path of the length that is said, for a number and for an error; all outlive the call.
        unsafe {
            ffi::ggml_hugepages_store_find(
                wanted.as_ptr(),
                size,
                path.as_mut_ptr(),
                path.len(),
                &raw mut found,
                error,
            )
        }
    })
    .map_err(|failure| failure.reason)?;
    let size = HugePageSize::new(found as u64).ok_or_else(|| Reason {
        message: format!("its pages are of {found} bytes"),
        hint: None,
    })?;
    Ok((OsString::from_vec(bytes(&path)).into(), size))
}

/// Whether a file of that name can be a resident image.
pub(super) fn is_name(name: &OsStr) -> bool {
    let Ok(name) = CString::new(name.as_bytes()) else {
        return false;
    };
    // SAFETY: reads a C string that outlives the call.
    unsafe { ffi::ggml_hugepages_resident_is_name(name.as_ptr()) }
}

/// What is known of it, and why nobody would attach to it.
pub(super) fn read(dir: BorrowedFd, name: &OsStr) -> (Info, Option<Reason>) {
    let name = match c_string(name) {
        Ok(name) => name,
        Err(reason) => return (Info::default(), Some(reason)),
    };
    let mut info = MaybeUninit::<ffi::ggml_hugepages_resident_info>::zeroed();
    let checked = checked(|error| {
        // SAFETY: an open directory, a C string, and room for the answer and for an error; all outlive the call.
        unsafe {
            ffi::ggml_hugepages_resident_read(
                dir.as_raw_fd(),
                name.as_ptr(),
                info.as_mut_ptr(),
                error,
            )
        }
    });
    // SAFETY: numbers, letters and bools only, for which zero is a value; zeroed above, and written by the call.
    let info = unsafe { info.assume_init() };
    (Info::new(&info), checked.err().map(|it| it.reason))
}

/// Compares it with its checksums. `progress` gets bytes that are done, and all; it returns `false` to stop.
pub(super) fn verify(
    dir: BorrowedFd,
    name: &OsStr,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<(), Failure> {
    unsafe extern "C" fn call(done: u64, total: u64, data: *mut c_void) -> bool {
        // SAFETY: `data` is what `verify` below passes, and that call has not returned.
        let progress = unsafe { &mut *data.cast::<&mut dyn FnMut(u64, u64) -> bool>() };
        progress(done, total)
    }
    let name = c_string(name).map_err(of_reason)?;
    let mut progress = progress;
    checked(|error| {
        // SAFETY: as in `read`; `progress` outlives the call, and is only used by it.
        unsafe {
            ffi::ggml_hugepages_resident_verify(
                dir.as_raw_fd(),
                name.as_ptr(),
                Some(call),
                (&raw mut progress).cast(),
                error,
            )
        }
    })
}

/// Takes its name away.
pub(super) fn drop(dir: BorrowedFd, name: &OsStr, force: bool) -> Result<(), Failure> {
    let name = c_string(name).map_err(of_reason)?;
    // SAFETY: as in `read`.
    checked(|error| unsafe {
        ffi::ggml_hugepages_resident_drop(dir.as_raw_fd(), name.as_ptr(), force, error)
    })
}

fn c_string(text: &OsStr) -> Result<CString, Reason> {
    CString::new(text.as_bytes()).map_err(|_| Reason {
        message: "it holds a zero byte".to_owned(),
        hint: None,
    })
}

fn of_reason(reason: Reason) -> Failure {
    Failure {
        status: ffi::GGML_HUGEPAGES_STATUS_INVALID,
        reason,
    }
}

impl Info {
    fn new(raw: &ffi::ggml_hugepages_resident_info) -> Self {
        let kind = if raw.size == 0 || raw.kind >= ffi::GGML_HUGEPAGES_KIND_COUNT {
            String::new()
        } else {
            // SAFETY: returns a C string that lives as long as the program.
            let name = unsafe { CStr::from_ptr(ffi::ggml_hugepages_kind_name(raw.kind)) };
            name.to_string_lossy().into_owned()
        };
        Self {
            kind,
            size: raw.size,
            file_bytes: raw.file_bytes,
            used_bytes: raw.used_bytes,
            segments: raw.n_segments,
            complete: raw.n_complete,
            created: raw.created,
            used: raw.used,
            filler: raw.filler,
            is_filling: raw.is_filling,
            is_attached: raw.is_attached,
            is_stale: raw.is_stale,
            source: text(&raw.source),
            identity: text(&raw.identity),
        }
    }
}
