//! Writes the files of a layout: headers, then data in pieces of a megabyte. After an error no file remains.

use std::fs;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;

use super::output::Output;
use super::part::{Part, check_space, check_target, directory};
use super::shards::{shard_path, shard_ranges};
use super::{Error, Layout, WrittenFile};
use llama_hugepages::gguf::Gguf;

/// Bytes to generate and write in one step.
const PORTION: usize = 1 << 20;

impl Layout {
    /// Writes the model and returns the files, in order.
    ///
    /// A file gets its final name only after all files are complete. After an error or a cancel, all new files are removed.
    ///
    /// # Errors
    ///
    /// Before the first write: a file exists, or too little space. Later: errors of the file system.
    pub fn write(&self, output: &Output<'_>) -> Result<Vec<WrittenFile>, Error> {
        write(self, output)
    }
}

fn write(layout: &Layout, output: &Output<'_>) -> Result<Vec<WrittenFile>, Error> {
    let ranges = shard_ranges(layout, output.shards)?;
    let paths: Vec<PathBuf> = (0..output.shards)
        .map(|index| shard_path(output.path, index, output.shards))
        .collect();
    for path in &paths {
        check_target(path, output.overwrite)?;
    }
    let headers = ranges
        .iter()
        .enumerate()
        .map(|(index, range)| header(layout, range, index, output.shards))
        .collect::<Result<Vec<_>, _>>()?;
    let total = layout.data_bytes();
    let need = total
        + headers
            .iter()
            .map(|header| header.len() as u64)
            .sum::<u64>();
    check_space(directory(output.path), need)?;

    let mut progress = Progress {
        done: 0,
        total,
        report: output.progress,
    };
    let mut parts = Vec::with_capacity(paths.len());
    for ((path, range), header) in paths.iter().zip(ranges).zip(headers) {
        let mut part = Part::create(path)?;
        part.write(&header)?;
        write_data(layout, range, &mut part, &mut progress)?;
        parts.push(part);
    }
    // The first shard comes last, because a reader opens this shard and then needs all others.
    let mut files = Vec::with_capacity(parts.len());
    let mut unfinished = Finished(Vec::new());
    while let Some(part) = parts.pop() {
        let file = part.finish()?;
        unfinished.0.push(file.path.clone());
        files.push(file);
    }
    unfinished.0.clear();
    files.reverse();
    Ok(files)
}

/// Complete files while other shards can still fail; removed when the value is dropped.
struct Finished(Vec<PathBuf>);

impl Drop for Finished {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

struct Progress<'a> {
    done: u64,
    total: u64,
    report: &'a dyn Fn(u64, u64) -> ControlFlow<()>,
}

impl Progress<'_> {
    fn advance(&mut self, bytes: usize) -> Result<(), Error> {
        self.done += bytes as u64;
        match (self.report)(self.done, self.total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}

/// The header of shard `index`, with its tensors in file order. Only the first shard contains the keys of the model, as in upstream's
/// splitter.
fn header(
    layout: &Layout,
    range: &Range<usize>,
    index: usize,
    shards: u16,
) -> Result<Vec<u8>, Error> {
    let mut header = Gguf::new()?;
    if index == 0 {
        layout.set_keys(&mut header)?;
    }
    if shards > 1 {
        header.set_u16("split.no", index as u16)?;
        header.set_u16("split.count", shards)?;
        header.set_i32(
            "split.tensors.count",
            layout.tensors.len().try_into().unwrap_or(i32::MAX),
        )?;
    }
    for tensor in &layout.tensors[range.clone()] {
        header.add_tensor(&tensor.name, tensor.ty(layout.spec.weights), &tensor.shape)?;
    }
    Ok(header.header_bytes())
}

/// Writes the data of the tensors in `range`, each padded to the alignment of the header's offsets.
fn write_data(
    layout: &Layout,
    range: Range<usize>,
    part: &mut Part,
    progress: &mut Progress<'_>,
) -> Result<(), Error> {
    let mut buffer = vec![0; PORTION];
    for tensor in &layout.tensors[range] {
        let mut stream = layout.stream(tensor)?;
        let ty = tensor.ty(layout.spec.weights);
        let portion = PORTION / (8 * ty.block_bytes() as usize) * (8 * ty.block_bytes() as usize);
        let mut left = tensor.bytes(layout.spec.weights);
        while left > 0 {
            let now = (portion as u64).min(left) as usize;
            stream.fill(&mut buffer[..now]);
            part.write(&buffer[..now])?;
            progress.advance(now)?;
            left -= now as u64;
        }
        let padding = part.bytes.next_multiple_of(ALIGNMENT) - part.bytes;
        part.write(&[0; ALIGNMENT as usize][..padding as usize])?;
    }
    Ok(())
}

/// `GGUF_DEFAULT_ALIGNMENT`. A header ends at a multiple of the alignment, so positions in the file and in the data need the same padding.
const ALIGNMENT: u64 = llama_hugepages::ffi::GGUF_DEFAULT_ALIGNMENT as u64;

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::BTreeMap};

    use sha2::{Digest, Sha256};

    use std::path::Path;

    use super::*;
    use llama_hugepages::gguf::TensorType;

    use crate::demo_model::{Arch, Experts, Spec, WEIGHT_TYPES};

    fn layout(weights: TensorType, size: &str) -> Layout {
        Spec {
            weights,
            size: size.parse().unwrap(),
            ..Spec::default()
        }
        .layout()
        .unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The data of each tensor, read like a loader: at the offsets of the table.
    fn tensors(paths: &[PathBuf]) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        for path in paths {
            let header = Gguf::open(path).unwrap();
            let file = fs::read(path).unwrap();
            for tensor in header.tensors() {
                let start = (header.data_offset() + tensor.offset) as usize;
                assert!(
                    all.insert(
                        tensor.name,
                        file[start..start + tensor.size as usize].to_vec()
                    )
                    .is_none()
                );
            }
        }
        all
    }

    #[test]
    fn the_same_spec_gives_the_same_bytes_on_any_machine() {
        let dir = tempfile::tempdir().unwrap();
        // The first eight bytes of the files' SHA-256. New values mean new models, which the commit must mention.
        let expected = [
            (TensorType::F32, 0x2f03_be05_0d17_e2d4),
            (TensorType::F16, 0xda4a_03c7_b7f2_2972),
            (TensorType::BF16, 0x5fff_5a8f_ac77_2c79),
            (TensorType::Q8_0, 0x476a_fd92_5ef2_8c78),
            (TensorType::Q4_0, 0x45f2_d81f_64d7_490d),
            (TensorType::Q4_K, 0x0121_4c9a_d7cd_511d),
            (TensorType::Q6_K, 0x0122_e72c_37f8_b159),
        ];
        let found = WEIGHT_TYPES.map(|weights| {
            let path = dir.path().join(weights.to_string());
            layout(weights, "1M").write(&Output::file(&path)).unwrap();
            let digest = Sha256::digest(fs::read(&path).unwrap());
            (weights, u64::from_be_bytes(*digest.first_chunk().unwrap()))
        });
        assert_eq!(found, expected, "{found:x?}");
    }

    #[test]
    fn shards_hold_the_same_tensors_as_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(TensorType::Q4_K, "3M");
        let whole = dir.path().join("whole.gguf");
        layout.write(&Output::file(&whole)).unwrap();
        for shards in [2, 3, 7] {
            let files = layout
                .write(&Output {
                    shards,
                    ..Output::file(&dir.path().join("cut.gguf"))
                })
                .unwrap();
            let paths: Vec<_> = files.into_iter().map(|file| file.path).collect();
            assert!(
                paths[0].ends_with(format!("cut-00001-of-{shards:05}.gguf")),
                "{paths:?}"
            );
            assert!(
                tensors(&paths) == tensors(std::slice::from_ref(&whole)),
                "{shards} shards"
            );
            assert_eq!(
                Gguf::open(&paths[0]).unwrap().u16("split.count"),
                Some(shards)
            );
        }
    }

    #[test]
    fn another_seed_changes_every_weight_and_another_order_none() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, spec: Spec| {
            let path = dir.path().join(name);
            spec.layout().unwrap().write(&Output::file(&path)).unwrap();
            tensors(&[path])
        };
        let spec = Spec {
            size: "1M".parse().unwrap(),
            ..Spec::default()
        };
        let (a, b) = (
            write("a", spec.clone()),
            write("b", Spec { seed: 1, ..spec }),
        );
        assert!(a.keys().eq(b.keys()));
        assert!(a.iter().all(|(name, data)| b[name] != *data));
    }

    #[test]
    fn the_file_is_as_long_as_its_header_says() {
        let dir = tempfile::tempdir().unwrap();
        for (arch, experts) in [
            (Arch::Llama, None),
            (Arch::Qwen3Moe, Some(Experts { count: 4, used: 2 })),
            (Arch::Bert, None),
        ] {
            let path = dir.path().join(arch.name());
            let spec = Spec {
                arch,
                experts,
                size: "4M".parse().unwrap(),
                ..Spec::default()
            };
            let files = spec.layout().unwrap().write(&Output::file(&path)).unwrap();
            let header = Gguf::open(&path).unwrap();
            let last = header.tensors().last().unwrap();
            assert_eq!(
                files[0].bytes,
                (header.data_offset() + last.offset + last.size).next_multiple_of(32)
            );
            assert_eq!(files[0].bytes, fs::metadata(&path).unwrap().len());
            assert_eq!(
                header.str("general.architecture").as_deref(),
                Some(arch.name())
            );
        }
    }

    #[test]
    fn an_existing_file_is_kept_unless_told_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        fs::write(&path, "precious").unwrap();
        let layout = layout(TensorType::Q8_0, "1M");
        assert!(matches!(
            layout.write(&Output::file(&path)),
            Err(Error::Exists(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        layout
            .write(&Output {
                overwrite: true,
                ..Output::file(&path)
            })
            .unwrap();
        assert!(Gguf::open(&path).is_ok());
        assert_eq!(names(dir.path()), ["x.gguf"]);
    }

    #[test]
    fn what_is_not_a_file_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(TensorType::Q8_0, "1M");
        for path in [dir.path(), Path::new("/dev/null")] {
            let error = layout
                .write(&Output {
                    overwrite: true,
                    ..Output::file(path)
                })
                .unwrap_err();
            assert!(matches!(error, Error::NotAFile(_)), "{error}");
        }
    }

    #[test]
    fn cancelling_leaves_nothing_at_any_point() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let layout = layout(TensorType::Q8_0, "3M");
        for stop_after in [0, 1, 20] {
            let calls = Cell::new(0);
            let progress = |_, _| {
                calls.set(calls.get() + 1);
                if calls.get() > stop_after {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            let result = layout.write(&Output {
                shards: 3,
                progress: &progress,
                ..Output::file(&path)
            });
            assert!(matches!(result, Err(Error::Cancelled)));
            assert_eq!(names(dir.path()), [""; 0]);
        }
    }
}
