//! The engine's calls for resident images, with types.

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_void};
use std::fmt;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::ptr;

use serde::{Serialize, Serializer};

use crate::kernel::HugePageSize;
use llama_hugepages::ffi;
use llama_hugepages::gguf::Gguf;

/// The reason for a refusal, in the words of the engine or the server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Reason {
    /// A lower-case fragment.
    pub message: String,
    /// The hint for the user.
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

/// The manifest of an image. All fields are zero or empty if the manifest is unreadable.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four facts, each with a name in the JSON"
)]
pub struct Info {
    /// `weights` or `repacked`; empty if unknown.
    pub kind: String,
    /// Size of the image, in bytes.
    pub size: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Bytes of huge pages that it holds.
    pub used_bytes: u64,
    /// Number of segments.
    pub segments: u64,
    /// Number of complete segments.
    pub complete: u64,
    /// Seconds since 1970.
    pub created: i64,
    /// Time of the last attach or fill, in seconds since 1970.
    pub used: i64,
    /// The process that fills it, or filled it last; 0 if unknown.
    pub filler: u32,
    /// Whether a live process fills it.
    pub is_filling: bool,
    /// Whether a process is attached.
    pub is_attached: bool,
    /// Whether its model file changed or was removed.
    pub is_stale: bool,
    /// Whether this process cannot see its model file, so that the file may exist: it has no right to the folder, or another mount
    /// namespace.
    pub is_hidden: bool,
    /// Path of its model file.
    #[serde(serialize_with = "lossy")]
    pub source: PathBuf,
    /// Properties that must be the same for two processes to share it, one `name value` a line.
    pub identity: String,
}

/// Serializes a name as text, because JSON has no bytes.
pub(super) fn lossy<T: AsRef<OsStr>, S: Serializer>(
    name: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&name.as_ref().to_string_lossy())
}

/// A buffer for an error of the engine.
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

/// The text up to the first zero byte. Other users may have written parts of this text.
fn text(letters: &[c_char]) -> String {
    String::from_utf8_lossy(&bytes(letters)).into_owned()
}

fn bytes(letters: &[c_char]) -> Vec<u8> {
    let bytes = letters.iter().map(|letter| letter.cast_unsigned());
    bytes.take_while(|byte| *byte != 0).collect()
}

/// Takes and returns a page like a load, because a filter or a limit can refuse a page that all counters allow.
pub(crate) fn probe(size: HugePageSize) -> Result<(), Reason> {
    checked(|error| {
        // SAFETY: a number and room for an error that outlives the call.
        unsafe { ffi::ggml_hugepages_probe(size.bytes() as usize, error) }
    })
    .map_err(|failure| failure.reason)
}

/// The directory that the option selects, and its page size.
pub(super) fn find(
    wanted: &OsStr,
    size: Option<HugePageSize>,
) -> Result<(PathBuf, HugePageSize), Reason> {
    let wanted = c_string(wanted)?;
    let mut path: [c_char; 4096] = [0; 4096];
    let mut found = 0;
    let size = size.map_or(0, |size| size.bytes() as usize);
    checked(|error| {
        // SAFETY: a C string, room for a path of the given length, for a number and for an error; all outlive the call.
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
        message: format!("unsupported page size of {found} bytes"),
        hint: None,
    })?;
    Ok((OsString::from_vec(bytes(&path)).into(), size))
}

/// What the images of a model file say of its content; `None` if it is no model or cannot be read.
pub(super) fn content_of(file: &Path) -> Option<String> {
    if !file.is_file() {
        return None;
    }
    let header = Gguf::open(file).ok()?.data_offset();
    let file = File::open(file).ok()?;
    // SAFETY: no arguments.
    let params = unsafe { ffi::ggml_hugepages_default_params() };
    let mut line: [c_char; 256] = [0; 256];
    // SAFETY: an open file, no places, parameters without a store, and room for a line of the given length; all outlive the call.
    let is_read = unsafe {
        ffi::ggml_hugepages_file_identity(
            file.as_raw_fd(),
            header as usize,
            ptr::null(),
            0,
            &raw const params,
            line.as_mut_ptr(),
            line.len(),
        )
    };
    let line = is_read.then(|| text(&line))?;
    // The rest needs the places of the tensors.
    Some(line.split_once(", tensors ")?.0.to_owned())
}

/// Whether a file of this name can be a resident image.
pub(super) fn is_name(name: &OsStr) -> bool {
    let Ok(name) = CString::new(name.as_bytes()) else {
        return false;
    };
    // SAFETY: reads a C string that outlives the call.
    unsafe { ffi::ggml_hugepages_resident_is_name(name.as_ptr()) }
}

/// Reads the manifest of an image, and the reason why servers refuse it.
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

/// Compares an image with its checksums. `progress` gets the bytes done and the total; it returns `false` to stop.
pub(super) fn verify(
    dir: BorrowedFd,
    name: &OsStr,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<(), Failure> {
    unsafe extern "C" fn call(done: u64, total: u64, data: *mut c_void) -> bool {
        // SAFETY: `data` comes from `verify` below, and that call has not returned.
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

/// Removes the name of an image.
pub(super) fn drop(dir: BorrowedFd, name: &OsStr, force: bool) -> Result<(), Failure> {
    let name = c_string(name).map_err(of_reason)?;
    // SAFETY: as in `read`.
    checked(|error| unsafe {
        ffi::ggml_hugepages_resident_drop(dir.as_raw_fd(), name.as_ptr(), force, error)
    })
}

fn c_string(text: &OsStr) -> Result<CString, Reason> {
    CString::new(text.as_bytes()).map_err(|_| Reason {
        message: "the name contains a zero byte".to_owned(),
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
            is_hidden: raw.is_hidden,
            source: OsString::from_vec(bytes(&raw.source)).into(),
            identity: text(&raw.identity),
        }
    }

    /// Whether it is a saved prompt: a file of the kind `kv` that was written once, so it has checksums.
    pub fn is_saved_prompt(&self) -> bool {
        self.identity.lines().any(|line| line.starts_with("state "))
    }
}
