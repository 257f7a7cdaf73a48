//! The functions that this library stands in front of: those of the C library, or of another preload library such as jemalloc.

use std::cell::Cell;
use std::ffi::{CStr, c_int, c_void};
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{off_t, size_t};

thread_local! {
    /// Whether this thread looks a function up. The lookup itself may call `free`.
    static IS_LOOKING: Cell<bool> = const { Cell::new(false) };
}

/// The address of a function, looked up once.
struct Next {
    name: &'static CStr,
    address: AtomicUsize,
}

impl Next {
    const fn new(name: &'static CStr) -> Self {
        Self {
            name,
            address: AtomicUsize::new(0),
        }
    }

    /// 0 if no library has the function, and during its own lookup.
    #[inline]
    fn address(&self) -> usize {
        match self.address.load(Ordering::Relaxed) {
            0 => self.find(),
            address => address,
        }
    }

    #[cold]
    fn find(&self) -> usize {
        if IS_LOOKING.replace(true) {
            return 0;
        }
        // SAFETY: a C string; dlsym only looks it up.
        let address = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) } as usize;
        IS_LOOKING.set(false);
        self.address.store(address, Ordering::Relaxed);
        address
    }
}

/// Defines functions that call the next library. `else` is the result without such a function.
macro_rules! next {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?, else $missing:expr;)*) => {
        /// Looks all functions up before the first call.
        pub fn find_all() {
            $($name::NEXT.address();)*
        }
        $(
            mod $name {
                pub(super) static NEXT: super::Next =
                    super::Next::new(match super::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => panic!("no zero byte in a name"),
                    });
            }

            /// # Safety
            /// As of the function in C.
            #[inline]
            pub unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
                let address = $name::NEXT.address();
                if address == 0 {
                    return $missing;
                }
                // SAFETY: the function of this name in the C library has this type.
                let function = unsafe { mem::transmute::<usize, unsafe extern "C" fn($($ty),*) $(-> $ret)?>(address) };
                // SAFETY: the caller keeps the promises of the function.
                unsafe { function($($arg),*) }
            }
        )*
    };
}

next! {
    fn mmap(addr: *mut c_void, len: size_t, prot: c_int, flags: c_int, fd: c_int, offset: off_t) -> *mut c_void, else no_map();
    fn munmap(addr: *mut c_void, len: size_t) -> c_int, else no_call();
    fn mprotect(addr: *mut c_void, len: size_t, prot: c_int) -> c_int, else no_call();
    fn madvise(addr: *mut c_void, len: size_t, advice: c_int) -> c_int, else no_call();
    fn posix_madvise(addr: *mut c_void, len: size_t, advice: c_int) -> c_int, else libc::ENOSYS;
    fn mlock(addr: *const c_void, len: size_t) -> c_int, else no_call();
    fn mlock2(addr: *const c_void, len: size_t, flags: c_int) -> c_int, else no_call();
    fn mremap(addr: *mut c_void, old: size_t, new: size_t, flags: c_int, to: *mut c_void) -> *mut c_void, else no_map();
    fn posix_memalign(out: *mut *mut c_void, alignment: size_t, size: size_t) -> c_int, else libc::ENOMEM;
    fn aligned_alloc(alignment: size_t, size: size_t) -> *mut c_void, else std::ptr::null_mut();
    fn memalign(alignment: size_t, size: size_t) -> *mut c_void, else std::ptr::null_mut();
    fn realloc(ptr: *mut c_void, size: size_t) -> *mut c_void, else std::ptr::null_mut();
    fn reallocarray(ptr: *mut c_void, n: size_t, size: size_t) -> *mut c_void, else std::ptr::null_mut();
    fn malloc_usable_size(ptr: *mut c_void) -> size_t, else 0;
    // A lookup that frees memory loses it.
    fn free(ptr: *mut c_void), else lose();
}

/// Sets `errno`.
pub fn set_errno(error: c_int) {
    // SAFETY: the address belongs to this thread.
    unsafe { *libc::__errno_location() = error };
}

/// The value of `errno`.
pub fn errno() -> c_int {
    // SAFETY: the address belongs to this thread.
    unsafe { *libc::__errno_location() }
}

#[cold]
fn lose() {}

#[cold]
fn no_call() -> c_int {
    set_errno(libc::ENOSYS);
    -1
}

#[cold]
fn no_map() -> *mut c_void {
    set_errno(libc::ENOSYS);
    libc::MAP_FAILED
}
