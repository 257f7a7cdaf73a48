//! Element types, with ggml's rules for their blocks.

use std::ffi::CStr;
use std::fmt;

use crate::ffi;

/// An element type of ggml, with ggml's rules for its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorType(pub(super) ffi::ggml_type);

impl TensorType {
    /// 32-bit floats.
    pub const F32: Self = Self(ffi::GGML_TYPE_F32);
    /// IEEE 754 16-bit floats.
    pub const F16: Self = Self(ffi::GGML_TYPE_F16);
    /// The upper half of 32-bit floats.
    pub const BF16: Self = Self(ffi::GGML_TYPE_BF16);
    /// Blocks of 32, 4.5 bits a weight.
    pub const Q4_0: Self = Self(ffi::GGML_TYPE_Q4_0);
    /// Blocks of 32, 8.5 bits a weight.
    pub const Q8_0: Self = Self(ffi::GGML_TYPE_Q8_0);
    /// Blocks of 256, 4.5 bits a weight.
    pub const Q4_K: Self = Self(ffi::GGML_TYPE_Q4_K);
    /// Blocks of 256, 6.5625 bits a weight.
    pub const Q6_K: Self = Self(ffi::GGML_TYPE_Q6_K);

    /// The number that the file format uses.
    pub fn id(self) -> u32 {
        self.0
    }

    /// Elements per block: 1 for the float types, 32 or 256 for the quantised ones. A row is a whole number of blocks.
    pub fn block_len(self) -> u64 {
        // SAFETY: `self.0` is one of ggml's types, and ggml_blck_size uses only this type as an index.
        unsafe { ffi::ggml_blck_size(self.0) }.cast_unsigned()
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> u64 {
        // SAFETY: as in `block_len`.
        unsafe { ffi::ggml_type_size(self.0) as u64 }
    }
}

/// ggml's name in the usual upper case of GGUF files: `Q8_0`, `F16`, `Q4_K`.
impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: as in `block_len`.
        let name = unsafe { ffi::ggml_type_name(self.0) };
        // SAFETY: ggml_type_name returns a static string for each of its types.
        let name = unsafe { CStr::from_ptr(name) };
        f.pad(&name.to_string_lossy().to_ascii_uppercase())
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_know_their_blocks() {
        for (ty, name, len, bytes) in [
            (TensorType::F32, "F32", 1, 4),
            (TensorType::BF16, "BF16", 1, 2),
            (TensorType::Q4_0, "Q4_0", 32, 18),
            (TensorType::Q8_0, "Q8_0", 32, 34),
            (TensorType::Q4_K, "Q4_K", 256, 144),
            (TensorType::Q6_K, "Q6_K", 256, 210),
        ] {
            assert_eq!(
                (ty.to_string().as_str(), ty.block_len(), ty.block_bytes()),
                (name, len, bytes)
            );
        }
    }
}
