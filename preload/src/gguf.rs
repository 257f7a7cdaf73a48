//! The table of tensors in a GGUF file, read with upstream's code.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr::NonNull;

use crate::ffi;

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub ty: u32,
    /// Whether it has rows.
    pub is_matrix: bool,
    /// Number of matrices: one, or one for each expert.
    pub matrices: usize,
    /// Bytes from the start of the file.
    pub first: usize,
    pub size: usize,
}

struct Header(NonNull<ffi::gguf_context>);

impl Drop for Header {
    fn drop(&mut self) {
        // SAFETY: made by gguf_init_from_file, and freed nowhere else.
        unsafe { ffi::gguf_free(self.0.as_ptr()) };
    }
}

/// The table of a file; `None` if the file is not valid.
pub fn read(path: &Path) -> Option<Vec<Entry>> {
    use std::os::unix::ffi::OsStrExt;
    let name = CString::new(path.as_os_str().as_bytes()).ok()?;
    let params = ffi::gguf_init_params {
        no_alloc: true,
        ctx: std::ptr::null_mut(),
    };
    // SAFETY: a C string; a null `ctx` asks for no tensors.
    let header = Header(NonNull::new(unsafe {
        ffi::gguf_init_from_file(name.as_ptr(), params)
    })?);
    // SAFETY: reads the header.
    let count = unsafe { ffi::gguf_get_n_tensors(header.0.as_ptr()) };
    (0..count).map(|index| entry(&header, index)).collect()
}

fn entry(header: &Header, index: i64) -> Option<Entry> {
    let raw = header.0.as_ptr();
    // SAFETY: the index is inside the table, here and below.
    let name = unsafe { ffi::gguf_get_tensor_name(raw, index) };
    // SAFETY: a C string of the header.
    let name = unsafe { CStr::from_ptr(name) }
        .to_string_lossy()
        .into_owned();
    // SAFETY: see above.
    let ne = unsafe { ffi::gguf_get_tensor_ne(raw, index) };
    // SAFETY: gguf.h promises GGML_MAX_DIMS elements inside the header.
    let [_, rows, third, fourth] = unsafe { *ne.cast::<[i64; ffi::GGML_MAX_DIMS as usize]>() };
    // SAFETY: see above.
    let ty = unsafe { ffi::gguf_get_tensor_type(raw, index) };
    // SAFETY: see above.
    let offset = unsafe { ffi::gguf_get_tensor_offset(raw, index) };
    // SAFETY: see above.
    let size = unsafe { ffi::gguf_get_tensor_size(raw, index) };
    // SAFETY: see above.
    let data = unsafe { ffi::gguf_get_data_offset(raw) };
    Some(Entry {
        name,
        ty,
        is_matrix: rows > 1,
        matrices: usize::try_from(third.checked_mul(fourth)?).ok()?,
        first: data.checked_add(offset)?,
        size,
    })
}
