//! Compares an image with its checksums.

use llama_hugepages::ffi;

use super::{Info, Store, StoreError, engine};

impl Store {
    /// Compares the complete segments of an image with their checksums, and returns what the engine knows about the image. `progress` gets
    /// the bytes done and the total; it returns `false` to stop.
    ///
    /// # Errors
    /// [`StoreError::Differs`], [`StoreError::Cancelled`], and [`StoreError::Verify`] if servers refuse the image for another reason.
    pub fn verify(
        &self,
        name: &str,
        mut progress: impl FnMut(u64, u64) -> bool,
    ) -> Result<Info, StoreError> {
        let failed = |said| StoreError::Verify {
            name: name.to_owned(),
            said,
        };
        let (info, problem) = engine::read(self.fd(), name.as_ref());
        if let Some(reason) = problem {
            return Err(failed(reason));
        }
        let verified = engine::verify(self.fd(), name.as_ref(), &mut progress);
        verified
            .map(|()| info)
            .map_err(|failure| match failure.status {
                ffi::GGML_HUGEPAGES_STATUS_ABORTED => StoreError::Cancelled,
                ffi::GGML_HUGEPAGES_STATUS_INVALID => StoreError::Differs {
                    name: name.to_owned(),
                    said: failure.reason,
                },
                _ => failed(failure.reason),
            })
    }
}
