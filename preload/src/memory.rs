//! The interposed calls on mappings.

use std::env;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{off_t, size_t};

use crate::engine::{self, Mapped};
use crate::image::{Advised, Image, pages_around, pages_of};
use crate::lock::Inside;
use crate::ranges::{Span, pointer};
use crate::regions::{self, Owner, Regions, to_c};
use crate::{fork, log, next};

/// Size of the smallest file that may be a model, in bytes, or with K, M, G or T.
const MIN: &str = "HUGEPAGES_PRELOAD_MIN";
const DEFAULT_MIN: usize = 64 << 20;

/// Smaller mappings are no models. The largest number until the environment is read, and if huge pages are off.
static LEAST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Reads how large a model is, unless huge pages are off.
pub fn read_environment() {
    if env::var_os("LLAMA_ARG_HUGEPAGES").is_none() {
        return;
    }
    fork::watch();
    LEAST.store(given_least().unwrap_or(DEFAULT_MIN), Ordering::Relaxed);
}

/// The size from the environment, or the default; `None` if it is no size.
fn given_least() -> Option<usize> {
    env::var_os(MIN).map_or(Some(DEFAULT_MIN), |text| parse(text.to_str()?))
}

/// Warns about a wrong size, in a process that may use a model, because others are not meant.
pub fn warn_of_least() {
    if given_least().is_none() {
        log::warn(&format!(
            "{MIN} is no size such as 64M, so the smallest model has 64 MiB"
        ));
    }
}

/// The size of the smallest model.
#[inline]
pub fn least() -> usize {
    LEAST.load(Ordering::Relaxed)
}

fn parse(text: &str) -> Option<usize> {
    let (number, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        b'T' | b't' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number: usize = number.parse().ok()?;
    number.checked_mul(1 << shift)
}

/// Flags of a mapping at an address of the program's choice.
const FIXED: c_int = libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE;

/// Whether a call may map a model: the whole file, or its start, read-only and at an address of the kernel's choice.
fn may_be_model(prot: c_int, flags: c_int, fd: c_int, offset: off_t) -> bool {
    let kind = flags & libc::MAP_TYPE;
    let is_file = fd >= 0 && flags & (libc::MAP_ANONYMOUS | libc::MAP_HUGETLB) == 0;
    is_file
        && prot == libc::PROT_READ
        && offset == 0
        && flags & FIXED == 0
        && (kind == libc::MAP_SHARED || kind == libc::MAP_PRIVATE)
}

/// # Safety
/// As of `mmap`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mmap(
    addr: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    if len >= least() && may_be_model(prot, flags, fd, offset) {
        if let Some(_inside) = Inside::enter() {
            match engine::map(fd, len, flags, least()) {
                Mapped::At(address) => return std::ptr::with_exposed_provenance_mut(address),
                Mapped::Failed(error) => {
                    next::set_errno(error);
                    return libc::MAP_FAILED;
                }
                Mapped::Plain => {}
            }
        }
    } else if flags & FIXED != 0
        && let Some(_inside) = inside_of(addr.addr(), len)
    {
        let span = pages_of(addr.addr(), len);
        let mut regions = regions::lock();
        // With this flag, the kernel finds the pages and refuses.
        let may_replace = flags & libc::MAP_FIXED_NOREPLACE != libc::MAP_FIXED_NOREPLACE
            || regions.images.iter().all(|image| image.is_unmapped(&span));
        if may_replace {
            // SAFETY: the caller's promise.
            return replace(&mut regions, &span, || unsafe {
                next::mmap(addr, len, prot, flags, fd, offset)
            });
        }
    }
    // SAFETY: the caller's promise.
    unsafe { next::mmap(addr, len, prot, flags, fd, offset) }
}

/// Prepares memory for a call that needs ordinary pages. If this fails, returns false, with `errno`.
fn make_ordinary(
    regions: &mut Regions,
    span: &Span,
    of_image: impl Fn(&mut Image, &Span) -> Result<(), c_int>,
) -> bool {
    let result = regions.for_each(span, |owner, part| match owner {
        Owner::Image(image) => of_image(image, part),
        Owner::Buffer(buffer) => buffer.become_ordinary(),
        Owner::Other => Ok(()),
    });
    to_c(result) == 0
}

/// A call that replaces the memory of `span`, unless the kernel refuses it.
fn replace(regions: &mut Regions, span: &Span, call: impl FnOnce() -> *mut c_void) -> *mut c_void {
    if !make_ordinary(regions, span, Image::prepare_to_leave) {
        return libc::MAP_FAILED;
    }
    let mapped = call();
    let error = next::errno();
    let _ = regions.for_each(span, |owner, part| {
        match owner {
            Owner::Image(image) if mapped == libc::MAP_FAILED => image.leave_unmapped(part),
            Owner::Image(image) => image.leave(part),
            Owner::Buffer(_) | Owner::Other => {}
        }
        Ok(())
    });
    next::set_errno(error);
    mapped
}

/// # Safety
/// As of `mmap64`, which is `mmap` where an offset has 64 bits.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mmap64(
    addr: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { mmap(addr, len, prot, flags, fd, offset) }
}

/// The kernel gives a program no higher address unless it asks for one, and refuses calls on a longer range.
const MOST_ADDRESSES: usize = 1 << 47;

/// Whether a call on these addresses may affect a region. Wrong arguments are the kernel's matter.
fn may_touch(addr: usize, len: usize) -> bool {
    len > 0
        && addr.is_multiple_of(crate::image::base_page())
        && addr
            .checked_add(len)
            .is_some_and(|end| end <= MOST_ADDRESSES)
        && regions::may_touch(&pages_of(addr, len))
}

fn inside_of(addr: usize, len: usize) -> Option<Inside> {
    may_touch(addr, len).then(Inside::enter).flatten()
}

/// # Safety
/// As of `munmap`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn munmap(addr: *mut c_void, len: size_t) -> c_int {
    // SAFETY: the caller's promise.
    change(addr, len, Image::unmap, &|addr, len| unsafe {
        next::munmap(addr, len)
    })
}

/// # Safety
/// As of `mprotect`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mprotect(addr: *mut c_void, len: size_t, prot: c_int) -> c_int {
    let of_image = |image: &mut Image, part: &Span| image.protect(part, prot);
    // SAFETY: the caller's promise.
    change(addr, len, of_image, &|addr, len| unsafe {
        next::mprotect(addr, len, prot)
    })
}

/// A call that changes a mapping. `plain`: the same call of the next library
fn change(
    addr: *mut c_void,
    len: usize,
    of_image: impl Fn(&mut Image, &Span) -> Result<(), c_int>,
    plain: &dyn Fn(*mut c_void, usize) -> c_int,
) -> c_int {
    let Some(_inside) = inside_of(addr.addr(), len) else {
        return plain(addr, len);
    };
    let of_part = |part: &Span| plain(pointer(part.start), part.len());
    let result = regions::lock().for_each(&pages_of(addr.addr(), len), |owner, part| match owner {
        Owner::Image(image) => of_image(image, part),
        Owner::Buffer(buffer) => buffer.pass_on(part, &of_part),
        Owner::Other => to_result(of_part(part)),
    });
    to_c(result)
}

/// # Safety
/// As of `madvise`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn madvise(addr: *mut c_void, len: size_t, advice: c_int) -> c_int {
    let Some(_inside) = inside_of(addr.addr(), len) else {
        // SAFETY: the caller's promise.
        return unsafe { next::madvise(addr, len, advice) };
    };
    to_c(advise(addr.addr(), len, advice))
}

/// # Safety
/// As of `posix_madvise`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn posix_madvise(addr: *mut c_void, len: size_t, advice: c_int) -> c_int {
    let Some(_inside) = inside_of(addr.addr(), len) else {
        // SAFETY: the caller's promise.
        return unsafe { next::posix_madvise(addr, len, advice) };
    };
    if advice == libc::POSIX_MADV_DONTNEED {
        // posix_madvise(3): glibc does nothing, because Linux would discard data.
        return 0;
    }
    // The other values are those of madvise.
    advise(addr.addr(), len, advice).err().unwrap_or(0)
}

fn advise(addr: usize, len: usize, advice: c_int) -> Result<(), c_int> {
    let mut answer = Advised::new(advice);
    let result = regions::lock().for_each(&pages_of(addr, len), |owner, part| match owner {
        Owner::Image(image) => image.advise(part, advice, &mut answer),
        Owner::Buffer(buffer) => answer.after(buffer.advise(part, advice)),
        Owner::Other => {
            // SAFETY: the promise of the caller of madvise.
            answer.after(to_result(unsafe {
                next::madvise(pointer(part.start), part.len(), advice)
            }))
        }
    });
    result.and(answer.end())
}

/// # Safety
/// As of `mlock`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mlock(addr: *const c_void, len: size_t) -> c_int {
    // SAFETY: the caller's promise.
    lock(addr, len, &|addr, len| unsafe { next::mlock(addr, len) })
}

/// # Safety
/// As of `mlock2`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mlock2(addr: *const c_void, len: size_t, flags: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let plain = |addr, len| unsafe { next::mlock2(addr, len, flags) };
    let is_known = flags & !libc::MLOCK_ONFAULT.cast_signed() == 0;
    if is_known {
        lock(addr, len, &plain)
    } else {
        plain(addr, len)
    }
}

/// The kernel never swaps huge pages, but it counts them, so a limit would refuse them.
fn lock(addr: *const c_void, len: usize, plain: &dyn Fn(*const c_void, usize) -> c_int) -> c_int {
    let span = pages_around(addr.addr(), len);
    let is_ours = len > 0 && addr.addr().checked_add(len).is_some() && regions::may_touch(&span);
    let Some(_inside) = is_ours.then(Inside::enter).flatten() else {
        return plain(addr, len);
    };
    let result = regions::lock().for_each(&span, |owner, part| match owner {
        Owner::Image(image) => image.lock(part, &|part| plain(pointer(part.start), part.len())),
        Owner::Buffer(_) => to_result(engine::lock_buffer(part.start, part.len())),
        Owner::Other => to_result(plain(pointer(part.start), part.len())),
    });
    to_c(result)
}

/// `mremap` is variadic in C. Its fifth argument is undefined without `MREMAP_FIXED`, and passed on as it is.
///
/// # Safety
/// As of `mremap`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mremap(
    addr: *mut c_void,
    old: size_t,
    new: size_t,
    flags: c_int,
    to: *mut c_void,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let call = || unsafe { next::mremap(addr, old, new, flags, to) };
    // An old size of 0 copies the mapping of one page.
    let from = pages_of(addr.addr(), old.max(1));
    let is_moved = may_touch(addr.addr(), old.max(1));
    let is_target = flags & libc::MREMAP_FIXED != 0 && may_touch(to.addr(), new);
    if !is_moved && !is_target {
        return call();
    }
    let Some(_inside) = Inside::enter() else {
        return call();
    };
    let mut regions = regions::lock();
    if is_moved && !make_ordinary(&mut regions, &from, Image::become_file) {
        return libc::MAP_FAILED;
    }
    let moved = if is_target {
        replace(&mut regions, &pages_of(to.addr(), new), call)
    } else {
        call()
    };
    if moved != libc::MAP_FAILED {
        let _ = regions.for_each(&from, |owner, part| {
            if let Owner::Image(image) = owner {
                image.leave(part);
            }
            Ok(())
        });
    }
    moved
}

fn to_result(result: c_int) -> Result<(), c_int> {
    if result == 0 {
        Ok(())
    } else {
        Err(next::errno())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_unit_or_none() {
        assert_eq!(parse("4096"), Some(4096));
        assert_eq!(parse("64M"), Some(64 << 20));
        assert_eq!(parse("1G"), Some(1 << 30));
        assert_eq!(parse("8K"), Some(8 << 10));
        assert_eq!(parse("8k"), Some(8 << 10));
        assert_eq!(parse("2T"), Some(2 << 40));
        assert_eq!(parse("-1"), None);
        assert_eq!(parse(""), None);
        assert_eq!(parse("M"), None);
        assert_eq!(parse("99999999999999G"), None);
    }

    #[test]
    fn only_read_only_mappings_of_a_file_from_its_start_may_be_models() {
        let read = libc::PROT_READ;
        assert!(may_be_model(
            read,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            3,
            0
        ));
        assert!(may_be_model(read, libc::MAP_PRIVATE, 3, 0));
        assert!(!may_be_model(
            read | libc::PROT_WRITE,
            libc::MAP_SHARED,
            3,
            0
        ));
        assert!(!may_be_model(
            read,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0
        ));
        assert!(!may_be_model(
            read,
            libc::MAP_SHARED | libc::MAP_FIXED,
            3,
            0
        ));
        assert!(!may_be_model(read, libc::MAP_SHARED, 3, 4096));
    }
}
