//! The images and buffers of this process, by address, and the question that every interposed call asks first.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::buffer::Buffer;
use crate::image::{Errno, Image};
use crate::lock::{Guard, Lock};
use crate::ranges::{Ranges, Span};

/// All regions lie in these addresses. Calls outside of them have nothing to do with a model.
static LOW: AtomicUsize = AtomicUsize::new(usize::MAX);
static HIGH: AtomicUsize = AtomicUsize::new(0);

/// The addresses of each region. An allocator that calls `munmap` under a lock of its own must get past this library without ours,
/// because our lists need that allocator.
static SPANS: [Entry; MOST] = [const { Entry::new() }; MOST];
/// With more regions, the list has not all of them, and every call between the lowest and the highest address takes the lock.
const MOST: usize = 64;
static IS_FULL: AtomicBool = AtomicBool::new(false);

/// A region that calls find without a lock. A region keeps its entry, so that they never miss it.
struct Entry {
    start: AtomicUsize,
    end: AtomicUsize,
}

impl Entry {
    const fn new() -> Self {
        Self {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
        }
    }

    fn set(&self, span: &Span) {
        self.start.store(span.start, Ordering::Relaxed);
        self.end.store(span.end, Ordering::Relaxed);
    }

    fn touches(&self, span: &Span) -> bool {
        span.start < self.end.load(Ordering::Relaxed)
            && self.start.load(Ordering::Relaxed) < span.end
    }
}

static REGIONS: Lock<Regions> = Lock::new(Regions {
    images: Vec::new(),
    buffers: Vec::new(),
    ended: Vec::new(),
    keys: [0; MOST],
});

pub struct Regions {
    pub images: Vec<Image>,
    pub buffers: Vec<Buffer>,
    /// Descriptions of images that the program has unmapped. The engine frees them.
    ended: Vec<usize>,
    /// The first address of the region of each entry in the list; 0 for none.
    keys: [usize; MOST],
}

/// The owner of some addresses.
pub enum Owner<'a> {
    Image(&'a mut Image),
    Buffer(&'a mut Buffer),
    /// Not a region: the call goes to the next library.
    Other,
}

/// Whether a call on these addresses may affect a region.
#[inline]
pub fn may_touch(span: &Span) -> bool {
    span.start < HIGH.load(Ordering::Relaxed)
        && LOW.load(Ordering::Relaxed) < span.end
        && is_listed(span)
}

#[cold]
fn is_listed(span: &Span) -> bool {
    IS_FULL.load(Ordering::Relaxed) || SPANS.iter().any(|entry| entry.touches(span))
}

pub fn lock() -> Guard<'static, Regions> {
    REGIONS.lock()
}

/// For the fork handlers.
pub fn raw() -> &'static Lock<Regions> {
    &REGIONS
}

impl Regions {
    /// Calls `act` for each piece of a range that has one owner, in the order of their addresses, until it fails.
    pub fn for_each(
        &mut self,
        span: &Span,
        mut act: impl FnMut(Owner<'_>, &Span) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut pieces: Vec<(Span, usize)> = Vec::new();
        let mut others = Ranges::of(span.clone());
        for (index, image) in self.images.iter().enumerate() {
            pieces.extend(
                image
                    .owned
                    .within(span)
                    .into_iter()
                    .map(|part| (part, index)),
            );
        }
        for (index, buffer) in self.buffers.iter().enumerate() {
            let part = crate::ranges::overlap(&buffer.span, span);
            if !part.is_empty() {
                pieces.push((part, self.images.len() + index));
            }
        }
        for (part, _) in &pieces {
            others.remove(part);
        }
        pieces.extend(others.iter().map(|part| (part.clone(), usize::MAX)));
        pieces.sort_by_key(|(part, _)| part.start);

        let n_images = self.images.len();
        let result = pieces.into_iter().try_for_each(|(part, index)| {
            let owner = if index == usize::MAX {
                Owner::Other
            } else if index < n_images {
                Owner::Image(&mut self.images[index])
            } else {
                Owner::Buffer(&mut self.buffers[index - n_images])
            };
            act(owner, &part)
        });
        self.forget_gone();
        result
    }

    pub fn add_image(&mut self, image: Image) {
        self.images.push(image);
        self.forget_gone();
    }

    pub fn add_buffer(&mut self, buffer: Buffer) {
        self.buffers.push(buffer);
        self.forget_gone();
    }

    /// The buffer that starts at an address.
    pub fn buffer(&self, address: usize) -> Option<&Buffer> {
        self.buffers
            .iter()
            .find(|buffer| buffer.span.start == address)
    }

    pub fn take_buffer(&mut self, address: usize) -> Option<Buffer> {
        let at = self
            .buffers
            .iter()
            .position(|buffer| buffer.span.start == address)?;
        let buffer = self.buffers.swap_remove(at);
        self.forget_gone();
        Some(buffer)
    }

    /// Takes the descriptions that the engine can free.
    pub fn take_ended(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.ended)
    }

    /// Forgets images that the program has unmapped, and narrows the addresses of [`may_touch`].
    fn forget_gone(&mut self) {
        let gone = self.images.extract_if(.., |image| image.is_gone());
        // A file on a hugetlbfs has no description.
        self.ended
            .extend(gone.map(|image| image.handle).filter(|it| *it != 0));
        let spans: Vec<(usize, Span)> = self
            .images
            .iter()
            .map(|image| (image.base(), image.bounds()))
            .chain(
                self.buffers
                    .iter()
                    .map(|buffer| (buffer.span.start, buffer.span.clone())),
            )
            .collect();
        self.list(&spans);
        let bounds = spans
            .iter()
            .fold((usize::MAX, 0), |(low, high), (_, span)| {
                (low.min(span.start), high.max(span.end))
            });
        LOW.store(bounds.0, Ordering::Relaxed);
        HIGH.store(bounds.1, Ordering::Relaxed);
    }

    /// Writes the list without a lock. The spans have the first addresses of their regions as keys.
    fn list(&mut self, spans: &[(usize, Span)]) {
        for (key, entry) in self.keys.iter_mut().zip(&SPANS) {
            if *key != 0 && spans.iter().all(|(of, _)| of != key) {
                entry.set(&(0..0));
                *key = 0;
            }
        }
        let mut is_full = false;
        for (of, span) in spans {
            let at = |wanted: usize| self.keys.iter().position(|key| *key == wanted);
            match at(*of).or_else(|| at(0)) {
                Some(at) => {
                    SPANS[at].set(span);
                    self.keys[at] = *of;
                }
                None => is_full = true,
            }
        }
        IS_FULL.store(is_full, Ordering::Relaxed);
    }
}

/// The result of a call in C, with `errno`.
pub fn to_c(result: Result<(), Errno>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => {
            crate::next::set_errno(error);
            -1
        }
    }
}
