//! The engine of llama-hugepages, inside this library: loads a file image, allocates a buffer, writes the report.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use std::{env, process, ptr};

use crate::buffer::Buffer;
use crate::files::{self, Facts};
use crate::image::{Errno, Filled, Image, PoolFile, Tensor};
use crate::lock::{Guard, Lock};
use crate::next;
use crate::{ffi, gguf, log, memory, regions};

/// The file to which each process appends its reports. `hugepages exec` sets it.
const REPORT: &str = "HUGEPAGES_PRELOAD_REPORT";
/// Separates reports.
const SEPARATOR: char = '\x1e';

/// One load at a time, which reads for as long as the disk takes.
static LOADS: Lock<()> = Lock::new(());

/// One plan at a time, of a load or of a buffer, because the engine counts pages between a plan and their reservation. Taken after [`LOADS`].
static ENGINE: Lock<()> = Lock::new(());

/// Whether the process has used a model, so that its large buffers belong to one.
static HAS_MODEL: AtomicBool = AtomicBool::new(false);

/// For the fork handlers, in the order in which they are taken.
pub fn raw() -> [&'static Lock<()>; 2] {
    [&LOADS, &ENGINE]
}

/// The parameters of `LLAMA_ARG_HUGEPAGES` and its family; `None` if huge pages are off, or if the program contains the engine as a
/// shared library, which then does all of this itself.
fn params() -> Option<&'static ffi::ggml_hugepages_params> {
    static PARAMS: OnceLock<Option<ffi::ggml_hugepages_params>> = OnceLock::new();
    PARAMS
        .get_or_init(|| {
            log::install();
            memory::warn_of_least();
            // SAFETY: reads the environment.
            let params = unsafe { ffi::ggml_hugepages_env_params() };
            (params.enabled && !program_has_engine()).then_some(params)
        })
        .as_ref()
}

fn program_has_engine() -> bool {
    // SAFETY: a C string. This library exports no such name.
    !unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"ggml_hugepages_plan".as_ptr()) }.is_null()
}

fn accepts_less(params: &ffi::ggml_hugepages_params) -> bool {
    // SAFETY: reads the parameters.
    unsafe { ffi::ggml_hugepages_accepts_less(params) }
}

/// A failure of the engine, with its hint.
struct Failure(Box<ffi::ggml_hugepages_error>);

impl Failure {
    fn new() -> Self {
        Self(Box::default())
    }

    fn message(&self) -> String {
        text(&self.0.message)
    }

    fn set_message(&mut self, message: &str) {
        let room = self.0.message.len() - 1;
        let bytes = message.bytes().take(room).chain([0]);
        for (to, from) in self.0.message.iter_mut().zip(bytes) {
            *to = from.cast_signed();
        }
    }

    /// The line for the user, and the hint if there is one.
    fn tell(&self, what: &str) {
        log::warn(&format!("{what}: {}", self.message()));
        let hint = text(&self.0.hint);
        if !hint.is_empty() {
            log::warn(&format!("hint: {}", log::with_variables(&hint)));
        }
    }
}

fn text(chars: &[c_char]) -> String {
    // SAFETY: the engine ends its texts with a zero byte, and a zeroed error is one.
    unsafe { CStr::from_ptr(chars.as_ptr()) }
        .to_string_lossy()
        .into_owned()
}

/// A GGUF file that a program wants to map.
struct Model {
    file: File,
    path: PathBuf,
    tensors: Vec<gguf::Entry>,
}

impl Model {
    /// `None` for any other file.
    fn open(fd: c_int, len: usize, least: usize) -> Option<Self> {
        // close(2) of any descriptor of a file ends the program's locks on the file. So only a model is duplicated.
        if !is_model(&files::borrow(fd), least, Some(len)) {
            return None;
        }
        let file = files::duplicate(fd)?;
        let path = files::path_of(file.as_raw_fd())?;
        let descriptor = files::name_of(file.as_raw_fd());
        let model = Self {
            file,
            path,
            tensors: gguf::read(Path::new(&descriptor)).unwrap_or_default(),
        };
        if model.tensors.is_empty() {
            // An invalid file stays the program's matter.
            log::warn(&format!(
                "`{}` is not on huge pages, because its header cannot be read",
                model.name()
            ));
            return None;
        }
        Some(model)
    }

    fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The tensors inside the mapping, with their ranks.
    fn wanted(&self, len: usize) -> Vec<(Tensor, ffi::ggml_hugepages_rank)> {
        let has_output = self.tensors.iter().any(|it| it.name == "output.weight");
        let wanted = self.tensors.iter().filter_map(|it| {
            let first = it.first;
            let last = first.checked_add(it.size)?.min(len);
            let is_embedding = it.name.contains("token_embd");
            let is_output =
                it.name == "output.weight" || (!has_output && it.name == "token_embd.weight");
            let rank = if is_output {
                ffi::GGML_HUGEPAGES_RANK_OUTPUT
            } else if is_embedding {
                ffi::GGML_HUGEPAGES_RANK_EMBEDDINGS
            } else {
                ffi::GGML_HUGEPAGES_RANK_LAYERS
            };
            // Programs repack matrices of some types, and treat the output and the embeddings alone.
            let place = u64::from(it.is_matrix)
                + 2 * u64::from(it.name == "output.weight")
                + 4 * u64::from(is_embedding);
            let group = (u64::from(it.ty) << 8) | place;
            (first < last).then_some((
                Tensor {
                    group,
                    stays: is_embedding,
                    span: first..last,
                },
                rank,
            ))
        });
        wanted.collect()
    }
}

/// Whether this is a regular file of at least `least` bytes that starts as a model, and that a mapping of `len` bytes does not exceed.
fn is_model(file: &File, least: usize, len: Option<usize>) -> bool {
    let Some(Facts {
        is_regular, size, ..
    }) = Facts::of(file)
    else {
        return false;
    };
    let is_inside = len.is_none_or(|len| len <= size.next_multiple_of(crate::image::base_page()));
    is_regular && size >= least && is_inside && files::starts_with(file, b"GGUF")
}

/// What happens with a mapping of the program.
pub enum Mapped {
    /// Not a model, or no huge pages for it: the kernel maps the file.
    Plain,
    At(usize),
    Failed(Errno),
}

/// Maps a model for the program, which asked for `len` bytes of `fd` from its start.
pub fn map(fd: c_int, len: usize, flags: c_int, least: usize) -> Mapped {
    let Some(params) = params() else {
        return Mapped::Plain;
    };
    let Some(model) = Model::open(fd, len, least) else {
        return Mapped::Plain;
    };
    HAS_MODEL.store(true, Ordering::Relaxed);
    if let Some(page) = files::page_of_hugetlbfs(&model.file) {
        return adopt(&model, len, flags, page);
    }
    let loading = LOADS.lock();
    let result = load(&model, len, flags, params);
    drop(loading);
    match result {
        Ok(Some((image, at))) => {
            regions::lock().add_image(image);
            report();
            Mapped::At(at)
        }
        Ok(None) => Mapped::Plain,
        Err(failure) if accepts_less(params) => {
            let what = format!("`{}` uses no huge page", model.name());
            log::warn(&format!("{what}: {}", failure.message()));
            Mapped::Plain
        }
        Err(failure) => {
            failure.tell(&format!("cannot map `{}`", model.name()));
            Mapped::Failed(libc::ENOMEM)
        }
    }
}

/// Maps a copy of a model on a hugetlbfs. The kernel unmaps only whole huge pages of it, so the library answers the program's calls.
fn adopt(model: &Model, len: usize, flags: c_int, page: usize) -> Mapped {
    let fd = model.file.as_raw_fd();
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { next::mmap(ptr::null_mut(), len, libc::PROT_READ, flags, fd, 0) };
    if at == libc::MAP_FAILED {
        return Mapped::Failed(next::errno());
    }
    let base = at.expose_provenance();
    let filled = Filled {
        base,
        size: len,
        length: len.next_multiple_of(page),
        handle: 0,
        pools: Vec::new(),
    };
    // Without tensors: the pages belong to the file, so no copy returns them to the pool.
    let image =
        files::duplicate(fd).and_then(|file| Image::new(filled, flags, file, Vec::new()).ok());
    if let Some(image) = image {
        regions::lock().add_image(image);
        log::tell(&format!(
            "`{}` is a file on a hugetlbfs, so it is on huge pages already",
            model.name()
        ));
    }
    Mapped::At(base)
}

/// The model at its address. `None`: the kernel has it on huge pages already, or no tensor is in the mapping.
fn load(
    model: &Model,
    len: usize,
    flags: c_int,
    params: &ffi::ggml_hugepages_params,
) -> Result<Option<(Image, usize)>, Failure> {
    let begin = Instant::now();
    // mmap(2): the kernel maps whole pages.
    let whole = len.next_multiple_of(crate::image::base_page());
    let of_file = Facts::of(&model.file).map_or(0, |it| it.size);
    let size = whole.min(of_file);
    let wanted = model.wanted(size);
    let planning = enter();
    // SAFETY: the file stays open until the image is filled.
    let mut handle = unsafe { ffi::ggml_hugepages_image_init(model.file.as_raw_fd(), size) };
    for (tensor, rank) in &wanted {
        // SAFETY: the image is alive, and the range inside the file.
        unsafe {
            ffi::ggml_hugepages_image_want(handle, tensor.span.start, tensor.span.end, *rank);
        };
    }
    // SAFETY: the image is alive.
    if wanted.is_empty() || unsafe { ffi::ggml_hugepages_image_is_huge(handle) } {
        // SAFETY: made above, and used nowhere else.
        unsafe { ffi::ggml_hugepages_image_free(handle) };
        return Ok(None);
    }
    // An image in a store is of the whole file.
    if params.store[0] != 0
        && size == of_file
        && let Err(failure) = reside(model, handle, size, params)
    {
        if !accepts_less(params) {
            // SAFETY: made above, and used nowhere else.
            unsafe { ffi::ggml_hugepages_image_free(handle) };
            return Err(failure);
        }
        log::warn(&format!(
            "no weights will remain in memory after this process ends: {}",
            failure.message()
        ));
        // SAFETY: the image is alive.
        unsafe { ffi::ggml_hugepages_image_reside(handle, ptr::null_mut()) };
    }
    let mut failure = Failure::new();
    let error: *mut ffi::ggml_hugepages_error = &raw mut *failure.0;
    // SAFETY: only locks a directory.
    let turn = unsafe { ffi::ggml_hugepages_turn_begin() };
    // SAFETY: one image, no demand, and room for an error.
    let is_planned =
        unsafe { ffi::ggml_hugepages_plan(&raw mut handle, 1, ptr::null(), 0, params, error) };
    let at = if is_planned {
        // SAFETY: planned above.
        unsafe { ffi::ggml_hugepages_image_map(handle, error) }
    } else {
        ptr::null_mut()
    };
    // SAFETY: mapped, if this runs.
    let is_reserved =
        !at.is_null() && unsafe { ffi::ggml_hugepages_overlay(&raw mut handle, 1, error) };
    // SAFETY: from turn_begin.
    unsafe { ffi::ggml_hugepages_turn_end(turn) };
    drop(planning);
    let pools = pool_files();
    // SAFETY: reserved, if this runs.
    let is_filled = is_reserved
        && unsafe {
            ffi::ggml_hugepages_fill(
                &raw mut handle,
                1,
                ptr::null(),
                0,
                params,
                None,
                ptr::null_mut(),
                error,
            )
        };
    // SAFETY: the image is alive.
    let length = unsafe { ffi::ggml_hugepages_image_length(handle) };
    let address = at.expose_provenance();
    let image = is_filled.then(|| {
        let filled = Filled {
            base: address,
            size,
            length,
            handle: handle.expose_provenance(),
            pools,
        };
        let tensors = wanted.into_iter().map(|(tensor, _)| tensor).collect();
        let file = files::duplicate(model.file.as_raw_fd()).ok_or(libc::EMFILE)?;
        Image::new(filled, flags, file, tensors)
    });
    match image {
        Some(Ok(image)) => {
            tell_about(model, &image, size, begin);
            return Ok(Some((image, address)));
        }
        Some(Err(code)) => failure.set_message(&format!(
            "cannot manage its mapping: {}",
            std::io::Error::from_raw_os_error(code)
        )),
        None => {}
    }
    if !at.is_null() {
        // SAFETY: the engine's mapping, in which nobody has an address yet.
        unsafe { next::munmap(at, length) };
    }
    // SAFETY: made above, and used nowhere else.
    unsafe { ffi::ggml_hugepages_image_free(handle) };
    Err(failure)
}

/// Puts the image in the store, or attaches it. llama-server gives the same identity to the same file, so both share an image.
fn reside(
    model: &Model,
    handle: ffi::ggml_hugepages_image_t,
    size: usize,
    params: &ffi::ggml_hugepages_params,
) -> Result<(), Failure> {
    let mut failure = Failure::new();
    let header = model
        .tensors
        .iter()
        .map(|it| it.first)
        .min()
        .unwrap_or(size);
    let places = places(&model.tensors);
    let fd = model.file.as_raw_fd();
    let mut identity = [0 as c_char; 256];
    // SAFETY: the list and the room have the given sizes.
    let is_known = unsafe {
        ffi::ggml_hugepages_file_identity(
            fd,
            header,
            places.as_ptr(),
            places.len(),
            params,
            identity.as_mut_ptr(),
            identity.len(),
        )
    };
    if !is_known {
        failure.set_message("cannot read the file");
        return Err(failure);
    }
    let name = CString::new(model.path.as_os_str().as_bytes()).unwrap_or_default();
    // SAFETY: the file is open, and the texts are C strings.
    let mut resident = unsafe {
        ffi::ggml_hugepages_resident_init(
            ffi::GGML_HUGEPAGES_KIND_WEIGHTS,
            fd,
            name.as_ptr(),
            identity.as_ptr(),
            size,
        )
    };
    // SAFETY: both are alive. The image keeps what it needs.
    unsafe { ffi::ggml_hugepages_image_reside(handle, resident) };
    let error: *mut ffi::ggml_hugepages_error = &raw mut *failure.0;
    // SAFETY: one image, no callback, and room for an error.
    let is_open = unsafe {
        ffi::ggml_hugepages_residents_open(
            &raw mut resident,
            1,
            params,
            None,
            ptr::null_mut(),
            error,
        )
    };
    // SAFETY: made above, and used nowhere else.
    unsafe { ffi::ggml_hugepages_resident_free(resident) };
    if is_open { Ok(()) } else { Err(failure) }
}

/// One place in each tensor, in each expert, and in each 16 MiB: those that llama-server compares.
fn places(tensors: &[gguf::Entry]) -> Vec<u64> {
    const STEP: usize = 16 << 20;
    // Small experts share one.
    const BLOCK: u64 = 4096;
    let mut places: Vec<u64> = Vec::new();
    for tensor in tensors.iter().filter(|it| it.size > 0) {
        let parts = tensor.matrices.max(tensor.size.div_ceil(STEP));
        let step = tensor.size / parts;
        places.extend((0..parts).map(|part| (tensor.first + step * part + step / 2) as u64));
    }
    places.sort_unstable();
    places.dedup_by_key(|place| *place / BLOCK);
    places
}

/// The files of huge pages that are open now: those of the running load, and those of earlier images.
fn pool_files() -> Vec<PoolFile> {
    let is_pool = |fd: &c_int| {
        let link = files::name_of(*fd);
        files::leads_to(Path::new(&link), "/memfd:llama-weights")
    };
    let pools = files::descriptors().into_iter().filter(is_pool);
    pools
        .filter_map(files::duplicate)
        .filter_map(PoolFile::new)
        .collect()
}

fn tell_about(model: &Model, image: &Image, size: usize, begin: Instant) {
    const MIB: f64 = 1024.0 * 1024.0;
    let huge = image.huge_bytes().min(size);
    let is_shard = model.name().contains("-of-0");
    log::tell(&format!(
        "`{}`: {:.1} of {:.1} MiB on huge pages, loaded in {:.2} s{}",
        model.name(),
        huge as f64 / MIB,
        size as f64 / MIB,
        begin.elapsed().as_secs_f64(),
        if is_shard {
            "; each shard is planned alone"
        } else {
            ""
        },
    ));
}

/// What happens with an allocation of the program.
pub enum Allocated {
    /// The next library allocates it.
    Plain,
    At(usize),
    Failed,
}

/// Allocates a large buffer, if the program uses a model.
pub fn allocate(alignment: usize, size: usize, least: usize) -> Allocated {
    let Some(params) = params() else {
        return Allocated::Plain;
    };
    if !HAS_MODEL.load(Ordering::Relaxed) && !has_open_model(least) {
        return Allocated::Plain;
    }
    HAS_MODEL.store(true, Ordering::Relaxed);
    let is_copy = prepare_copy(size);
    let kind = if is_copy {
        ffi::GGML_HUGEPAGES_KIND_REPACKED
    } else {
        ffi::GGML_HUGEPAGES_KIND_OTHER
    };
    let guard = enter();
    let scope = ffi::ggml_hugepages_scope {
        params: *params,
        kind,
        ..Default::default()
    };
    // SAFETY: the scope outlives its use.
    let before = unsafe { ffi::ggml_hugepages_scope_set(&raw const scope) };
    // SAFETY: a size.
    let at = unsafe { ffi::ggml_hugepages_buffer_alloc(size) };
    // SAFETY: the scope that this thread had.
    unsafe { ffi::ggml_hugepages_scope_set(before) };
    // SAFETY: reads a list of the engine.
    let is_buffer = !at.is_null() && unsafe { ffi::ggml_hugepages_is_buffer(at) };
    let address = at.expose_provenance();
    if is_buffer && address.is_multiple_of(alignment) {
        let buffer = Buffer::new(address, size);
        drop(guard);
        regions::lock().add_buffer(buffer);
        report();
        return Allocated::At(address);
    }
    if !at.is_null() {
        // SAFETY: allocated above, and used nowhere else.
        unsafe { ffi::ggml_hugepages_buffer_free(at, size) };
    }
    if at.is_null() && !accepts_less(params) {
        // The engine logged the cause.
        return Allocated::Failed;
    }
    Allocated::Plain
}

/// If the program is about to copy tensors of an image to this buffer, and the pool has no room for both, returns the pages of these
/// tensors first.
fn prepare_copy(size: usize) -> bool {
    let has_room = usable_bytes() >= size as u64;
    let mut regions = regions::lock();
    let mut is_copy = false;
    for image in &mut regions.images {
        if image.notice_copy(size) {
            is_copy = true;
            if !has_room {
                image.return_copied();
            }
        }
    }
    is_copy
}

/// Bytes of all usable pages.
fn usable_bytes() -> u64 {
    let mut sizes = [0usize; 16];
    // SAFETY: room for 16 sizes.
    let n =
        unsafe { ffi::ggml_hugepages_page_sizes(c"".as_ptr(), sizes.as_mut_ptr(), sizes.len()) };
    let usable = sizes.iter().take(n).map(|&size| {
        let mut pool = ffi::ggml_hugepages_pool::default();
        // SAFETY: room for one pool, which stays zero if the kernel has none.
        unsafe { ffi::ggml_hugepages_pool_read(c"".as_ptr(), size, &raw mut pool) };
        // SAFETY: reads the pool.
        let pages = unsafe { ffi::ggml_hugepages_pool_usable(&raw const pool) };
        pages * size as u64
    });
    usable.sum()
}

/// Whether the process has a model open, as a program does that reads its model instead of mapping it.
fn has_open_model(least: usize) -> bool {
    let mut numbers = files::descriptors().into_iter();
    numbers.any(|fd| is_model(&files::borrow(fd), least, None))
}

/// Frees a buffer.
pub fn free(buffer: &Buffer) {
    let _guard = enter();
    let at: *mut c_void = ptr::with_exposed_provenance_mut(buffer.span.start);
    // SAFETY: allocated by the engine, and forgotten by the list of regions.
    unsafe { ffi::ggml_hugepages_buffer_free(at, buffer.size) };
}

/// `mlock` of a buffer.
pub fn lock_buffer(address: usize, len: usize) -> c_int {
    // SAFETY: addresses of the program.
    unsafe { ffi::ggml_hugepages_mlock(ptr::with_exposed_provenance(address), len) }
}

/// Takes the engine, and frees what the program has unmapped.
fn enter() -> Guard<'static, ()> {
    let guard = ENGINE.lock();
    for handle in regions::lock().take_ended() {
        // SAFETY: the program unmapped the image, and the list of regions forgot it.
        unsafe { ffi::ggml_hugepages_image_free(ptr::with_exposed_provenance_mut(handle)) };
    }
    guard
}

/// Appends the report of this process to the file of `hugepages exec`.
fn report() {
    let Some(path) = env::var_os(REPORT).filter(|path| is_of_exec(Path::new(path))) else {
        return;
    };
    let _guard = enter();
    let mut report = ffi::ggml_hugepages_report::default();
    // Not on the stack, because threads may have small ones.
    let mut table = vec![0 as c_char; 8192];
    // SAFETY: room for one report.
    if !unsafe { ffi::ggml_hugepages_get_report(0, &raw mut report) } {
        return;
    }
    // SAFETY: room for the table, which the function ends with a zero byte.
    unsafe {
        ffi::ggml_hugepages_report_to_str(&raw const report, table.as_mut_ptr(), table.len())
    };
    let entry = format!("{SEPARATOR}{}\n{}", process::id(), text(&table));
    log::append(&path, false, entry.as_bytes());
}

/// Whether a path in /proc is still the file of `hugepages exec`, and not a file of a later process with the same number.
fn is_of_exec(path: &Path) -> bool {
    files::leads_to(path, "/memfd:hugepages-reports (deleted)")
}
