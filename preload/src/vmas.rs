//! What the kernel maps in an address range, from `/proc/self/smaps`.

use crate::files;
use crate::ranges::{Span, align_up, overlap};

/// A mapping that is not of the model file: its huge pages, or transparent ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub span: Span,
    /// The kernel cuts the mapping only at multiples of this.
    pub unit: usize,
    /// Of the file of huge pages; 0 for anonymous memory.
    pub inode: u64,
}

impl Block {
    /// The part of the block whose pages lie completely in `span`.
    pub fn inner(&self, span: &Span) -> Span {
        let part = overlap(&self.span, span);
        let first = align_up(part.start, self.unit);
        let last = if part.end == self.span.end {
            part.end
        } else {
            part.end - part.end % self.unit
        };
        first..last.max(first)
    }

    /// The whole pages of the block that `span` touches.
    pub fn outer(&self, span: &Span) -> Span {
        let part = overlap(&self.span, span);
        if part.is_empty() {
            return part;
        }
        part.start - part.start % self.unit..align_up(part.end, self.unit).min(self.span.end)
    }
}

/// The blocks in a range, in the order of their addresses. `None` if the kernel does not show its mappings.
pub fn blocks_in(range: &Span) -> Option<Vec<Block>> {
    Some(parse(&files::read_text("/proc/self/smaps")?, range))
}

/// The file mappings around the blocks are ordinary pages of a path; blocks are on huge pages of a pool, or anonymous and writable at
/// their birth, which the engine names.
fn parse(text: &str, range: &Span) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut found: Option<(Span, u64, bool)> = None;
    for line in text.lines() {
        if let Some(kib) = line.strip_prefix("KernelPageSize:") {
            let kib: usize = kib.trim().trim_end_matches(" kB").parse().unwrap_or(4);
            let Some((span, inode, is_named)) = found.take() else {
                continue;
            };
            if kib > 64 || is_named {
                blocks.push(Block {
                    span,
                    unit: kib * 1024,
                    inode,
                });
            }
            continue;
        }
        let mut fields = line.split_ascii_whitespace();
        let Some((first, last)) = fields.next().and_then(|field| field.split_once('-')) else {
            continue;
        };
        let (Ok(first), Ok(last)) = (
            usize::from_str_radix(first, 16),
            usize::from_str_radix(last, 16),
        ) else {
            continue;
        };
        let span = overlap(&(first..last), range);
        let inode = fields.nth(3).and_then(|it| it.parse().ok());
        let is_named = fields
            .next()
            .is_some_and(|path| path.starts_with("[anon:llama-"));
        found = (!span.is_empty()).then_some((span, inode.unwrap_or(0), is_named));
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_huge_pages_and_named_memory_are_blocks() {
        let text = "\
200000-400000 r--s 00000000 fe:00 7 /m.gguf
KernelPageSize:        4 kB
400000-800000 r--s 00200000 00:0f 9 /memfd:llama-weights (deleted)
KernelPageSize:     2048 kB
800000-a00000 r--p 00000000 00:00 0 [anon:llama-weights]
KernelPageSize:        4 kB
a00000-c00000 ---p 00000000 00:00 0
KernelPageSize:        4 kB
c00000-e00000 rw-p 00000000 00:0f 9 /anon_hugepage (deleted)
KernelPageSize:     2048 kB
";
        let found = parse(text, &(0x20_0000..0xc0_0000));
        let block = |span, unit, inode| Block { span, unit, inode };
        assert_eq!(
            found,
            [
                block(0x40_0000..0x80_0000, 2 << 20, 9),
                block(0x80_0000..0xa0_0000, 4096, 0)
            ]
        );
    }

    #[test]
    fn a_block_is_cut_at_its_pages() {
        let block = Block {
            span: 0x40_0000..0xa0_0000,
            unit: 2 << 20,
            inode: 9,
        };
        assert_eq!(block.inner(&(0x40_1000..0x90_0000)), 0x60_0000..0x80_0000);
        assert_eq!(block.outer(&(0x40_1000..0x80_1000)), 0x40_0000..0xa0_0000);
        assert_eq!(block.outer(&(0x60_0000..0x80_0000)), 0x60_0000..0x80_0000);
        assert!(block.inner(&(0x60_1000..0x7f_0000)).is_empty());
        assert!(block.outer(&(0..0x40_0000)).is_empty());
    }
}
