// Resident images: opening, filling, and returning pages. ggml-hugepages-store.h describes states and locks.

#include "ggml-hugepages-store.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>

#ifdef __linux__
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

static const long HUGETLBFS = 0x958458f6; // linux/magic.h

// time without a message while a process waits for a lock, and interval of the messages after it
static const auto SILENCE  = std::chrono::seconds(2);
static const auto INTERVAL = std::chrono::seconds(10);

size_t ggml_hugepages_page_of(int fd) {
    struct statfs fs = {};
    return fstatfs(fd, &fs) == 0 && (long) fs.f_type == HUGETLBFS ? fs.f_bsize : 0;
}

static struct flock lock_of(short type, off_t first, off_t n) {
    struct flock l = {};
    l.l_type   = type;
    l.l_whence = SEEK_SET;
    l.l_start  = first;
    l.l_len    = n;
    return l;
}

bool ggml_hugepages_lock(int fd, short type, off_t first, off_t n) {
    auto l = lock_of(type, first, n);
    return fcntl(fd, F_OFD_SETLK, &l) == 0;
}

bool ggml_hugepages_is_locked(int fd, short type, off_t first, off_t * n) {
    auto l = lock_of(type, first, 1);
    if (fcntl(fd, F_OFD_GETLK, &l) != 0 || l.l_type == F_UNLCK) {
        return false;
    }
    if (n) {
        *n = l.l_len;
    }
    return true;
}

off_t ggml_hugepages_lock_size() {
    return 1 + getpid();
}

bool ggml_hugepages_read_all(int fd, void * data, size_t size, off_t at) {
    auto * to = (char *) data;
    while (size > 0) {
        const ssize_t n = pread(fd, to, size, at);
        if (n > 0) {
            to += n; at += n; size -= n;
        } else if (n == 0 || errno != EINTR) {
            errno = n == 0 ? EIO : errno;
            return false;
        }
    }
    return true;
}

bool ggml_hugepages_file_identity(int fd, size_t header_size, char * buf, size_t size) noexcept try {
    struct stat st = {};
    if (fstat(fd, &st) != 0) {
        return false;
    }
    std::vector<char> data(std::min<size_t>(1024*1024, header_size));
    uint64_t hash = 1;
    for (size_t at = 0; at < header_size; at += data.size()) {
        const size_t n = std::min(data.size(), header_size - at);
        if (!ggml_hugepages_read_all(fd, data.data(), n, at)) {
            return false;
        }
        hash = hash*31 + ggml_hugepages_checksum(data.data(), n);
    }
    return snprintf(buf, size, "file %ju:%ju %jd bytes, modified %jd.%09ld, header %016" PRIx64, (uintmax_t) st.st_dev, (uintmax_t) st.st_ino,
        (intmax_t) st.st_size, (intmax_t) st.st_mtim.tv_sec, (long) st.st_mtim.tv_nsec, hash) < (int) size;
} catch (...) {
    return false;
}

int ggml_hugepages_open_image(int dir_fd, const char * name, int flags) {
    return openat(dir_fd, name, flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);
}

bool ggml_hugepages_is_trusted(int fd, bool any_owner, size_t * page_size, struct stat * st, ggml_hugepages_error * error) {
    struct statfs fs = {};
    if (fstat(fd, st) != 0 || fstatfs(fd, &fs) != 0) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "%s", strerror(errno));
    }
    if ((long) fs.f_type != HUGETLBFS) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it is not on hugetlbfs");
    }
    if (!S_ISREG(st->st_mode)) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it is not a regular file");
    }
    if (st->st_uid != 0 && st->st_uid != geteuid() && !(any_owner && geteuid() == 0)) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it belongs to user %u, not to root or this user", (unsigned) st->st_uid);
    }
    if (st->st_mode & (S_IWGRP | S_IWOTH)) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "others may write to it");
    }
    *page_size = fs.f_bsize;
    return true;
}


//
// the fill lock
//

ggml_hugepages_fill_lock::~ggml_hugepages_fill_lock() {
    unlinkat(dir_fd, name.c_str(), 0);
    close(fd);
}

enum lock_answer { LOCK_MINE, LOCK_OTHERS, LOCK_IMPOSSIBLE };

// holder: PID of the process that holds the lock, if it is another one
static lock_answer take_fill_lock(ggml_hugepages_store_file & file, off_t * holder) {
    const std::string name = ggml_hugepages_lock_name(file.name);
    const int         dir  = *file.dir;
    *holder = 0;
    // proc(5), protected_regular: in a sticky directory O_CREAT refuses another user's file, so open without O_CREAT first
    int fd = ggml_hugepages_open_image(dir, name.c_str(), O_RDWR);
    if (fd == -1 && errno == ENOENT) {
        fd = ggml_hugepages_open_image(dir, name.c_str(), O_RDWR | O_CREAT | O_EXCL);
    }
    if (fd == -1) {
        return errno == EEXIST || errno == ENOENT ? LOCK_OTHERS : LOCK_IMPOSSIBLE;
    }
    struct stat mine = {}, there = {};
    if (fstat(fd, &mine) != 0 || !S_ISREG(mine.st_mode) || (mine.st_uid != geteuid() && geteuid() != 0)) {
        close(fd);
        errno = EPERM;
        return LOCK_IMPOSSIBLE;
    }
    if (!ggml_hugepages_lock(fd, F_WRLCK, 0, ggml_hugepages_lock_size())) {
        ggml_hugepages_is_locked(fd, F_WRLCK, 0, holder);
        *holder -= *holder > 0;
        close(fd);
        return LOCK_OTHERS;
    }
    // the previous holder may have removed the file before this process got the lock
    if (fstatat(dir, name.c_str(), &there, AT_SYMLINK_NOFOLLOW) != 0 || there.st_ino != mine.st_ino || there.st_dev != mine.st_dev) {
        close(fd);
        return LOCK_OTHERS;
    }
    file.lock = std::make_unique<ggml_hugepages_fill_lock>(dir, fd, name);
    return LOCK_MINE;
}

//
// the file
//

std::atomic<uint64_t> * ggml_hugepages_store_file::shared_sums() const {
    const size_t begin = ggml_hugepages_align_down(sums_at, page_size);
    return (std::atomic<uint64_t> *) ((char *) manifest + (sums_at - begin));
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

// Users who may read the model file may also read the image, as far as owner and group allow.
static mode_t mode_of(const ggml_hugepages_store_file & file) {
    struct stat st = {};
    if (stat(file.source.c_str(), &st) != 0) {
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
        ggml_hugepages_hint(error, "%s", is_short ? "run hugepages store gc, grow the pool, or raise the limit of the mount" :
            "use a store that this user may write to (hugepages store mount --uid)");
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

void ggml_hugepages_store_file::close_manifest() {
    if (manifest) {
        munmap(manifest, manifest_size);
        manifest = nullptr;
    }
    if (fd != -1) {
        ggml_hugepages_lock(fd, F_UNLCK, GGML_HUGEPAGES_LOCK_FILLING, ggml_hugepages_lock_size());
    }
    lock.reset();
}

// optional: only gc --older-than reads the time
static void touch(int fd) {
    if (!ggml_hugepages_is_killing(SYS_utimensat)) {
        futimens(fd, nullptr);
    }
}

void ggml_hugepages_store_file::finish() {
    if (lock) {
        if (manifest) {
            touch(fd);
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

uint64_t ggml_hugepages_store_free(const ggml_hugepages_store_file & file) {
    struct statfs fs = {};
    if (fstatfs(*file.dir, &fs) != 0 || fs.f_blocks == 0 || (int64_t) fs.f_blocks < 0) {
        return UINT64_MAX;
    }
    return (uint64_t) fs.f_bfree*fs.f_bsize;
}

uint64_t ggml_hugepages_store_set_aside(const ggml_hugepages_store_file & file) {
    static const std::string OPTION = ",min_size=";
    struct stat st = {};
    if (fstat(*file.dir, &st) != 0) {
        return 0;
    }
    const std::string device = std::to_string(major(st.st_dev)) + ":" + std::to_string(minor(st.st_dev));
    for (const auto & mount : ggml_hugepages_mounts("")) {
        const size_t at = mount.options.find(OPTION);
        if (mount.device != device || mount.fs_root != "/" || at == std::string::npos) {
            continue;
        }
        const uint64_t kept = strtoull(mount.options.c_str() + at + OPTION.size(), nullptr, 10);
        // statfs shows the use of the files only if the mount also has a limit
        uint64_t used = 0;
        std::error_code ec;
        std::filesystem::recursive_directory_iterator files(mount.path, ec);
        for (const std::filesystem::recursive_directory_iterator end; !ec && files != end; files.increment(ec)) {
            if (lstat(files->path().c_str(), &st) == 0) {
                used += S_ISREG(st.st_mode) ? (uint64_t) st.st_blocks*512 : 0;
            }
        }
        return ec ? 0 : (kept - std::min(kept, used))/file.page_size;
    }
    return 0;
}

//
// opening
//

struct ggml_hugepages_store {
    std::shared_ptr<int>             dir;
    std::string                      path;
    size_t                           page_size;
    bool                             plan_only;
    ggml_hugepages_progress_callback callback;
    void                           * user_data;

    bool refuse(const ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        const std::string reason = error->message;
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "resident image '%s' is refused: %s", file.path.c_str(), reason.c_str());
        struct stat st = {}, store = {};
        const bool is_mine = fstatat(*dir, file.name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0 || fstat(*dir, &store) != 0 || geteuid() == 0 ||
            st.st_uid == geteuid() || store.st_uid == geteuid();
        if (is_mine) {
            ggml_hugepages_hint(error, "hugepages store drop %s, or start without --hugepage-store", file.name.c_str());
        } else {
            ggml_hugepages_hint(error, "run hugepages store drop %s as user %u or root, use another store, or start without --hugepage-store", file.name.c_str(),
                (unsigned) st.st_uid);
        }
        return false;
    }

    // leaves fd at -1 if the image does not exist
    bool open_file(ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        file.fd          = ggml_hugepages_open_image(*dir, file.name.c_str(), plan_only ? O_RDONLY : O_RDWR);
        file.is_writable = !plan_only;
        if (file.fd == -1 && (errno == EACCES || errno == EROFS)) {
            file.fd          = ggml_hugepages_open_image(*dir, file.name.c_str(), O_RDONLY);
            file.is_writable = false;
        }
        if (file.fd == -1 && errno == ENOENT) {
            return true;
        }
        if (file.fd == -1) {
            const int err = errno;
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot open resident image '%s': %s", file.path.c_str(),
                err == ELOOP ? "it is a symbolic link" : strerror(err));
            if (err == EACCES) {
                ggml_hugepages_hint(error, "use a store that this user may write to (hugepages store mount --uid), or run hugepages store load as the owner of this one");
            }
            return false;
        }
        struct stat st = {};
        size_t      found;
        if (!ggml_hugepages_is_trusted(file.fd, false, &found, &st, error)) {
            refuse(file, error);
            forget(file);
            return false;
        }
        return true;
    }

    static void forget(ggml_hugepages_store_file & file) {
        if (file.fd != -1) {
            close(file.fd);
            file.fd = -1;
        }
    }

    // reads the checksums and verifies that complete segments have pages
    bool look(ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        std::fill(file.sums.begin(), file.sums.end(), 0);
        struct stat st = {};
        char data[GGML_HUGEPAGES_HEADER_SIZE] = {};
        if (fstat(file.fd, &st) != 0 || (size_t) st.st_size < sizeof(data) || !ggml_hugepages_read_all(file.fd, data, sizeof(data), st.st_size - sizeof(data))) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "its manifest cannot be read");
            return refuse(file, error);
        }
        auto info = std::make_unique<ggml_hugepages_resident_info>();
        if (!ggml_hugepages_manifest_check(data, sizeof(data), st.st_size, page_size, file.name.c_str(), info.get(), error)) {
            return refuse(file, error);
        }
        if (info->size != file.size || info->kind != file.kind || file.identity != info->identity) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "its manifest describes another image");
            return refuse(file, error);
        }
        if (!ggml_hugepages_read_all(file.fd, file.sums.data(), file.sums.size()*sizeof(uint64_t), file.sums_at)) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it cannot be read: %s", strerror(errno));
            return refuse(file, error);
        }
        // a hole reads as zeros, which the server would use as weights
        uint64_t known = 0;
        for (size_t at = 0; at < file.length; at += page_size) {
            known += file.has_page(at);
        }
        if (fstat(file.fd, &st) != 0 || (uint64_t) st.st_blocks*512 < known*page_size) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "pages of its complete segments are missing");
            return refuse(file, error);
        }
        return true;
    }

    bool is_unlinked(const ggml_hugepages_store_file & file) const {
        struct stat st = {};
        return fstat(file.fd, &st) != 0 || st.st_nlink == 0;
    }

    // This process holds the fill lock, so no other process creates or fills the image.
    bool open_locked(ggml_hugepages_store_file & file, bool * again, ggml_hugepages_error * error) const {
        if (file.fd == -1) {
            if (!open_file(file, error)) {
                return false;
            }
            if (file.fd == -1) {
                return true;
            }
            if (!ggml_hugepages_lock(file.fd, F_RDLCK, GGML_HUGEPAGES_LOCK_ATTACHED) || is_unlinked(file)) {
                *again = true;
                return true;
            }
        }
        // another process may have completed more segments
        if (!look(file, error)) {
            return false;
        }
        if (file.is_complete()) {
            file.finish();
            return true;
        }
        if (!file.is_writable) {
            return fail_read_only(file, error);
        }
        // a buffer whose filler died during the last step: clear its checksums before its pages are returned
        const bool has_sums = std::any_of(file.sums.begin(), file.sums.end(), [](uint64_t sum) { return sum != 0; });
        if (file.is_buffer && has_sums && !file.begin(error)) {
            return false;
        }
        // pages of a dead filler would count as missing, and would not be free
        file.return_left_over();
        return true;
    }

    bool fail_read_only(const ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "resident image '%s' is not complete, and this user may not write to it", file.path.c_str());
        ggml_hugepages_hint(error, "run hugepages store load as the owner of the image");
        return false;
    }

    // Returns when the image is attached, or this process holds its fill lock, or the image does not exist and plan_only is set.
    bool open(ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        const auto begin = std::chrono::steady_clock::now();
        auto told = begin + SILENCE - INTERVAL;
        for (;; std::this_thread::sleep_for(std::chrono::milliseconds(20))) {
            if (file.fd == -1 && !open_file(file, error)) {
                return false;
            }
            if (plan_only) {
                return file.fd == -1 || look(file, error);
            }
            // another process is removing the image, or has removed it
            if (file.fd != -1 && (!ggml_hugepages_lock(file.fd, F_RDLCK, GGML_HUGEPAGES_LOCK_ATTACHED) || is_unlinked(file))) {
                forget(file);
                continue;
            }
            if (file.fd != -1 && !look(file, error)) {
                return false;
            }
            if (file.fd != -1 && file.is_complete()) {
                touch(file.fd); // the time of the last use, if this user may set it
                return true;
            }
            off_t holder = 0;
            if (file.fd == -1 || file.is_writable) {
                const auto answer = take_fill_lock(file, &holder);
                const int  err    = errno;
                if (answer == LOCK_MINE) {
                    bool again = false;
                    if (!open_locked(file, &again, error)) {
                        return false;
                    }
                    if (!again) {
                        return true;
                    }
                    file.lock.reset();
                    forget(file);
                    continue;
                }
                if (answer == LOCK_IMPOSSIBLE && (file.fd != -1 || std::chrono::steady_clock::now() - begin > SILENCE)) {
                    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot lock resident image '%s' to fill it: %s", file.path.c_str(), strerror(err));
                    ggml_hugepages_hint(error, "use a store that this user may write to (hugepages store mount --uid), or run hugepages store load as the owner of this one");
                    return false;
                }
            } else if (!ggml_hugepages_is_locked(file.fd, F_RDLCK, GGML_HUGEPAGES_LOCK_FILLING, &holder)) {
                return fail_read_only(file, error);
            } else {
                holder--;
            }
            tell(file, holder, told);
            const uint64_t done = std::min<uint64_t>(file.size, done_bytes(file));
            if (callback && !callback(done, file.size, user_data)) {
                return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_ABORTED, "loading was cancelled");
            }
        }
    }

    static uint64_t done_bytes(const ggml_hugepages_store_file & file) {
        return (file.sums.size() - std::count(file.sums.begin(), file.sums.end(), 0))*file.segment;
    }

    // logs the holder of the lock at each interval
    static void tell(const ggml_hugepages_store_file & file, off_t holder, std::chrono::steady_clock::time_point & told) {
        const auto now = std::chrono::steady_clock::now();
        if (now - told < INTERVAL) {
            return;
        }
        told = now;
        const std::string who = holder > 0 ? "process " + std::to_string(holder) : "another process";
        GGML_LOG_WARN("%s: waiting for %s, which fills '%s': %.0f %%\n", __func__, who.c_str(), file.path.c_str(),
            100.0*done_bytes(file)/(file.sums.size()*file.segment));
    }
};

//
// the directory
//

// the private directory of this user in a directory where others may also write
static std::string private_dir(const char * path) {
    return std::string(path) + "/llama-" + std::to_string(geteuid());
}

static int open_store(const char * path, size_t page_size, size_t * found, ggml_hugepages_error * error) {
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct statfs fs = {};
    struct stat   st = {};
    if (fd == -1 || fstatfs(fd, &fs) != 0 || fstat(fd, &st) != 0) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot open the store '%s': %s", path, strerror(errno));
        ggml_hugepages_hint(error, "run hugepages store mount, then use --hugepage-store auto");
    } else if ((long) fs.f_type != HUGETLBFS) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "the store '%s' is not a directory on hugetlbfs", path);
        ggml_hugepages_hint(error, "run hugepages store mount, then use --hugepage-store auto");
    } else if (page_size != GGML_HUGEPAGES_SIZE_AUTO && page_size != (size_t) fs.f_bsize) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "the store '%s' has pages of %s, not of %s", path,
            ggml_hugepages_size_name(fs.f_bsize).c_str(), ggml_hugepages_size_name(page_size).c_str());
        ggml_hugepages_hint(error, "use --hugepage-size auto, or a store with pages of that size");
    } else if ((st.st_uid != 0 && st.st_uid != geteuid() && geteuid() != 0) || ((st.st_mode & (S_IWGRP | S_IWOTH)) && !(st.st_mode & S_ISVTX))) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "others may write to the store '%s' (mode %04o, user %u)", path,
            (unsigned) st.st_mode & 07777, (unsigned) st.st_uid);
        const std::string own = private_dir(path);
        if (st.st_uid == geteuid()) {
            ggml_hugepages_hint(error, "chmod go-w %s", path);
        } else if (faccessat(AT_FDCWD, path, W_OK | X_OK, AT_EACCESS) == 0) {
            ggml_hugepages_hint(error, "mkdir -m 0700 %s, then use --hugepage-store %s", own.c_str(), own.c_str());
        } else {
            ggml_hugepages_hint(error, "use a directory in this store that belongs to user %u or root and that only its owner may write to", (unsigned) geteuid());
        }
    } else {
        *found = fs.f_bsize;
        return fd;
    }
    if (fd != -1) {
        close(fd);
    }
    return -1;
}

// The mounts of `hugepages store mount`, then all other mounts, each with the private directory of this user in it.
static std::vector<std::string> candidates() {
    std::vector<std::string> result = { "/run/llama-hugepages/store/2M", "/run/llama-hugepages/store/1G" };
    for (const auto & mount : ggml_hugepages_mounts("")) {
        if (mount.type == "hugetlbfs") {
            result.push_back(mount.path);
            result.push_back(private_dir(mount.path.c_str()));
        }
    }
    return result;
}

static int find_store(const char * store, size_t page_size, std::string & path, size_t * found, ggml_hugepages_error * error) {
    if (page_size == GGML_HUGEPAGES_SIZE_THP) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "a store cannot use transparent huge pages");
        ggml_hugepages_hint(error, "use --hugepage-size auto, or remove --hugepage-store");
        return -1;
    }
    if (strcmp(store, "auto") != 0) {
        path = store;
        return open_store(store, page_size, found, error);
    }
    std::string refused; // the first store that this user may access but must not trust
    ggml_hugepages_error why = {};
    for (const int access_wanted : { W_OK, R_OK }) {
        for (const auto & candidate : candidates()) {
            if (access(candidate.c_str(), access_wanted | X_OK) != 0) {
                continue;
            }
            const int fd = open_store(candidate.c_str(), page_size, found, error);
            if (fd != -1) {
                path = candidate;
                return fd;
            }
            if (refused.empty()) {
                refused = error->message;
                why     = *error;
            }
        }
    }
    if (!refused.empty()) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "no mounted hugetlbfs can be the store: %s", refused.c_str());
        ggml_hugepages_hint(error, "%s", why.hint);
        return -1;
    }
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "no hugetlbfs%s%s is mounted that this user may use",
        page_size == GGML_HUGEPAGES_SIZE_AUTO ? "" : " with pages of ",
        page_size == GGML_HUGEPAGES_SIZE_AUTO ? "" : ggml_hugepages_size_name(page_size).c_str());
    ggml_hugepages_hint(error, "run hugepages store mount, or use --hugepage-store DIR");
    return -1;
}

bool ggml_hugepages_store_find(const char * store, size_t page_size, char * path, size_t path_size, size_t * found, ggml_hugepages_error * error) noexcept {
    return ggml_hugepages_guard(error, [&] {
        std::string text;
        const int fd = find_store(store, page_size, text, found, error);
        if (fd == -1) {
            return false;
        }
        close(fd);
        if (snprintf(path, path_size, "%s", text.c_str()) >= (int) path_size) {
            return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "the path of the store is too long");
        }
        return true;
    });
}

bool ggml_hugepages_residents_open(
        ggml_hugepages_resident_t *      residents,
        size_t                           n,
        const ggml_hugepages_params *    params,
        ggml_hugepages_progress_callback callback,
        void *                           user_data,
        ggml_hugepages_error *           error) {
    ggml_hugepages_forget_filters();
    ggml_hugepages_store store = {};
    store.plan_only = params->plan_only;
    store.callback  = callback;
    store.user_data = user_data;
    store.dir = std::shared_ptr<int>(new int(-1), [](int * fd) { if (*fd != -1) { close(*fd); } delete fd; });
    *store.dir = find_store(params->store, params->page_size, store.path, &store.page_size, error);
    if (*store.dir == -1) {
        return false;
    }
    std::vector<ggml_hugepages_store_file *> files;
    for (size_t i = 0; i < n; i++) {
        auto & file = *residents[i]->file;
        const auto g = ggml_hugepages_geometry_of(file.size, store.page_size);
        file.dir       = store.dir;
        file.page_size = store.page_size;
        file.segment   = g.segment;
        file.length    = g.length;
        file.sums_at   = g.sums_at;
        file.sums.assign(g.n_segments, 0);
        file.name      = ggml_hugepages_image_name(file.kind, file.source, file.size, store.page_size, file.identity.c_str());
        file.path      = store.path + "/" + file.name;
        // a buffer smaller than a page uses ordinary memory
        if (!file.is_buffer || file.size >= store.page_size) {
            files.push_back(&file);
        }
    }
    // all processes open them in the same order, which prevents a deadlock
    std::sort(files.begin(), files.end(), [](const auto * a, const auto * b) { return a->name < b->name; });
    for (auto * file : files) {
        if (!store.open(*file, error)) {
            return false;
        }
        if (params->verify && !params->plan_only && file->fd != -1 && !ggml_hugepages_verify(file->fd, ggml_hugepages_geometry_of(file->size, store.page_size),
                file->size, ggml_hugepages_n_threads(*params), callback, user_data, error)) {
            return error->status == GGML_HUGEPAGES_STATUS_ABORTED ? false : store.refuse(*file, error);
        }
    }
    return true;
}

#else

ggml_hugepages_store_file::~ggml_hugepages_store_file() = default;

ggml_hugepages_fill_lock::~ggml_hugepages_fill_lock() = default;

uint64_t ggml_hugepages_store_file::pages_left_over() const {
    return 0;
}

static bool unsupported(ggml_hugepages_error * error) {
    return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "huge pages are available only on Linux");
}

bool ggml_hugepages_file_identity(int, size_t, char *, size_t) noexcept {
    return false;
}

bool ggml_hugepages_store_find(const char *, size_t, char *, size_t, size_t *, ggml_hugepages_error * error) noexcept {
    return unsupported(error);
}

bool ggml_hugepages_residents_open(ggml_hugepages_resident_t *, size_t, const ggml_hugepages_params *, ggml_hugepages_progress_callback, void *, ggml_hugepages_error * error) {
    return unsupported(error);
}

uint64_t ggml_hugepages_store_free(const ggml_hugepages_store_file &) {
    return 0;
}

uint64_t ggml_hugepages_store_set_aside(const ggml_hugepages_store_file &) {
    return 0;
}

#endif // __linux__

ggml_hugepages_resident_t ggml_hugepages_resident_init(ggml_hugepages_kind kind, int fd, const char * identity, size_t size) {
    auto * result = new ggml_hugepages_resident{ std::make_shared<ggml_hugepages_store_file>() };
    auto & file   = *result->file;
    file.kind     = kind;
    file.source   = ggml_hugepages_path_of(fd);
    file.size     = size;
    file.identity = std::string(identity) + "\nggml " + ggml_version() + " " + ggml_commit();
    // a hash replaces the part that does not fit in the manifest
    const size_t room = sizeof(ggml_hugepages_store_header::identity) - 1;
    if (file.identity.size() > room) {
        const uint64_t hash = ggml_hugepages_checksum(file.identity.data(), file.identity.size());
        file.identity.resize(room - 32);
        file.identity += "\nrest " + std::to_string(hash);
    }
    file.source.resize(std::min(file.source.size(), sizeof(ggml_hugepages_store_header::source) - 1));
    return result;
}

void ggml_hugepages_resident_free(ggml_hugepages_resident_t resident) {
    delete resident;
}

void ggml_hugepages_image_reside(ggml_hugepages_image_t image, ggml_hugepages_resident_t resident) {
    image->resident = resident ? resident->file : nullptr;
    if (!resident) {
        return;
    }
    resident->file->is_buffer = false;
    for (const auto & want : image->wants) {
        if (want.first < want.last) {
            resident->file->wants.emplace_back(want.first, want.last);
        }
    }
}

bool ggml_hugepages_resident_is_complete(ggml_hugepages_resident_t resident) {
    return resident->file->fd != -1 && resident->file->is_complete();
}
