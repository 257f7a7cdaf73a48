//! The kernel's view of one load of a file on a file system of its own.

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
    /// Bytes that came into the page cache, also if they were dropped again.
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
    /// Of a file whose pages are those of `cached_path`. `demo` is another copy: reading its header brings nothing of this one into
    /// memory.
    pub fn of(
        file_system: &'a FileSystem,
        cached_path: &Path,
        demo: &Path,
    ) -> Result<Self, String> {
        let cached = page_cache::cached_bytes(cached_path)?;
        Ok(Self {
            file_system,
            cached_path: cached_path.to_owned(),
            size: fs::metadata(demo).expect("it is there").len(),
            header: Gguf::read(demo).data,
            cached,
            arrivals: Arrivals::of(cached_path)?,
            device: file_system.device_reads(),
        })
    }

    /// With what the server states about its load.
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
