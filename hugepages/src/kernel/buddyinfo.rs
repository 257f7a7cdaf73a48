//! `/proc/buddyinfo`: free pieces of 1, 2, 4, … base pages in each zone.

use super::{HugePageSize, Root, files};

/// The free pieces of memory.
#[derive(Debug, Clone)]
pub struct FreePieces {
    buddyinfo: String,
    base_page: u64,
}

impl FreePieces {
    /// Reads the free pieces.
    pub fn read(root: &Root) -> Self {
        Self {
            buddyinfo: files::text(root, "/proc/buddyinfo").unwrap_or_default(),
            base_page: rustix::param::page_size() as u64,
        }
    }

    /// Number of pages of this size in free pieces. `None` for sizes above the largest piece that the kernel counts.
    pub fn pages(&self, size: HugePageSize) -> Option<u64> {
        let order = (size.bytes() / self.base_page).checked_ilog2()? as usize;
        let mut sum = None;
        for line in self.buddyinfo.lines() {
            // Node 0, zone   Normal   12  3 …
            let counts: Vec<u64> = line
                .split_whitespace()
                .skip(4)
                .filter_map(|count| count.parse().ok())
                .collect();
            if order < counts.len() {
                let above = counts[order..].iter().enumerate();
                *sum.get_or_insert(0) += above.map(|(more, count)| count << more).sum::<u64>();
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_pieces_count_as_often_as_a_page_fits() {
        let pieces = FreePieces {
            buddyinfo: "Node 0, zone   Normal  9 9 9 9 9 9 9 9 9 3 2\nNode 1, zone   Normal  0 0 0 0 0 0 0 0 0 1 0\n"
                .to_owned(),
            base_page: 4096,
        };
        assert_eq!(pieces.pages("2M".parse().unwrap()), Some(3 + 2 * 2 + 1));
        assert_eq!(pieces.pages("1G".parse().unwrap()), None);
    }
}
