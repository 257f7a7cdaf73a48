//! GGUF files through the linked `gguf_*` API, so that this crate and the server read and write them with the same code.
//!
//! [`Gguf`] is the header of a file: keys, values and the table of tensors. It contains no tensor data; a caller reads or writes the data
//! at the offsets in the table:
//!
//! ```text
//! |  header: keys, table  |pad|  t0  |pad|    t1    |pad|  …
//! 0                           ^ data_offset             each tensor starts at data_offset + its own offset, aligned to 32
//! ```
//!
//! Upstream aborts the process on misuse (a wrong type, a duplicate name); this module returns an error instead.

#![expect(
    clippy::missing_errors_doc,
    reason = "each variant of `GgufError` is such a documentation"
)]

mod error;
mod tensor_type;
mod write;

use std::{
    ffi::{CStr, CString, NulError},
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr::NonNull,
};

use crate::ffi;

pub use error::GgufError;
pub use tensor_type::TensorType;

/// One line of the table of tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Type of its elements.
    pub ty: TensorType,
    /// Elements per dimension, innermost first, as ggml counts (`ne`).
    pub shape: [u64; ffi::GGML_MAX_DIMS as usize],
    /// Bytes from the start of the data section.
    pub offset: u64,
    /// Bytes of data, without the padding behind it.
    pub size: u64,
}

/// The header of a GGUF file, either read from a file or under construction.
pub struct Gguf(NonNull<ffi::gguf_context>);

// SAFETY: a gguf_context is plain memory that belongs to no thread, and no function here writes through `&self`.
unsafe impl Send for Gguf {}

impl Gguf {
    /// An empty header.
    pub fn new() -> Result<Self, GgufError> {
        // SAFETY: no argument; the result is owned by us and freed in `drop`.
        let raw = unsafe { ffi::gguf_init_empty() };
        NonNull::new(raw).map(Self).ok_or(GgufError::OutOfMemory)
    }

    /// Reads only the header of a file, not the tensor data.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        // Opens the file first, because upstream does not return the error of the system.
        std::fs::File::open(path).map_err(|source| GgufError::Open {
            path: path.into(),
            source,
        })?;
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| GgufError::ZeroByte(path.display().to_string()))?;
        let params = ffi::gguf_init_params {
            no_alloc: true,
            ctx: std::ptr::null_mut(),
        };
        // SAFETY: `name` is a C string that outlives the call; a null `ctx` asks for no tensors.
        let raw = unsafe { ffi::gguf_init_from_file(name.as_ptr(), params) };
        NonNull::new(raw)
            .map(Self)
            .ok_or_else(|| GgufError::NotReadable { path: path.into() })
    }

    /// The header in the form of a file, padded to the start of the data.
    pub fn header_bytes(&self) -> Vec<u8> {
        // SAFETY: reads our own context.
        let size = unsafe { ffi::gguf_get_meta_size(self.0.as_ptr()) };
        let mut bytes = vec![0u8; size];
        // SAFETY: `bytes` has the size from the call above, and the context did not change since.
        unsafe { ffi::gguf_get_meta_data(self.0.as_ptr(), bytes.as_mut_ptr().cast()) };
        bytes
    }

    /// Start of the data section in a file that [`Gguf::open`] read.
    pub fn data_offset(&self) -> u64 {
        // SAFETY: reads our own context.
        unsafe { ffi::gguf_get_data_offset(self.0.as_ptr()) as u64 }
    }

    /// Alignment in bytes: the data of each tensor starts at a multiple, counted from the start of the data section.
    pub fn alignment(&self) -> u64 {
        // SAFETY: reads our own context.
        unsafe { ffi::gguf_get_alignment(self.0.as_ptr()) as u64 }
    }

    /// The table of tensors, in file order.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo> + '_ {
        // SAFETY: reads our own context.
        let count = unsafe { ffi::gguf_get_n_tensors(self.0.as_ptr()) };
        (0..count).map(|index| self.tensor(index))
    }

    /// Requires an `index` below the number of tensors.
    fn tensor(&self, index: i64) -> TensorInfo {
        let raw = self.0.as_ptr();
        // SAFETY: the context is ours and `index` is within the table, here and below.
        let name = unsafe { ffi::gguf_get_tensor_name(raw, index) };
        // SAFETY: the name is a C string inside the context, which lives as long as `self`.
        let name = unsafe { CStr::from_ptr(name) }
            .to_string_lossy()
            .into_owned();
        // SAFETY: see above.
        let ne = unsafe { ffi::gguf_get_tensor_ne(raw, index) };
        // SAFETY: gguf.h promises GGML_MAX_DIMS elements inside the context.
        let ne = unsafe { *ne.cast::<[i64; ffi::GGML_MAX_DIMS as usize]>() };
        // SAFETY: see above.
        let ty = unsafe { ffi::gguf_get_tensor_type(raw, index) };
        // SAFETY: see above.
        let offset = unsafe { ffi::gguf_get_tensor_offset(raw, index) };
        // SAFETY: see above.
        let size = unsafe { ffi::gguf_get_tensor_size(raw, index) };
        TensorInfo {
            name,
            ty: TensorType(ty),
            shape: ne.map(i64::cast_unsigned),
            offset: offset as u64,
            size: size as u64,
        }
    }

    fn find_tensor(&self, name: &CStr) -> Option<i64> {
        // SAFETY: the context is ours, the name a C string.
        let index = unsafe { ffi::gguf_find_tensor(self.0.as_ptr(), name.as_ptr()) };
        (index >= 0).then_some(index)
    }

    fn find_key(&self, key: &str, ty: ffi::gguf_type) -> Option<i64> {
        let key = c_string(key).ok()?;
        // SAFETY: the context is ours, the key a C string.
        let index = unsafe { ffi::gguf_find_key(self.0.as_ptr(), key.as_ptr()) };
        if index < 0 {
            return None;
        }
        // SAFETY: `index` was found above. The check of the type comes first, because the getters abort on a wrong type.
        let found = unsafe { ffi::gguf_get_kv_type(self.0.as_ptr(), index) };
        (found == ty).then_some(index)
    }

    /// The value of a string key; `None` when it is absent or of another type.
    pub fn str(&self, key: &str) -> Option<String> {
        let index = self.find_key(key, ffi::GGUF_TYPE_STRING)?;
        // SAFETY: `find_key` checked that the key exists and is a string.
        let value = unsafe { ffi::gguf_get_val_str(self.0.as_ptr(), index) };
        // SAFETY: the value is a C string inside the context, which lives as long as `self`.
        Some(
            unsafe { CStr::from_ptr(value) }
                .to_string_lossy()
                .into_owned(),
        )
    }

    /// The value of a `u32` key; `None` when it is absent or of another type.
    pub fn u32(&self, key: &str) -> Option<u32> {
        let index = self.find_key(key, ffi::GGUF_TYPE_UINT32)?;
        // SAFETY: `find_key` checked that the key exists and has this type.
        Some(unsafe { ffi::gguf_get_val_u32(self.0.as_ptr(), index) })
    }

    /// The value of a `u16` key (`split.count`); `None` when it is absent or of another type.
    pub fn u16(&self, key: &str) -> Option<u16> {
        let index = self.find_key(key, ffi::GGUF_TYPE_UINT16)?;
        // SAFETY: `find_key` checked that the key exists and has this type.
        Some(unsafe { ffi::gguf_get_val_u16(self.0.as_ptr(), index) })
    }
}

impl Drop for Gguf {
    fn drop(&mut self) {
        // SAFETY: made by gguf_init_*, and freed here only.
        unsafe { ffi::gguf_free(self.0.as_ptr()) };
    }
}

fn c_string(text: &str) -> Result<CString, GgufError> {
    CString::new(text).map_err(|error: NulError| {
        GgufError::ZeroByte(String::from_utf8_lossy(&error.into_vec()).into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Gguf {
        let mut header = Gguf::new().unwrap();
        header.set_str("general.architecture", "llama").unwrap();
        header.set_u32("llama.block_count", 3).unwrap();
        header.set_u16("split.count", 2).unwrap();
        header.set_str_array("words", &["a", "", "ü"]).unwrap();
        header.set_i32_array("numbers", &[]).unwrap();
        header.add_tensor("a", TensorType::F32, &[3]).unwrap();
        header.add_tensor("b", TensorType::Q8_0, &[64, 2]).unwrap();
        header
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let header = small().header_bytes();
        let mut file = header.clone();
        file.resize(header.len() + 32 + 160, 0);
        std::fs::write(&path, &file).unwrap();

        let read = Gguf::open(&path).unwrap();
        assert_eq!(read.str("general.architecture").as_deref(), Some("llama"));
        assert_eq!(read.u32("llama.block_count"), Some(3));
        assert_eq!(read.u16("split.count"), Some(2));
        assert_eq!(
            read.u32("general.architecture"),
            None,
            "another type is not an answer"
        );
        assert_eq!(read.alignment(), 32);
        assert_eq!(read.data_offset(), header.len() as u64);
        let tensors: Vec<_> = read.tensors().collect();
        assert_eq!(
            tensors[0],
            TensorInfo {
                name: "a".into(),
                ty: TensorType::F32,
                shape: [3, 1, 1, 1],
                offset: 0,
                size: 12
            }
        );
        assert_eq!(
            tensors[1],
            TensorInfo {
                name: "b".into(),
                ty: TensorType::Q8_0,
                shape: [64, 2, 1, 1],
                offset: 32,
                size: 136
            }
        );
    }

    #[test]
    fn misuse_that_upstream_aborts_on_is_an_error() {
        let mut header = small();
        assert!(matches!(
            header.add_tensor("a", TensorType::F32, &[1]),
            Err(GgufError::DuplicateTensor(_))
        ));
        assert!(matches!(
            header.add_tensor(&"x".repeat(64), TensorType::F32, &[1]),
            Err(GgufError::NameTooLong(_))
        ));
        assert!(matches!(
            header.add_tensor("c", TensorType::Q4_K, &[32]),
            Err(GgufError::Shape { .. })
        ));
        assert!(matches!(
            header.add_tensor("c", TensorType::F32, &[]),
            Err(GgufError::Shape { .. })
        ));
        assert!(matches!(
            header.add_tensor("c", TensorType::F32, &[1, 0]),
            Err(GgufError::Shape { .. })
        ));
        assert!(matches!(
            header.set_u32("general.alignment", 0),
            Err(GgufError::Reserved(_))
        ));
        assert!(matches!(
            header.set_str("a\0b", "c"),
            Err(GgufError::ZeroByte(_))
        ));
    }

    #[test]
    fn a_file_that_is_not_gguf_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        assert!(matches!(Gguf::open(&path), Err(GgufError::Open { .. })));
        std::fs::write(&path, "hello").unwrap();
        assert!(matches!(
            Gguf::open(&path),
            Err(GgufError::NotReadable { .. })
        ));
    }
}
