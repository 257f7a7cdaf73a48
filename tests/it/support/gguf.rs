//! An independent reader of GGUF tables, so that expected values do not come from the code under test.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::pool::PAGE;

pub struct Tensor {
    pub name: String,
    /// Bytes `[start, end)` of the file.
    pub start: u64,
    pub end: u64,
}

pub struct Gguf {
    pub path: PathBuf,
    pub tensors: Vec<Tensor>,
    /// The end of the header, where the first tensor begins.
    pub data: u64,
}

impl Gguf {
    pub fn read(path: &Path) -> Self {
        let file = File::open(path)
            .unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
        let mut reader = Reader {
            file: BufReader::new(file),
            at: 0,
        };
        assert_eq!(&reader.bytes::<4>(), b"GGUF", "{}", path.display());
        assert_eq!(reader.u32(), 3, "version of {}", path.display());
        let (n_tensors, n_keys) = (reader.u64(), reader.u64());
        let mut alignment = 32;
        for _ in 0..n_keys {
            let key = reader.string();
            let value = reader.value();
            if key == "general.alignment" {
                alignment = value;
            }
        }
        let infos: Vec<_> = (0..n_tensors)
            .map(|_| {
                let name = reader.string();
                let n_dims = reader.u32();
                let elements: u64 = (0..n_dims).map(|_| reader.u64()).product();
                let kind = reader.u32();
                let offset = reader.u64();
                (name, offset, size_of(kind, elements))
            })
            .collect();
        let data = reader.at.next_multiple_of(alignment);
        let tensors = infos
            .into_iter()
            .map(|(name, offset, size)| Tensor {
                name,
                start: data + offset,
                end: data + offset + size,
            })
            .collect();
        Self {
            path: path.to_owned(),
            tensors,
            data,
        }
    }

    /// All files of a model, given its first or only one.
    pub fn read_model(first: &Path) -> Vec<Self> {
        files(first).iter().map(|file| Self::read(file)).collect()
    }

    pub fn tensor(&self, name: &str) -> &Tensor {
        let found = self.tensors.iter().find(|tensor| tensor.name == name);
        found.unwrap_or_else(|| panic!("no tensor `{name}` in {}", self.path.display()))
    }

    /// The blocks of the file image that hold a byte of a tensor.
    pub fn blocks(&self) -> BTreeSet<u64> {
        self.tensors
            .iter()
            .flat_map(|tensor| tensor.start / PAGE..tensor.end.div_ceil(PAGE))
            .collect()
    }
}

/// Huge pages that a model needs when all its tensors are mapped.
pub fn pages(first: &Path) -> u64 {
    Gguf::read_model(first)
        .iter()
        .map(|file| file.blocks().len() as u64)
        .sum()
}

/// `x-00001-of-00003.gguf` and its sisters, or the one file.
pub fn files(first: &Path) -> Vec<PathBuf> {
    let name = first
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name in UTF-8");
    let Some((prefix, _)) = name.split_once("-00001-of-") else {
        return vec![first.to_owned()];
    };
    let mut files: Vec<_> = fs::read_dir(first.parent().expect("a file is in a folder"))
        .expect("the folder can be read")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(&format!("{prefix}-0")))
        })
        .collect();
    files.sort();
    files
}

/// Bytes of `elements` of a type, as ggml.h numbers them.
fn size_of(kind: u32, elements: u64) -> u64 {
    let (block_elements, block_bytes) = match kind {
        0 | 26 => (1, 4),     // F32, I32
        1 => (1, 2),          // F16
        2 => (32, 2 + 16),    // Q4_0: a scale and 32 nibbles
        3 => (32, 4 + 16),    // Q4_1: a scale, a minimum and 32 nibbles
        8 => (32, 2 + 32),    // Q8_0: a scale and 32 bytes
        12 => (256, 4 + 140), // Q4_K: two scales, 12 bytes of packed scales, 256 nibbles
        14 => (256, 210),     // Q6_K: 128 + 64 bytes of quants, 16 scales, a scale
        other => panic!("type {other} is not one that the tests use"),
    };
    assert_eq!(elements % block_elements, 0);
    elements / block_elements * block_bytes
}

struct Reader {
    file: BufReader<File>,
    at: u64,
}

impl Reader {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.file
            .read_exact(&mut bytes)
            .expect("the header is whole");
        self.at += N as u64;
        bytes
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    fn string(&mut self) -> String {
        let length = self.u64();
        let mut bytes = vec![0; usize::try_from(length).expect("a short string")];
        self.file
            .read_exact(&mut bytes)
            .expect("the header is whole");
        self.at += length;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The number of a key; 0 if its value is not a number.
    fn value(&mut self) -> u64 {
        let kind = self.u32();
        self.value_of(kind)
    }

    fn value_of(&mut self, kind: u32) -> u64 {
        match kind {
            0 | 1 | 7 => u64::from(self.bytes::<1>()[0]),
            2 | 3 => u64::from(u16::from_le_bytes(self.bytes())),
            4..=6 => u64::from(self.u32()),
            8 => {
                self.string();
                0
            }
            9 => {
                let (kind, length) = (self.u32(), self.u64());
                for _ in 0..length {
                    self.value_of(kind);
                }
                0
            }
            10..=12 => self.u64(),
            other => panic!("no such value type: {other}"),
        }
    }
}
