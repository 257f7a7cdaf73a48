//! The shards of a model: their tensors and their names.

use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Error, Layout};

/// Cuts the tensors into runs of about the same number of bytes, none of them empty.
pub(super) fn shard_ranges(layout: &Layout, shards: u16) -> Result<Vec<Range<usize>>, Error> {
    let (count, tensors) = (usize::from(shards), layout.tensors.len());
    if count == 0 || count > tensors {
        return Err(Error::Shards { shards, tensors });
    }
    let size = |index: usize| u128::from(layout.tensors[index].bytes(layout.spec.weights));
    let total = u128::from(layout.data_bytes());
    let (mut ranges, mut start, mut bytes) = (Vec::with_capacity(count), 0, 0);
    for index in 1..=count {
        let limit = total * index as u128 / count as u128;
        // Each later shard needs at least one tensor.
        let latest = tensors - (count - index);
        let mut end = start;
        while end < latest && (end == start || bytes + size(end) <= limit) {
            bytes += size(end);
            end += 1;
        }
        ranges.push(start..end);
        start = end;
    }
    Ok(ranges)
}

/// The name of a file: the requested name, or the name of a shard that upstream's loader expects.
pub(super) fn shard_path(path: &Path, index: u16, shards: u16) -> PathBuf {
    if shards == 1 {
        return path.into();
    }
    let prefix = if path
        .extension()
        .is_some_and(|extension| extension == "gguf")
    {
        path.with_extension("")
    } else {
        path.into()
    };
    let mut name = OsString::from(prefix);
    name.push(format!("-{:05}-of-{shards:05}.gguf", index + 1));
    name.into()
}

#[cfg(test)]
mod tests {
    use llama_hugepages::gguf::TensorType;

    use super::*;
    use crate::demo_model::Spec;

    #[test]
    fn shards_are_of_about_the_same_size_and_never_empty() {
        let spec = Spec {
            size: "300M".parse().unwrap(),
            ..Spec::default()
        };
        let layout = spec.layout().unwrap();
        let count = layout.tensors.len();
        for shards in [1, 2, 3, 10, count as u16] {
            let ranges = shard_ranges(&layout, shards).unwrap();
            assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, count));
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(ranges.iter().all(|range| !range.is_empty()));
            let bytes = |range: &Range<usize>| {
                layout.tensors[range.clone()]
                    .iter()
                    .map(|t| t.bytes(TensorType::Q8_0))
                    .sum::<u64>()
            };
            if shards <= 3 {
                let fair = layout.data_bytes() / u64::from(shards);
                assert!(
                    ranges
                        .iter()
                        .all(|range| bytes(range).abs_diff(fair) < fair / 10)
                );
            }
        }
        assert!(matches!(
            shard_ranges(&layout, count as u16 + 1),
            Err(Error::Shards { .. })
        ));
        assert!(matches!(
            shard_ranges(&layout, 0),
            Err(Error::Shards { .. })
        ));
    }
}
