//! A model file in memory, part of it on huge pages, which looks like a file mapping to the program.
//!
//! ```text
//! file image   |hdr|  t0  |   t1    |  t2  | end |      addresses of the program's mapping
//! blocks           [ 2M ][ 2M ][ 2M ][ 2M  ]            the kernel cuts them only at multiples of a huge page
//! ghosts       [xx]                       [xxxx]        unmapped by the program, but in a page that it still uses
//! ```
//!
//! - An advice changes nothing for a block. It goes to the kernel for the file mapping around the blocks.
//! - If the program unmaps a part of a block, the part becomes a ghost. When a page has only ghosts, it returns to the pool.
//! - If the program does anything else to a part of a block (protect, move, map over it), the pages of the part become a file mapping
//!   again, and the kernel does the rest.

use std::ffi::c_int;
use std::fs::File;

use crate::kept::Kept;
use crate::ranges::{Ranges, Span, align_down, align_up, overlap, pointer};
use crate::vmas::{self, Block};
use crate::{files, fork, next};

/// Bytes of a page that is not huge. `mmap` has no smaller unit.
pub fn base_page() -> usize {
    // SAFETY: only reads a constant of the system.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// A failed call, as `errno`.
pub type Errno = c_int;

pub struct Image {
    /// Addresses that the program or a ghost occupies.
    pub owned: Ranges,
    /// Addresses that the program unmapped. Part of `owned`.
    ghosts: Ranges,
    blocks: Vec<Block>,
    base: usize,
    /// `MAP_SHARED` or `MAP_PRIVATE`, as the program asked.
    flags: c_int,
    file: Kept,
    /// The files of the huge pages of this process. A page returns to the pool when it is punched out of its file.
    pools: Vec<PoolFile>,
    /// Whether a child has the same pages, which must stay then.
    has_child: bool,
    /// The engine's description, for its report.
    pub handle: usize,
    /// The tensors, for [`Image::copied`].
    pub tensors: Vec<Tensor>,
    /// Groups of tensors that the program copies to a buffer.
    copied: Vec<u64>,
}

/// A memfd of huge pages. The page at a distance from the start of the image is at the same distance in the file.
pub struct PoolFile(Kept);

impl PoolFile {
    /// `None`: the file was closed meanwhile.
    pub fn new(file: File) -> Option<Self> {
        Kept::new(file).map(Self)
    }

    /// Returns pages that nothing maps any more.
    fn punch(&self, offset: usize, len: usize) {
        // A child that no fork handler knows of has the file of its parent.
        if let Some(file) = self.0.descriptor().filter(|_| fork::is_this_process()) {
            files::punch(file, &(offset..offset + len));
        }
    }
}

/// What the engine filled.
pub struct Filled {
    pub base: usize,
    /// Bytes of the file.
    pub size: usize,
    /// Of the engine's mapping, which ends with a whole page.
    pub length: usize,
    /// The engine's description, for its report; 0 for a file on a hugetlbfs.
    pub handle: usize,
    /// Candidates for the files of the pages.
    pub pools: Vec<PoolFile>,
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Tensors of one group are copied together.
    pub group: u64,
    /// Embeddings: the program also reads their rows from the file.
    pub stays: bool,
    pub span: Span,
}

impl Image {
    /// The image, from which the program asked for a mapping of `file` with `flags`.
    ///
    /// # Errors
    /// The kernel does not show the mappings, or refuses one.
    pub fn new(
        filled: Filled,
        flags: c_int,
        file: File,
        tensors: Vec<Tensor>,
    ) -> Result<Self, Errno> {
        let Filled {
            base,
            size,
            length,
            handle,
            mut pools,
        } = filled;
        let file = Kept::new(file).ok_or(libc::EBADF)?;
        let whole = base..base + length;
        let size = align_up(size, base_page());
        let blocks = vmas::blocks_in(&whole).ok_or(libc::EACCES)?;
        pools.retain(|pool| blocks.iter().any(|block| block.inode == pool.0.inode()));
        let mut image = Self {
            owned: Ranges::of(whole.clone()),
            ghosts: Ranges::default(),
            blocks,
            pools,
            has_child: false,
            base,
            flags: flags & (libc::MAP_SHARED | libc::MAP_PRIVATE),
            file,
            handle,
            tensors,
            copied: Vec::new(),
        };
        for block in &image.blocks {
            // A child reads the weights too, as it does with a file mapping.
            // SAFETY: a mapping of this image, which only gets another flag.
            unsafe {
                next::madvise(
                    pointer(block.span.start),
                    block.span.len(),
                    libc::MADV_DOFORK,
                )
            };
        }
        if image.flags == libc::MAP_PRIVATE {
            // The engine maps the rest as shared, and the program may make it writable later.
            for gap in image.outside_blocks(&(base..base + size)) {
                image.map_file(&gap)?;
            }
        }
        image.unmap(&(base + size..base + length))?;
        Ok(image)
    }

    /// The address at which the program got the file.
    pub fn base(&self) -> usize {
        self.base
    }

    /// The first and the last address that are left.
    pub fn bounds(&self) -> Span {
        let first = self
            .owned
            .iter()
            .next()
            .map_or(self.base, |span| span.start);
        let last = self.owned.iter().last().map_or(first, |span| span.end);
        first..last
    }

    /// Bytes on huge pages.
    pub fn huge_bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.span.len()).sum()
    }

    pub fn is_gone(&self) -> bool {
        self.owned.iter().all(|span| self.ghosts.covers(span))
    }

    fn outside_blocks(&self, span: &Span) -> Vec<Span> {
        let mut rest = Ranges::of(span.clone());
        for block in &self.blocks {
            rest.remove(&block.span);
        }
        rest.within(span)
    }

    /// `munmap` of a part.
    ///
    /// # Errors
    /// As of `munmap`.
    pub fn unmap(&mut self, span: &Span) -> Result<(), Errno> {
        for gap in self.outside_blocks(span) {
            self.release(&gap)?;
        }
        let touched: Vec<Block> = self
            .blocks
            .iter()
            .filter(|block| !overlap(&block.span, span).is_empty())
            .cloned()
            .collect();
        for block in touched {
            self.ghosts.add(&overlap(&block.span, span));
            for ghost in self.ghosts.within(&block.outer(span)) {
                let whole = block.inner(&ghost);
                if !whole.is_empty() {
                    self.release(&whole)?;
                    self.cut_blocks(&whole);
                }
            }
        }
        if !self.copied.is_empty() && !self.is_gone() {
            // Programs unmap what they do not need when everything is loaded.
            self.return_copied();
        }
        Ok(())
    }

    /// Unmaps addresses, and forgets them.
    fn release(&mut self, span: &Span) -> Result<(), Errno> {
        // SAFETY: a part of this image, which the program unmapped, at borders of pages.
        check(unsafe { next::munmap(pointer(span.start), span.len()) })?;
        self.owned.remove(span);
        self.ghosts.remove(span);
        Ok(())
    }

    /// A child has the same pages from now on.
    pub fn share_with_child(&mut self) {
        self.has_child = true;
    }

    /// Forgets pages that nothing maps any more, or that the program replaces, and returns them to the pool.
    fn cut_blocks(&mut self, span: &Span) {
        for block in self.blocks.iter().filter(|_| !self.has_child) {
            let part = overlap(&block.span, span);
            let pool = self.pools.iter().find(|pool| pool.0.inode() == block.inode);
            if let Some(pool) = pool.filter(|_| !part.is_empty()) {
                pool.punch(part.start - self.base, part.len());
            }
        }
        let cut = |block: &Block| {
            let head = block.span.start..block.span.end.min(span.start);
            let tail = block.span.start.max(span.end)..block.span.end;
            let (unit, inode) = (block.unit, block.inode);
            [head, tail]
                .into_iter()
                .filter(|part| part.start < part.end)
                .map(move |span| Block { span, unit, inode })
        };
        self.blocks = self.blocks.iter().flat_map(cut).collect();
    }

    /// Maps the file over addresses of this image.
    fn map_file(&self, span: &Span) -> Result<(), Errno> {
        let file = self.file.descriptor().ok_or(libc::ENOMEM)?;
        let offset = libc::off_t::try_from(span.start - self.base).map_err(|_| libc::EOVERFLOW)?;
        let flags = self.flags | libc::MAP_FIXED;
        // SAFETY: addresses of this image, whose bytes the file has too.
        let mapped = unsafe {
            next::mmap(
                pointer(span.start),
                span.len(),
                libc::PROT_READ,
                flags,
                file,
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            Err(next::errno())
        } else {
            Ok(())
        }
    }

    /// Replaces the huge pages that `span` touches with a file mapping. Ghosts in them are unmapped.
    ///
    /// # Errors
    /// As of `mmap`.
    pub fn become_file(&mut self, span: &Span) -> Result<(), Errno> {
        let touched: Vec<Span> = self
            .blocks
            .iter()
            .map(|block| block.outer(span))
            .filter(|part| !part.is_empty())
            .collect();
        for part in touched {
            // At once, because another thread may read a page at this moment. What is behind the end of the file is a ghost.
            self.map_file(&part)?;
            self.cut_blocks(&part);
            for ghost in self.ghosts.within(&part) {
                self.release(&ghost)?;
            }
        }
        Ok(())
    }

    /// The huge pages that lie completely in `span`.
    fn whole_pages(&self, span: &Span) -> Vec<Span> {
        let parts = self.blocks.iter().map(|block| block.inner(span));
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// Makes it possible that the kernel replaces addresses: huge pages at their borders become the file. All bytes stay readable, because
    /// the kernel may refuse the call.
    ///
    /// # Errors
    /// As of `mmap`.
    pub fn prepare_to_leave(&mut self, span: &Span) -> Result<(), Errno> {
        let whole = self.whole_pages(span);
        for edge in self.blocks_at_borders(span, &whole) {
            self.become_file(&edge)?;
        }
        Ok(())
    }

    /// Leaves addresses to the kernel, which has replaced or moved them.
    pub fn leave(&mut self, span: &Span) {
        for part in self.whole_pages(span) {
            self.cut_blocks(&part);
        }
        self.owned.remove(span);
        self.ghosts.remove(span);
    }

    /// Leaves the huge pages that the kernel has unmapped before it refused a call.
    pub fn leave_unmapped(&mut self, span: &Span) {
        for part in self.whole_pages(span) {
            // madvise(2): ENOMEM for addresses that are not mapped. A block never gets another advice than this one.
            // SAFETY: the advice changes nothing.
            let asked = check(unsafe {
                next::madvise(pointer(part.start), base_page(), libc::MADV_NORMAL)
            });
            if asked == Err(libc::ENOMEM) {
                self.leave(&part);
            }
        }
    }

    fn blocks_at_borders(&self, span: &Span, whole: &[Span]) -> Vec<Span> {
        let parts = self.blocks.iter().map(|block| overlap(&block.span, span));
        let mut edges = Ranges::default();
        parts.for_each(|part| edges.add(&part));
        for part in whole {
            edges.remove(part);
        }
        edges.iter().cloned().collect()
    }

    /// `mprotect` of a part.
    ///
    /// # Errors
    /// As of `mprotect`.
    pub fn protect(&mut self, span: &Span, prot: c_int) -> Result<(), Errno> {
        // The kernel protects the pages before the first hole.
        let end = self
            .ghosts
            .within(span)
            .first()
            .map_or(span.end, |ghost| ghost.start);
        let part = span.start..end;
        if prot == libc::PROT_READ {
            for gap in self.outside_blocks(&part) {
                // SAFETY: the caller of the program's mprotect answers for it.
                check(unsafe { next::mprotect(pointer(gap.start), gap.len(), prot) })?;
            }
        } else if !part.is_empty() {
            self.become_file(&part)?;
            // SAFETY: as above.
            check(unsafe { next::mprotect(pointer(part.start), part.len(), prot) })?;
        }
        if end < span.end {
            Err(libc::ENOMEM)
        } else {
            Ok(())
        }
    }

    /// `madvise` of a part.
    ///
    /// # Errors
    /// As of `madvise`.
    pub fn advise(
        &mut self,
        span: &Span,
        advice: c_int,
        answer: &mut Advised,
    ) -> Result<(), Errno> {
        // madvise(2): an empty range only checks the advice.
        // SAFETY: no memory.
        check(unsafe { next::madvise(pointer(span.start), 0, advice) })?;
        let is_flag = matches!(
            advice,
            libc::MADV_DONTFORK | libc::MADV_DOFORK | libc::MADV_DONTDUMP | libc::MADV_DODUMP
        );
        // The file still has what is dropped.
        let changes_nothing = is_hint(advice) || advice == libc::MADV_DONTNEED;
        if !is_flag && !changes_nothing {
            // The kernel answers for the pages of a file.
            self.become_file(span)?;
        }
        let mut parts: Vec<(Span, Part)> = self
            .outside_blocks(span)
            .into_iter()
            .map(|part| (part, Part::File))
            .collect();
        for block in &self.blocks {
            let inner = block.inner(span);
            if is_flag && !inner.is_empty() {
                parts.push((inner, Part::Block));
            }
        }
        parts.extend(
            self.ghosts
                .within(span)
                .into_iter()
                .map(|part| (part, Part::Ghost)),
        );
        parts.sort_by_key(|(part, _)| part.start);
        for (part, kind) in parts {
            let result = match kind {
                Part::Ghost => Err(libc::ENOMEM),
                Part::File | Part::Block => {
                    // SAFETY: the caller of the program's madvise answers for it.
                    check(unsafe { next::madvise(pointer(part.start), part.len(), advice) })
                }
            };
            answer.after(result)?;
        }
        Ok(())
    }

    /// `mlock` of a part. The kernel never swaps huge pages, and counts them towards `RLIMIT_MEMLOCK`.
    ///
    /// # Errors
    /// As of `mlock`.
    pub fn lock(&self, span: &Span, lock: &dyn Fn(&Span) -> c_int) -> Result<(), Errno> {
        for part in self.outside_blocks(span) {
            check(lock(&part))?;
        }
        if self.ghosts.touches(span) {
            Err(libc::ENOMEM)
        } else {
            Ok(())
        }
    }

    /// Whether the program unmapped all of these addresses.
    pub fn is_unmapped(&self, span: &Span) -> bool {
        self.owned
            .within(span)
            .iter()
            .all(|part| self.ghosts.covers(part))
    }

    /// Whether the program will copy tensors of this file to a buffer of `size` bytes: repacked weights. Remembers which ones.
    pub fn notice_copy(&mut self, size: usize) -> bool {
        if self.copied.is_empty() {
            self.copied = copied_to(&self.tensors, size);
        }
        !self.copied.is_empty()
    }

    /// Returns the huge pages of tensors that the program has copied, or will copy from the file. Their bytes remain readable, in the
    /// page cache, as do a few bytes of other tensors that are alone on such a page.
    pub fn return_copied(&mut self) {
        let copied = self.at_addresses(true);
        let kept = self.at_addresses(false);
        let mut pages = Ranges::default();
        for block in &self.blocks {
            for first in block.span.clone().step_by(block.unit) {
                let page = first..first + block.unit;
                let bytes: usize = kept.within(&page).iter().map(ExactSizeIterator::len).sum();
                if copied.touches(&page) && bytes <= block.unit / FEW {
                    pages.add(&page);
                }
            }
        }
        for span in pages.iter() {
            // A page that the kernel refuses to replace stays huge.
            let _ = self.become_file(span);
        }
        self.copied.clear();
        self.tensors.clear();
    }

    /// The tensors that are copied, or the others.
    fn at_addresses(&self, is_copied: bool) -> Ranges {
        let mut ranges = Ranges::default();
        for tensor in &self.tensors {
            if (self.copied.contains(&tensor.group) && !tensor.stays) == is_copied {
                ranges.add(&(self.base + tensor.span.start..self.base + tensor.span.end));
            }
        }
        ranges
    }
}

/// Whether an advice changes no byte, and means nothing for pages that are in memory and stay there.
pub fn is_hint(advice: c_int) -> bool {
    matches!(
        advice,
        libc::MADV_NORMAL
            | libc::MADV_RANDOM
            | libc::MADV_SEQUENTIAL
            | libc::MADV_WILLNEED
            | libc::MADV_HUGEPAGE
            | libc::MADV_NOHUGEPAGE
            | libc::MADV_COLD
            | libc::MADV_PAGEOUT
            | libc::MADV_POPULATE_READ
    )
}

/// The memory of a piece of an image.
#[derive(Clone, Copy)]
enum Part {
    File,
    Block,
    Ghost,
}

/// The result of an advice, piece by piece. As the kernel does, it goes on after a hole, and ends at another failure.
pub struct Advised {
    /// These advices end at a hole, too.
    is_populate: bool,
    has_hole: bool,
}

impl Advised {
    pub fn new(advice: c_int) -> Self {
        Self {
            is_populate: matches!(advice, libc::MADV_POPULATE_READ | libc::MADV_POPULATE_WRITE),
            has_hole: false,
        }
    }

    /// # Errors
    /// The failure that ends the call.
    pub fn after(&mut self, result: Result<(), Errno>) -> Result<(), Errno> {
        match result {
            Err(libc::ENOMEM) if !self.is_populate => {
                self.has_hole = true;
                Ok(())
            }
            result => result,
        }
    }

    /// # Errors
    /// A hole.
    pub fn end(&self) -> Result<(), Errno> {
        if self.has_hole {
            Err(libc::ENOMEM)
        } else {
            Ok(())
        }
    }
}

/// The addresses of whole pages.
pub fn pages_of(address: usize, len: usize) -> Span {
    address..align_up(address.saturating_add(len), base_page())
}

/// The pages that contain the addresses: `mlock` rounds its address down.
pub fn pages_around(address: usize, len: usize) -> Span {
    align_down(address, base_page())..align_up(address.saturating_add(len), base_page())
}

/// The memory of a buffer in which the program keeps each tensor at a multiple of this.
const ALIGNMENT: usize = 32;
/// A buffer may have this many bytes more than its tensors.
const SLACK: usize = 4096;
/// One in so many bytes of a page is few.
const FEW: usize = 16;
/// Larger tables would take too many sums.
const MOST_GROUPS: usize = 12;

/// The groups whose tensors take together `size` bytes of a buffer; none if no groups do. Sums of sizes this large are equal only if the
/// tensors are.
fn copied_to(tensors: &[Tensor], size: usize) -> Vec<u64> {
    let mut groups: Vec<(u64, usize)> = Vec::new();
    for tensor in tensors {
        let bytes = align_up(tensor.span.len(), ALIGNMENT);
        match groups.iter_mut().find(|(group, _)| *group == tensor.group) {
            Some((_, sum)) => *sum += bytes,
            None => groups.push((tensor.group, bytes)),
        }
    }
    groups.sort_by_key(|(_, sum)| std::cmp::Reverse(*sum));
    groups.truncate(MOST_GROUPS);
    (1u32..1 << groups.len())
        .map(|chosen| {
            groups
                .iter()
                .enumerate()
                .filter(move |(at, _)| chosen & (1 << at) != 0)
        })
        .find(|chosen| {
            let sum: usize = chosen.clone().map(|(_, (_, sum))| sum).sum();
            sum <= size && size - sum <= SLACK
        })
        .map_or_else(Vec::new, |chosen| {
            chosen.map(|(_, (group, _))| *group).collect()
        })
}

fn check(result: c_int) -> Result<(), Errno> {
    if result == 0 {
        Ok(())
    } else {
        Err(next::errno())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(group: u64, span: Span) -> Tensor {
        Tensor {
            group,
            stays: false,
            span,
        }
    }

    #[test]
    fn a_buffer_with_the_size_of_some_groups_is_a_copy_of_them() {
        let tensors = [
            tensor(1, 0..100_000),
            tensor(2, 100_000..400_000),
            tensor(1, 400_000..450_001),
            tensor(3, 500_000..900_000),
        ];
        assert_eq!(copied_to(&tensors, 150_032), [1]);
        assert_eq!(copied_to(&tensors, 400_064), [3]);
        assert_eq!(copied_to(&tensors, 700_000), [3, 2]);
        assert!(copied_to(&tensors, 600_000).is_empty());
        assert!(copied_to(&[], 64).is_empty());
    }
}
