// A resident image: which segments are complete, filling, and returning pages.

#ifdef __linux__

#include "store-file.h"
#include "error.h"
#include "syscalls.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

bool ggml_hugepages_store_file::has(size_t first, size_t last) const {
    for (size_t i = first/segment; i < sums.size() && i*segment < last; i++) {
        if (sums[i] == 0) {
            return false;
        }
    }
    return !sums.empty();
}

bool ggml_hugepages_store_file::is_complete() const {
    if (is_buffer) {
        return has(0, size);
    }
    return std::all_of(wants.begin(), wants.end(), [&](const auto & r) {
        return has(ggml_hugepages_align_down(r.first, page_size), std::min(size, ggml_hugepages_align_up(r.second, page_size)));
    });
}

bool ggml_hugepages_store_file::has_page(size_t first) const {
    if (fd != -1 && first + page_size > sums_at) {
        return true;
    }
    for (size_t at = first; at < std::min(size, first + page_size); at += segment) {
        if (has(at, at + 1)) {
            return true;
        }
    }
    return false;
}

size_t ggml_hugepages_store_file::pages_of_manifest() const {
    const size_t begin = ggml_hugepages_align_down(sums_at, page_size);
    return fd != -1 ? 0 : (length - std::max(begin, ggml_hugepages_align_up(size, page_size)))/page_size;
}

size_t ggml_hugepages_store_file::pages_of_missing_manifest() const {
    return is_new ? (length - ggml_hugepages_align_down(sums_at, page_size))/page_size : pages_of_manifest();
}

uint64_t ggml_hugepages_store_file::pages_left_over() const {
    struct stat st = {};
    if (fd == -1 || fstat(fd, &st) != 0) {
        return 0;
    }
    uint64_t known = 0;
    for (size_t at = 0; at < length; at += page_size) {
        known += has_page(at);
    }
    const uint64_t used = (uint64_t) st.st_blocks*512/page_size;
    return used - std::min(used, known);
}

std::atomic<uint64_t> * ggml_hugepages_store_file::shared_sums() const {
    const size_t begin = ggml_hugepages_align_down(sums_at, page_size);
    return (std::atomic<uint64_t> *) ((char *) manifest + (sums_at - begin));
}

void ggml_hugepages_store_file::complete(const uint8_t * addr, size_t first, size_t last) {
    for (size_t i = (first + segment - 1)/segment; i < sums.size() && std::min((i + 1)*segment, size) <= last; i++) {
        const size_t   end = std::min((i + 1)*segment, size);
        const uint64_t sum = ggml_hugepages_checksum(addr + i*segment, end - i*segment);
        sums[i] = sum;
        shared_sums()[i].store(sum, std::memory_order_release);
    }
}

// Returns populated pages without a complete segment. No other process uses them, because only the holder of the lock uses such a page.
void ggml_hugepages_store_file::return_pages(const ggml_hugepages_fill_lock & proof) {
    GGML_ASSERT(lock.get() == &proof);
    const size_t end = ggml_hugepages_align_down(sums_at, page_size); // the manifest follows, and its pages are never returned
    for (size_t at = 0; at < end; at += page_size) {
        const size_t first = at;
        while (at < end && !has_page(at)) {
            at += page_size;
        }
        if (at > first && !ggml_hugepages_punch(fd, first, at)) {
            GGML_LOG_WARN("%s: cannot return pages of '%s': %s\n", __func__, path.c_str(), strerror(errno));
        }
    }
}

// Users who may read the model file may also read the image, as far as owner and group allow. A context contains a user's words.
static mode_t mode_of(const ggml_hugepages_store_file & file) {
    struct stat st = {};
    if (file.is_context() || stat(file.source.c_str(), &st) != 0) {
        return 0600;
    }
    const bool is_group = (st.st_mode & 0040) && st.st_gid == getegid();
    return 0600 | (st.st_mode & 0004 ? 0044 : 0) | (is_group ? 0040 : 0);
}

// A file without a name gets its manifest, then its name, so no process sees an image without a manifest.
bool ggml_hugepages_store_file::make(ggml_hugepages_error * error) {
    const auto fail = [&](const char * call) {
        const int err = errno;
        const bool is_short = err == EFAULT || err == ENOMEM || err == ENOSPC;
        ggml_hugepages_fail(error, is_short ? GGML_HUGEPAGES_STATUS_SHORT : GGML_HUGEPAGES_STATUS_INVALID,
            "cannot create resident image '%s': %s: %s", path.c_str(), call, is_short ? "no free huge page for the manifest" : strerror(err));
        if (is_short) {
            ggml_hugepages_hint(error, "run hugepages store gc, grow the pool, or raise the limit of the mount");
        } else {
            ggml_hugepages_hint_errno(error, err, call, "use a store that this user may write to (hugepages store mount --uid)");
        }
        if (manifest) {
            munmap(manifest, manifest_size);
            manifest = nullptr;
        }
        close(fd);
        fd = -1;
        return false;
    };
    const size_t at = ggml_hugepages_align_down(sums_at, page_size);
    fd = openat(*dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd == -1) {
        return fail("open");
    }
    if (fchmod(fd, mode_of(*this)) != 0) {
        return fail("fchmod");
    }
    if (!ggml_hugepages_resize(fd, length)) {
        return fail("ftruncate");
    }
    void * addr = mmap(nullptr, length - at, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t) at);
    if (addr == MAP_FAILED) {
        return fail("mmap");
    }
    manifest      = addr;
    manifest_size = length - at;
    if (!ggml_hugepages_populate((uint8_t *) addr, manifest_size)) {
        return fail("madvise");
    }
    auto * h = (ggml_hugepages_store_header *) ((char *) addr + manifest_size - GGML_HUGEPAGES_HEADER_SIZE);
    const char magic[8] = GGML_HUGEPAGES_STORE_MAGIC;
    memcpy(h->magic, magic, sizeof(magic));
    h->version    = GGML_HUGEPAGES_STORE_VERSION;
    h->kind       = kind;
    h->size       = size;
    h->page_size  = page_size;
    h->segment    = segment;
    h->n_segments = sums.size();
    h->created    = time(nullptr);
    h->source_dev = source_dev;
    h->source_ino = source_ino;
    snprintf(h->source,   sizeof(h->source),   "%s", source.c_str());
    snprintf(h->identity, sizeof(h->identity), "%s", identity.c_str());
    h->checksum   = ggml_hugepages_header_checksum(*h);
    if (linkat(AT_FDCWD, ("/proc/self/fd/" + std::to_string(fd)).c_str(), *dir, name.c_str(), AT_SYMLINK_FOLLOW) != 0) {
        return fail("link");
    }
    // Opened again by its name, because /proc/PID/maps shows the name of the open, and O_TMPFILE has only a number.
    munmap(manifest, manifest_size);
    manifest = nullptr;
    struct stat made = {}, named = {};
    const int again = ggml_hugepages_open_image(*dir, name.c_str(), O_RDWR);
    if (again == -1 || fstat(fd, &made) != 0 || fstat(again, &named) != 0 || made.st_ino != named.st_ino || made.st_dev != named.st_dev ||
            !ggml_hugepages_lock(again, F_RDLCK, GGML_HUGEPAGES_LOCK_ATTACHED)) {
        const int err = again == -1 ? errno : ESTALE;
        if (again != -1) {
            close(again);
        }
        errno = err;
        return fail("open");
    }
    close(fd);
    fd          = again;
    is_new      = true;
    is_writable = true;
    return true;
}

bool ggml_hugepages_store_file::begin(ggml_hugepages_error * error) {
    if (manifest) {
        return true;
    }
    GGML_ASSERT(lock);
    if (fd == -1 && !make(error)) {
        return false;
    }
    const size_t at = ggml_hugepages_align_down(sums_at, page_size);
    void * addr = mmap(nullptr, length - at, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t) at);
    if (addr == MAP_FAILED) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "cannot map the manifest of '%s': %s", path.c_str(), strerror(errno));
        return false;
    }
    manifest      = addr;
    manifest_size = length - at;
    auto * h = (ggml_hugepages_store_header *) ((char *) manifest + manifest_size - GGML_HUGEPAGES_HEADER_SIZE);
    h->filler = getpid();
    if (is_buffer) {
        std::fill(sums.begin(), sums.end(), 0);
        for (size_t i = 0; i < sums.size(); i++) {
            shared_sums()[i].store(0, std::memory_order_release);
        }
    }
    ggml_hugepages_lock(fd, F_WRLCK, GGML_HUGEPAGES_LOCK_FILLING, ggml_hugepages_lock_size());
    return true;
}

void ggml_hugepages_store_file::unmap_manifest() {
    if (manifest) {
        munmap(manifest, manifest_size);
        manifest = nullptr;
    }
    if (fd != -1) {
        ggml_hugepages_lock(fd, F_UNLCK, GGML_HUGEPAGES_LOCK_FILLING, ggml_hugepages_lock_size());
    }
}

void ggml_hugepages_store_file::close_manifest() {
    unmap_manifest();
    lock.reset();
}

void ggml_hugepages_store_file::settle_context() {
    if (manifest) {
        for (size_t i = 0; i < sums.size(); i++) {
            sums[i] = 1;
            shared_sums()[i].store(1, std::memory_order_release);
        }
        unmap_manifest();
    }
    is_new = false; // it remains
    ggml_hugepages_touch(fd);
}

void ggml_hugepages_store_file::finish() {
    if (lock) {
        if (manifest) {
            ggml_hugepages_touch(fd);
        }
        close_manifest();
    }
}

void ggml_hugepages_store_file::unlink() {
    struct stat mine = {}, there = {};
    if (fstat(fd, &mine) == 0 && fstatat(*dir, name.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0 && mine.st_ino == there.st_ino && mine.st_dev == there.st_dev) {
        unlinkat(*dir, name.c_str(), 0);
    }
}

void ggml_hugepages_store_file::give_up() {
    if (!lock) {
        return;
    }
    if (fd != -1) {
        if ((is_new || (is_buffer && manifest)) && ggml_hugepages_lock(fd, F_WRLCK, GGML_HUGEPAGES_LOCK_ATTACHED)) {
            unlink();
            ggml_hugepages_lock(fd, F_RDLCK, GGML_HUGEPAGES_LOCK_ATTACHED);
        }
        return_pages(*lock);
    }
    close_manifest();
}

ggml_hugepages_store_file::~ggml_hugepages_store_file() {
    give_up();
    if (fd != -1) {
        close(fd);
    }
}

#endif // __linux__
