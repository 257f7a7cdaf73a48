//! Keys and tensors of a new header.

use std::ffi::CString;
use std::ptr::NonNull;

use super::{Gguf, GgufError, TensorType, c_string};
use crate::ffi;

impl Gguf {
    /// Sets a `u16`, and replaces an earlier value.
    pub fn set_u16(&mut self, key: &str, value: u16) -> Result<(), GgufError> {
        let key = setting(key)?;
        // SAFETY: the context is ours and the key outlives the call, which copies it.
        unsafe { ffi::gguf_set_val_u16(self.0.as_ptr(), key.as_ptr(), value) };
        Ok(())
    }

    /// Sets an `i32`, and replaces an earlier value.
    pub fn set_i32(&mut self, key: &str, value: i32) -> Result<(), GgufError> {
        let key = setting(key)?;
        // SAFETY: as in `set_u16`.
        unsafe { ffi::gguf_set_val_i32(self.0.as_ptr(), key.as_ptr(), value) };
        Ok(())
    }

    /// Sets a `u32`, and replaces an earlier value.
    pub fn set_u32(&mut self, key: &str, value: u32) -> Result<(), GgufError> {
        let key = setting(key)?;
        // SAFETY: as in `set_u16`.
        unsafe { ffi::gguf_set_val_u32(self.0.as_ptr(), key.as_ptr(), value) };
        Ok(())
    }

    /// Sets an `f32`, and replaces an earlier value.
    pub fn set_f32(&mut self, key: &str, value: f32) -> Result<(), GgufError> {
        let key = setting(key)?;
        // SAFETY: as in `set_u16`.
        unsafe { ffi::gguf_set_val_f32(self.0.as_ptr(), key.as_ptr(), value) };
        Ok(())
    }

    /// Sets a `bool`, and replaces an earlier value.
    pub fn set_bool(&mut self, key: &str, value: bool) -> Result<(), GgufError> {
        let key = setting(key)?;
        // SAFETY: as in `set_u16`.
        unsafe { ffi::gguf_set_val_bool(self.0.as_ptr(), key.as_ptr(), value) };
        Ok(())
    }

    /// Sets a string, and replaces an earlier value.
    pub fn set_str(&mut self, key: &str, value: &str) -> Result<(), GgufError> {
        let (key, value) = (setting(key)?, c_string(value)?);
        // SAFETY: as in `set_u16`; the value is a C string that is copied as well.
        unsafe { ffi::gguf_set_val_str(self.0.as_ptr(), key.as_ptr(), value.as_ptr()) };
        Ok(())
    }

    /// Sets an array of `i32`, and replaces an earlier value.
    pub fn set_i32_array(&mut self, key: &str, values: &[i32]) -> Result<(), GgufError> {
        let key = setting(key)?;
        let (raw, ty) = (self.0.as_ptr(), ffi::GGUF_TYPE_INT32);
        let data = values.as_ptr().cast();
        // SAFETY: as in `set_u16`; `data` is `values.len()` numbers of the type named, copied by the call.
        unsafe { ffi::gguf_set_arr_data(raw, key.as_ptr(), ty, data, values.len()) };
        Ok(())
    }

    /// Sets an array of `f32`, and replaces an earlier value.
    pub fn set_f32_array(&mut self, key: &str, values: &[f32]) -> Result<(), GgufError> {
        let key = setting(key)?;
        let (raw, ty) = (self.0.as_ptr(), ffi::GGUF_TYPE_FLOAT32);
        let data = values.as_ptr().cast();
        // SAFETY: as in `set_u16`; `data` is `values.len()` numbers of the type named, copied by the call.
        unsafe { ffi::gguf_set_arr_data(raw, key.as_ptr(), ty, data, values.len()) };
        Ok(())
    }

    /// Sets an array of strings, and replaces an earlier value.
    pub fn set_str_array<S: AsRef<str>>(
        &mut self,
        key: &str,
        values: &[S],
    ) -> Result<(), GgufError> {
        let key = setting(key)?;
        let values = values
            .iter()
            .map(|value| c_string(value.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        let mut pointers: Vec<_> = values.iter().map(|value| value.as_ptr()).collect();
        let (raw, data) = (self.0.as_ptr(), pointers.as_mut_ptr());
        // SAFETY: as in `set_u16`; `pointers` holds one C string for each of `values`, which outlive the call.
        unsafe { ffi::gguf_set_arr_str(raw, key.as_ptr(), data, pointers.len()) };
        Ok(())
    }

    /// Adds a tensor after the last one. Its data starts at the next multiple of the alignment.
    pub fn add_tensor(
        &mut self,
        name: &str,
        ty: TensorType,
        shape: &[u64],
    ) -> Result<(), GgufError> {
        let c_name = c_string(name)?;
        if name.len() >= ffi::GGML_MAX_NAME as usize {
            return Err(GgufError::NameTooLong(name.into()));
        }
        if self.find_tensor(&c_name).is_some() {
            return Err(GgufError::DuplicateTensor(name.into()));
        }
        let bad_shape = || GgufError::Shape {
            name: name.into(),
            ty,
            shape: shape.into(),
        };
        if shape.is_empty()
            || shape.len() > ffi::GGML_MAX_DIMS as usize
            || shape.contains(&0)
            || !shape[0].is_multiple_of(ty.block_len())
        {
            return Err(bad_shape());
        }
        let ne = shape
            .iter()
            .map(|&n| i64::try_from(n))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| bad_shape())?;

        let dims = i32::try_from(ne.len()).map_err(|_| bad_shape())?;

        let tensors = TensorContext::with_room_for_one()?;
        // SAFETY: the context has room for one tensor without data; `ne` holds `dims` numbers, at most GGML_MAX_DIMS.
        let tensor = unsafe { ffi::ggml_new_tensor(tensors.0.as_ptr(), ty.0, dims, ne.as_ptr()) };
        // SAFETY: ggml_new_tensor never returns null, and copies at most GGML_MAX_NAME bytes of the C string here.
        unsafe { ffi::ggml_set_name(tensor, c_name.as_ptr()) };
        // SAFETY: both are alive, and the call copies the tensor. The name is new (checked above).
        unsafe { ffi::gguf_add_tensor(self.0.as_ptr(), tensor) };
        Ok(())
    }
}

/// A ggml context that holds the description of one tensor and no data.
struct TensorContext(NonNull<ffi::ggml_context>);

impl TensorContext {
    fn with_room_for_one() -> Result<Self, GgufError> {
        // SAFETY: no argument, a constant of ggml.
        let mem_size = unsafe { ffi::ggml_tensor_overhead() };
        let params = ffi::ggml_init_params {
            mem_size,
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        };
        // SAFETY: a null buffer makes ggml allocate its own; freed in `drop`.
        let raw = unsafe { ffi::ggml_init(params) };
        NonNull::new(raw).map(Self).ok_or(GgufError::OutOfMemory)
    }
}

impl Drop for TensorContext {
    fn drop(&mut self) {
        // SAFETY: made by ggml_init, and freed here only.
        unsafe { ffi::ggml_free(self.0.as_ptr()) };
    }
}

/// Checks the name of a key to set. Refuses the alignment, because upstream aborts on invalid values and no caller needs another value.
fn setting(key: &str) -> Result<CString, GgufError> {
    if key.as_bytes()
        == ffi::GGUF_KEY_GENERAL_ALIGNMENT
            .strip_suffix(b"\0")
            .unwrap_or_default()
    {
        return Err(GgufError::Reserved(key.into()));
    }
    c_string(key)
}
