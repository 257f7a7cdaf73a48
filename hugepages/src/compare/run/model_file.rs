//! The files of a model, and their bytes in the page cache.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fs, io, ptr};

use rustix::fs::{Advice, fadvise, fsync};
use serde::{Deserialize, Serialize};

use super::CompareError;

/// State of the page cache at the start of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// The page cache holds nothing of the model, checked with mincore.
    Cold,
    /// The page cache holds the whole model, read once.
    Warm,
}

/// All files of a model.
#[derive(Clone, Debug)]
pub struct ModelFile {
    paths: Vec<PathBuf>,
    bytes: u64,
}

impl ModelFile {
    /// Finds all files from the first one, such as `NAME-00001-of-00003.gguf`.
    ///
    /// # Errors
    /// [`CompareError::Read`] if a file is missing.
    pub fn open(first: &Path) -> Result<Self, CompareError> {
        let paths = shards(first);
        let mut bytes = 0;
        for path in &paths {
            bytes += fs::metadata(path)
                .map_err(|source| read_error(path, source))?
                .len();
        }
        Ok(Self { paths, bytes })
    }

    /// The files.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Size of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Brings the page cache into a state, and checks the result.
    ///
    /// # Errors
    /// [`CompareError::StaysCached`], [`CompareError::NotCached`], [`CompareError::Read`]
    pub fn prepare(&self, cache: Cache) -> Result<(), CompareError> {
        for path in &self.paths {
            let file = File::open(path).map_err(|source| read_error(path, source))?;
            match cache {
                Cache::Cold => drop_cached(&file).map_err(|source| read_error(path, source))?,
                Cache::Warm => read_through(&file).map_err(|source| read_error(path, source))?,
            }
        }
        match cache {
            Cache::Cold => self.stays_cold(),
            Cache::Warm => self.stays_warm(),
        }
    }

    fn stays_cold(&self) -> Result<(), CompareError> {
        let (path, bytes) = (self.paths[0].clone(), self.cached()?);
        if bytes > self.bytes / 1000 {
            return Err(CompareError::StaysCached { path, bytes });
        }
        Ok(())
    }

    /// Checks that the page cache holds the whole model.
    ///
    /// # Errors
    /// [`CompareError::NotCached`], [`CompareError::Read`]
    pub fn stays_warm(&self) -> Result<(), CompareError> {
        let (path, bytes, size) = (self.paths[0].clone(), self.cached()?, self.bytes);
        if bytes < size / 1000 * 999 {
            return Err(CompareError::NotCached { path, bytes, size });
        }
        Ok(())
    }

    /// Bytes of the model in the page cache. Source: mincore(2).
    ///
    /// # Errors
    /// [`CompareError::Read`]
    pub fn cached(&self) -> Result<u64, CompareError> {
        let mut sum = 0;
        for path in &self.paths {
            sum += File::open(path)
                .and_then(|file| cached_bytes(&file))
                .map_err(|source| read_error(path, source))?;
        }
        Ok(sum)
    }
}

fn read_error(path: &Path, source: io::Error) -> CompareError {
    CompareError::Read {
        path: path.to_owned(),
        source,
    }
}

fn shards(first: &Path) -> Vec<PathBuf> {
    let of_name = || {
        let stem = first.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let name = rest.strip_suffix("-00001")?;
        let n: u32 = count.parse().ok()?;
        let shard = |i| first.with_file_name(format!("{name}-{i:05}-of-{count}.gguf"));
        Some((1..=n).map(shard).collect())
    };
    of_name().unwrap_or_else(|| vec![first.to_owned()])
}

fn drop_cached(file: &File) -> io::Result<()> {
    // The kernel drops only clean pages, so write them to disk first.
    fsync(file)?;
    fadvise(file, 0, None, Advice::DontNeed)?;
    Ok(())
}

fn read_through(mut file: &File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

fn cached_bytes(file: &File) -> io::Result<u64> {
    let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if size == 0 {
        return Ok(0);
    }
    let page = rustix::param::page_size();
    let mut states = vec![0_u8; size.div_ceil(page)];
    let protection = rustix::mm::ProtFlags::empty();
    let flags = rustix::mm::MapFlags::SHARED;
    // SAFETY: a new mapping at an address that the kernel chooses, of a file that is open.
    let address = unsafe { rustix::mm::mmap(ptr::null_mut(), size, protection, flags, file, 0) }?;
    // SAFETY: `address..address+size` was mapped above, and `states` has a byte for each of its pages.
    let told = unsafe { libc::mincore(address, size, states.as_mut_ptr()) };
    let error = io::Error::last_os_error();
    // SAFETY: mapped above, and nobody else knows the address.
    unsafe { rustix::mm::munmap(address, size) }?;
    if told != 0 {
        return Err(error);
    }
    let pages = states.iter().filter(|state| **state & 1 == 1).count();
    Ok((pages * page).min(size) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_shard_brings_the_others_along() {
        assert_eq!(
            shards(Path::new("/m/x-00001-of-00003.gguf")),
            [
                "/m/x-00001-of-00003.gguf",
                "/m/x-00002-of-00003.gguf",
                "/m/x-00003-of-00003.gguf"
            ]
            .map(PathBuf::from)
        );
        for alone in ["/m/x.gguf", "/m/x-00002-of-00003.gguf", "/m/x-of-y.gguf"] {
            assert_eq!(shards(Path::new(alone)), [PathBuf::from(alone)]);
        }
    }

    #[test]
    fn what_is_dropped_is_counted_as_dropped() {
        let file = tempfile::Builder::new().tempfile_in(".").unwrap();
        fs::write(file.path(), vec![1; 1 << 20]).unwrap();
        let model = ModelFile::open(file.path()).unwrap();
        model.prepare(Cache::Warm).unwrap();
        assert_eq!(model.cached().unwrap(), 1 << 20);
        model.prepare(Cache::Cold).unwrap();
        assert_eq!(model.cached().unwrap(), 0);
    }
}
