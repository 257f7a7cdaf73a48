//! The kernel's view of one load of a file on its own file system.

use std::fs;
use std::path::{Path, PathBuf};

use super::file_system::FileSystem;
use super::gguf::Gguf;
use super::load::Load;
use super::page_cache::{self, Arrivals};
use super::server::Server;

/// Bytes of one load.
#[derive(Debug)]
pub struct Seen {
    pub size: u64,
    pub header: u64,
    pub cached_before: u64,
    /// Bytes added to the page cache, including those dropped again.
    pub arrived: u64,
    pub cached_after: u64,
    /// Bytes that the device read.
    pub from_device: u64,
    pub said: Load,
}

/// The state before a load.
pub struct Before<'a> {
    file_system: &'a FileSystem,
    cached_path: PathBuf,
    size: u64,
    header: u64,
    pub cached: u64,
    arrivals: Arrivals,
    device: u64,
}

impl<'a> Before<'a> {
    /// The state of a file that the page cache holds as `cached_path`. `demo` is another copy, because reading the header of the file
    /// itself would bring it into the page cache.
    pub fn of(
        file_system: &'a FileSystem,
        cached_path: &Path,
        demo: &Path,
    ) -> Result<Self, String> {
        let cached = page_cache::cached_bytes(cached_path)?;
        Ok(Self {
            file_system,
            cached_path: cached_path.to_owned(),
            size: fs::metadata(demo).expect("the model exists").len(),
            header: Gguf::read(demo).data,
            cached,
            arrivals: Arrivals::of(cached_path)?,
            device: file_system.device_reads(),
        })
    }

    /// The load as the kernel and the server report it.
    pub fn after(&self, server: &Server) -> Result<Seen, String> {
        Ok(Seen {
            size: self.size,
            header: self.header,
            cached_before: self.cached,
            arrived: self.arrivals.bytes(),
            cached_after: page_cache::cached_bytes(&self.cached_path)?,
            from_device: self.file_system.device_reads() - self.device,
            said: Load::of(server),
        })
    }
}
