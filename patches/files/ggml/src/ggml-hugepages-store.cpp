// Resident images: what lies on hugetlbfs stays there when the process ends, and the next process attaches to it.
//
//   | segment | segment | ... | segment |      | checksums | header |
//   0                                  size     sums_at            length
//
// The checksum of a segment is written once its data is there, and is never taken back. So at any moment a process may die, be it
// who fills: what has a checksum is whole. hugetlbfs has no write(2) and keeps nothing over a reboot, the manifest neither.
//
// Two locks, on bytes that mean nothing else. They belong to the open file, so the kernel takes them back with the process:
//
//   FILLER     exclusive   who writes
//   ATTACHED   shared      whoever has the file open to use it; who wants to remove it tries to have it alone
//
// Pages are not reserved when the file is mapped: a reservation would stay in the file when its process dies. They are populated
// before they are written to, which tells a shortage.

#include "ggml-hugepages-impl.h"
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
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>
#endif // __linux__

// to be raised whenever an image means something else than before
static const uint32_t STORE_VERSION = 1;
static const char     MAGIC[8]      = GGML_HUGEPAGES_STORE_MAGIC;
static const char     SUFFIX[]      = ".resident";

using header = ggml_hugepages_store_header;
static_assert(sizeof(header) <= GGML_HUGEPAGES_HEADER_SIZE, "the header has its place");

uint64_t ggml_hugepages_checksum(const void * data, size_t size) {
    const uint64_t prime = 0x9e3779b97f4a7c15;
    uint64_t lanes[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    const auto * bytes = (const uint8_t *) data;
    size_t at = 0;
    const auto mix = [&](uint64_t lane, uint64_t word) {
        lane = (lane ^ word)*prime;
        return lane ^ (lane >> 29);
    };
    for (; at + sizeof(lanes) <= size; at += sizeof(lanes)) {
        uint64_t words[8];
        memcpy(words, bytes + at, sizeof(words));
        for (int i = 0; i < 8; i++) {
            lanes[i] = mix(lanes[i], words[i]);
        }
    }
    uint64_t sum = size;
    for (const uint64_t lane : lanes) {
        sum = mix(sum, lane);
    }
    for (; at < size; at++) {
        sum = mix(sum, bytes[at]);
    }
    return sum == 0 ? 1 : sum;
}

uint64_t ggml_hugepages_header_checksum(const header & h) {
    return ggml_hugepages_checksum((const char *) &h + offsetof(header, version), offsetof(header, checksum) - offsetof(header, version));
}

// what the name ends with: no two images that differ in any of this have the same
static uint64_t name_hash(uint32_t kind, uint64_t size, uint64_t page_size, const char * identity) {
    char buf[4096];
    const int n = snprintf(buf, sizeof(buf), "%" PRIu32 " %" PRIu32 " %" PRIu64 " %" PRIu64 " %s", STORE_VERSION, kind, size, page_size, identity);
    return ggml_hugepages_checksum(buf, std::min<size_t>(n, sizeof(buf) - 1));
}

static std::string base_name(const std::string & path) {
    return path.substr(path.rfind('/') + 1);
}

static std::string image_name(uint32_t kind, const std::string & source, uint64_t hash) {
    std::string stem = base_name(source);
    if (stem.size() > 5 && stem.compare(stem.size() - 5, 5, ".gguf") == 0) {
        stem.resize(stem.size() - 5);
    }
    for (char & c : stem) {
        const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
        c = is_plain ? c : '_';
    }
    stem = stem.substr(0, 100);
    if (stem.empty() || stem[0] == '.') {
        stem = "model" + stem;
    }
    char hex[32];
    snprintf(hex, sizeof(hex), "%016" PRIx64, hash);
    return stem + "." + ggml_hugepages_kind_name((ggml_hugepages_kind) kind) + "-" + hex + SUFFIX;
}

bool ggml_hugepages_resident_is_name(const char * name) {
    const std::string text = name;
    const size_t n = text.size();
    const size_t n_suffix = sizeof(SUFFIX) - 1;
    if (n < n_suffix + 18 || n > 255 || text[0] == '.' || text.compare(n - n_suffix, n_suffix, SUFFIX) != 0 || text[n - n_suffix - 17] != '-') {
        return false;
    }
    const std::string hex = text.substr(n - n_suffix - 16, 16);
    return hex.find_first_not_of("0123456789abcdef") == std::string::npos && text.find('/') == std::string::npos;
}

namespace {

struct geometry {
    uint64_t segment;
    uint64_t n_segments;
    uint64_t sums_at;
    uint64_t length;
};

geometry geometry_of(uint64_t size, uint64_t page_size) {
    geometry g = {};
    g.segment    = std::min<uint64_t>(page_size, GGML_HUGEPAGES_CHUNK_SIZE);
    g.n_segments = (size + g.segment - 1)/g.segment;
    const uint64_t manifest = ggml_hugepages_align_up(g.n_segments*sizeof(uint64_t), GGML_HUGEPAGES_HEADER_SIZE) + GGML_HUGEPAGES_HEADER_SIZE;
    g.length  = ggml_hugepages_align_up(ggml_hugepages_align_up(size, GGML_HUGEPAGES_GUARD_SIZE) + manifest, page_size);
    g.sums_at = g.length - manifest;
    return g;
}

} // namespace

static bool is_zero(const char * data, size_t size) {
    return std::all_of(data, data + size, [](char c) { return c == 0; });
}

bool ggml_hugepages_manifest_check(
        const void                   * data,
        size_t                         size,
        uint64_t                       length,
        uint64_t                       page_size,
        const char                   * name,
        ggml_hugepages_resident_info * info,
        ggml_hugepages_error         * error) {
    const auto refuse = [&](const char * reason) { return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "%s", reason); };
    header h = {};
    if (size != GGML_HUGEPAGES_HEADER_SIZE || page_size == 0 || length == 0 || length % page_size != 0) {
        return refuse("its length is not that of an image");
    }
    memcpy(&h, data, sizeof(h));
    if (memcmp(h.magic, MAGIC, sizeof(MAGIC)) != 0) {
        return refuse("it does not end with a manifest");
    }
    if (h.checksum != ggml_hugepages_header_checksum(h)) {
        return refuse("its manifest is damaged");
    }
    if (h.version != STORE_VERSION) {
        return refuse("its manifest is of another version");
    }
    if (h.kind >= GGML_HUGEPAGES_KIND_COUNT || !memchr(h.source, 0, sizeof(h.source)) || !memchr(h.identity, 0, sizeof(h.identity))) {
        return refuse("its manifest makes no sense");
    }
    // the largest that anybody could have: sums of sizes must not wrap around
    if (h.size == 0 || h.size > length || length > UINT64_MAX/4 || h.page_size != page_size) {
        return refuse("its size is not that of its manifest");
    }
    const geometry g = geometry_of(h.size, page_size);
    if (g.length != length || g.segment != h.segment || g.n_segments != h.n_segments) {
        return refuse("its size is not that of its manifest");
    }
    if (name && image_name(h.kind, h.source, name_hash(h.kind, h.size, page_size, h.identity)) != name) {
        return refuse("its name is not that of its manifest");
    }
    info->kind       = (ggml_hugepages_kind) h.kind;
    info->page_size  = page_size;
    info->size       = h.size;
    info->file_bytes = length;
    info->n_segments = h.n_segments;
    info->created    = h.created;
    info->filler     = h.filler;
    memcpy(info->source,   h.source,   sizeof(h.source));
    memcpy(info->identity, h.identity, sizeof(h.identity));
    return true;
}

#ifdef __linux__

static const long HUGETLBFS = 0x958458f6; // linux/magic.h

size_t ggml_hugepages_page_of(int fd) {
    struct statfs fs = {};
    return fstatfs(fd, &fs) == 0 && (long) fs.f_type == HUGETLBFS ? fs.f_bsize : 0;
}

enum { FILLER = 0, ATTACHED = 1 };

static struct flock lock_of(short type, off_t which) {
    struct flock l = {};
    l.l_type   = type;
    l.l_whence = SEEK_SET;
    l.l_start  = which;
    l.l_len    = 1;
    return l;
}

static bool lock(int fd, short type, off_t which) {
    auto l = lock_of(type, which);
    return fcntl(fd, F_OFD_SETLK, &l) == 0;
}

// whether somebody else has it
static bool is_locked(int fd, short type, off_t which) {
    auto l = lock_of(type, which);
    return fcntl(fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}

static bool read_all(int fd, void * data, size_t size, off_t at) {
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

bool ggml_hugepages_file_identity(int fd, size_t header_size, char * buf, size_t size) {
    struct stat st = {};
    if (fstat(fd, &st) != 0) {
        return false;
    }
    std::vector<char> data(std::min<size_t>(1024*1024, header_size));
    uint64_t hash = 1;
    for (size_t at = 0; at < header_size; at += data.size()) {
        const size_t n = std::min(data.size(), header_size - at);
        if (!read_all(fd, data.data(), n, at)) {
            return false;
        }
        hash = hash*31 + ggml_hugepages_checksum(data.data(), n);
    }
    return snprintf(buf, size, "file %ju:%ju %jd bytes, modified %jd.%09ld, header %016" PRIx64, (uintmax_t) st.st_dev, (uintmax_t) st.st_ino,
        (intmax_t) st.st_size, (intmax_t) st.st_mtim.tv_sec, (long) st.st_mtim.tv_nsec, hash) < (int) size;
}

// The header is not read again: whoever looks at many images would read many files.
static bool is_stale(const char * source, const char * identity) {
    struct stat st = {};
    uintmax_t dev, ino; intmax_t size, sec; long nsec; // NOLINT
    if (sscanf(identity, "file %ju:%ju %jd bytes, modified %jd.%ld", &dev, &ino, &size, &sec, &nsec) != 5) {
        return true;
    }
    return stat(source, &st) != 0 || st.st_dev != dev || st.st_ino != ino || st.st_size != size || st.st_mtim.tv_sec != sec || st.st_mtim.tv_nsec != nsec;
}

//
// the file
//

std::atomic<uint64_t> * ggml_hugepages_store_file::shared_sums() const {
    const size_t begin = ggml_hugepages_align_down(sums_at, page_size);
    return (std::atomic<uint64_t> *) ((char *) manifest + (sums_at - begin));
}

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
    if (has_header && first + page_size > sums_at) {
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
    return has_header ? 0 : (length - std::max(begin, ggml_hugepages_align_up(size, page_size)))/page_size;
}

void ggml_hugepages_store_file::complete(const uint8_t * addr, size_t first, size_t last) {
    for (size_t i = first/segment; i*segment < std::min(last, size); i++) {
        const size_t   end = std::min((i + 1)*segment, size);
        const uint64_t sum = ggml_hugepages_checksum(addr + i*segment, end - i*segment);
        sums[i] = sum;
        shared_sums()[i].store(sum, std::memory_order_release);
    }
}

// of blocks in which nothing is complete, the manifest's not among them
void ggml_hugepages_store_file::punch_missing() {
    for (size_t at = 0; at < ggml_hugepages_align_down(sums_at, page_size); at += page_size) {
        size_t end = at;
        while (end < ggml_hugepages_align_down(sums_at, page_size) && !has_page(end)) {
            end += page_size;
        }
        if (end > at) {
            fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, end - at);
            at = end;
        }
    }
}

void ggml_hugepages_store_file::close_manifest() {
    if (manifest) {
        munmap(manifest, manifest_size);
        manifest = nullptr;
    }
    is_filling = false;
    lock(fd, F_UNLCK, FILLER);
}

void ggml_hugepages_store_file::finish() {
    if (is_filling) {
        close_manifest();
        futimens(fd, nullptr);
    }
}

void ggml_hugepages_store_file::unlink() {
    struct stat mine = {}, there = {};
    if (fstat(fd, &mine) == 0 && fstatat(*dir, name.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0 && mine.st_ino == there.st_ino && mine.st_dev == there.st_dev) {
        unlinkat(*dir, name.c_str(), 0);
    }
}

void ggml_hugepages_store_file::give_up() {
    if (!is_filling) {
        return;
    }
    if ((is_new || is_buffer) && lock(fd, F_WRLCK, ATTACHED)) {
        unlink();
        lock(fd, F_RDLCK, ATTACHED);
    }
    punch_missing();
    close_manifest();
}

ggml_hugepages_store_file::~ggml_hugepages_store_file() {
    if (fd != -1) {
        give_up();
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
        // statfs tells what the files take only where the mount has a limit as well
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

// Why nobody should believe what is in it; all is asked of the open file, so that nothing changes in between. any_owner: root looks at
// what belongs to others, and attaches to none of it.
static bool is_trusted(int fd, bool any_owner, size_t * page_size, struct stat * st, ggml_hugepages_error * error) {
    struct statfs fs = {};
    if (fstat(fd, st) != 0 || fstatfs(fd, &fs) != 0) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "%s", strerror(errno));
    }
    if ((long) fs.f_type != HUGETLBFS) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it is not on hugetlbfs");
    }
    if (!S_ISREG(st->st_mode)) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it is no ordinary file");
    }
    if (st->st_uid != 0 && st->st_uid != geteuid() && !(any_owner && geteuid() == 0)) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it belongs to user %u, not to root or to this one", (unsigned) st->st_uid);
    }
    if (st->st_mode & (S_IWGRP | S_IWOTH)) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "others may write to it");
    }
    *page_size = fs.f_bsize;
    return true;
}

// O_NONBLOCK: the name may be that of a fifo
static int open_image(int dir_fd, const char * name, int flags) {
    return openat(dir_fd, name, flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);
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
        ggml_hugepages_hint(error, "hugepages store drop %s, or start without --hugepage-store", file.name.c_str());
        return false;
    }

    // Readers are those of the model file, as far as owners can tell.
    static mode_t mode_of(const ggml_hugepages_store_file & file) {
        struct stat st = {};
        if (stat(file.source.c_str(), &st) != 0) {
            return 0600;
        }
        const bool is_group = (st.st_mode & 0040) && st.st_gid == getegid();
        return 0600 | (st.st_mode & 0004 ? 0044 : 0) | (is_group ? 0040 : 0);
    }

    // fd stays -1 if there is none and none shall be made
    bool open_file(ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        file.fd          = open_image(*dir, file.name.c_str(), plan_only ? O_RDONLY : O_RDWR);
        file.is_writable = !plan_only;
        if (file.fd == -1 && errno == ENOENT && !plan_only) {
            file.fd = open_image(*dir, file.name.c_str(), O_RDWR | O_CREAT | O_EXCL);
            if (file.fd == -1 && errno == EEXIST) {
                file.fd = open_image(*dir, file.name.c_str(), O_RDWR);
            } else if (file.fd != -1) {
                fchmod(file.fd, mode_of(file));
            }
        }
        if (file.fd == -1 && (errno == EACCES || errno == EROFS)) {
            const int err = errno;
            file.fd          = open_image(*dir, file.name.c_str(), O_RDONLY);
            file.is_writable = false;
            errno = file.fd == -1 && errno == ENOENT ? err : errno;
        }
        if (file.fd == -1 && errno == ENOENT) {
            return true;
        }
        if (file.fd == -1) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot open resident image '%s': %s", file.path.c_str(),
                errno == ELOOP ? "it is a symbolic link" : strerror(errno));
            if (errno == EACCES) {
                ggml_hugepages_hint(error, "a store that this user may write to (hugepages store mount --uid), or hugepages store load as its owner");
            }
            return false;
        }
        struct stat st = {};
        size_t      found;
        if (!is_trusted(file.fd, false, &found, &st, error)) {
            return refuse(file, error);
        }
        return true;
    }

    static void forget(ggml_hugepages_store_file & file) {
        close(file.fd);
        file.fd = -1;
    }

    // what of it is there
    bool look(ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        file.has_header = false;
        std::fill(file.sums.begin(), file.sums.end(), 0);
        struct stat st = {};
        char data[GGML_HUGEPAGES_HEADER_SIZE] = {};
        if (fstat(file.fd, &st) != 0 || st.st_size == 0) {
            return true; // just made
        }
        if ((size_t) st.st_size < sizeof(data) || !read_all(file.fd, data, sizeof(data), st.st_size - sizeof(data))) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it cannot be read: %s", strerror(errno));
            return refuse(file, error);
        }
        if ((size_t) st.st_size == file.length && is_zero(data, sizeof(((header *) nullptr)->magic))) {
            return true; // who made it did not come further
        }
        auto info = std::make_unique<ggml_hugepages_resident_info>();
        if (!ggml_hugepages_manifest_check(data, sizeof(data), st.st_size, page_size, file.name.c_str(), info.get(), error)) {
            return refuse(file, error);
        }
        if (info->size != file.size || info->kind != file.kind || file.identity != info->identity) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it is of something else");
            return refuse(file, error);
        }
        if (!read_all(file.fd, file.sums.data(), file.sums.size()*sizeof(uint64_t), file.sums_at)) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it cannot be read: %s", strerror(errno));
            return refuse(file, error);
        }
        file.has_header = true;
        return true;
    }

    // This process has the lock: makes it ready to be written to.
    bool begin(ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        const bool is_new = !file.has_header;
        const auto fail   = [&](const char * what) {
            const int err = errno;
            ggml_hugepages_fail(error, err == EFAULT || err == ENOMEM ? GGML_HUGEPAGES_STATUS_SHORT : GGML_HUGEPAGES_STATUS_NO_MEMORY,
                "%s for resident image '%s': %s", what, file.path.c_str(), err == EFAULT ? "no huge page for its manifest" : strerror(err));
            ggml_hugepages_hint(error, "hugepages store gc, a larger pool, or a mount with a larger limit");
            file.is_filling = true;
            file.is_new     = is_new;
            file.give_up();
            return false;
        };
        if (is_new && ftruncate(file.fd, file.length) != 0) {
            return fail("ftruncate failed");
        }
        const size_t at = ggml_hugepages_align_down(file.sums_at, page_size);
        void * addr = mmap(nullptr, file.length - at, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file.fd, at);
        if (addr == MAP_FAILED) {
            return fail("mmap failed");
        }
        file.manifest      = addr;
        file.manifest_size = file.length - at;
        if (!ggml_hugepages_populate((uint8_t *) addr, file.manifest_size)) {
            return fail("cannot make");
        }
        auto * h = (header *) ((char *) addr + file.manifest_size - GGML_HUGEPAGES_HEADER_SIZE);
        if (is_new) {
            h->version    = STORE_VERSION;
            h->kind       = file.kind;
            h->size       = file.size;
            h->page_size  = page_size;
            h->segment    = file.segment;
            h->n_segments = file.sums.size();
            h->created    = time(nullptr);
            snprintf(h->source,   sizeof(h->source),   "%s", file.source.c_str());
            snprintf(h->identity, sizeof(h->identity), "%s", file.identity.c_str());
            h->checksum   = ggml_hugepages_header_checksum(*h);
            std::atomic_thread_fence(std::memory_order_release);
            memcpy(h->magic, MAGIC, sizeof(MAGIC));
        }
        h->filler       = getpid();
        file.has_header = true;
        file.is_filling = true;
        file.is_new     = is_new;
        // what somebody left who died: counted as missing, so its pages must not be taken
        file.punch_missing();
        return true;
    }

    bool is_unlinked(const ggml_hugepages_store_file & file) const {
        struct stat st = {};
        return fstat(file.fd, &st) != 0 || st.st_nlink == 0;
    }

    // attached or filling at its end, or nothing but a look when that is all that is asked for
    bool open(ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        auto told = std::chrono::steady_clock::now() - std::chrono::hours(1);
        for (;; std::this_thread::sleep_for(std::chrono::milliseconds(20))) {
            if (file.fd == -1 && !open_file(file, error)) {
                return false;
            }
            if (file.fd == -1) {
                return true;
            }
            if (plan_only) {
                return look(file, error);
            }
            // somebody removes it just now, or has done so
            if (!lock(file.fd, F_RDLCK, ATTACHED) || is_unlinked(file)) {
                forget(file);
                continue;
            }
            if (!look(file, error)) {
                return false;
            }
            if (file.is_complete()) {
                futimens(file.fd, nullptr); // used now, as far as this user may say so
                return true;
            }
            if (file.is_writable && lock(file.fd, F_WRLCK, FILLER)) {
                // it may have gone on since
                if (!look(file, error)) {
                    return false;
                }
                if (file.is_complete()) {
                    lock(file.fd, F_UNLCK, FILLER);
                    return true;
                }
                return begin(file, error);
            }
            if (!file.is_writable && !is_locked(file.fd, F_RDLCK, FILLER)) {
                ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "resident image '%s' is not complete, and this user may not write to it", file.path.c_str());
                ggml_hugepages_hint(error, "hugepages store load as its owner");
                return false;
            }
            wait(file, told);
            const uint64_t done = std::min<uint64_t>(file.size, done_bytes(file));
            if (callback && !callback(done, file.size, user_data)) {
                return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_ABORTED, "loading was cancelled");
            }
        }
    }

    static uint64_t done_bytes(const ggml_hugepages_store_file & file) {
        return (file.sums.size() - std::count(file.sums.begin(), file.sums.end(), 0))*file.segment;
    }

    // says now and then what is waited for
    static void wait(const ggml_hugepages_store_file & file, std::chrono::steady_clock::time_point & told) {
        const auto now = std::chrono::steady_clock::now();
        if (now - told < std::chrono::seconds(2)) {
            return;
        }
        told = now;
        GGML_LOG_INFO("%s: another process fills '%s': %.0f %%\n", __func__, file.path.c_str(), 100.0*done_bytes(file)/(file.sums.size()*file.segment));
    }
};

// Compares what is complete with its checksums. Through read(2), so that nothing that is wrong with the file can do any harm.
static bool verify(
        int                              fd,
        const std::vector<uint64_t>    & sums,
        size_t                           segment,
        size_t                           size,
        size_t                           n_threads,
        ggml_hugepages_progress_callback callback,
        void                           * user_data,
        ggml_hugepages_error           * error) {
    std::atomic<size_t>   next{0};
    std::atomic<uint64_t> done{0};
    std::atomic<size_t>   wrong{SIZE_MAX};
    std::atomic<bool>     stop{false};
    const auto work = [&] {
        std::vector<char> data(segment);
        for (size_t i = next++; i < sums.size() && !stop; i = next++) {
            const size_t n = std::min(segment, size - i*segment);
            if (sums[i] != 0 && (!read_all(fd, data.data(), n, i*segment) || ggml_hugepages_checksum(data.data(), n) != sums[i])) {
                size_t before = wrong;
                while (i < before && !wrong.compare_exchange_weak(before, i)) {}
                stop = true;
            }
            done += n;
        }
    };
    bool cancelled = false;
    ggml_hugepages_on_threads(n_threads, work, [&] {
        if (callback && !callback(done, size, user_data)) {
            cancelled = stop = true;
        }
    });
    if (wrong != SIZE_MAX) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "its bytes at offset %zu are not those that were put there", wrong*segment);
    }
    return cancelled ? ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_ABORTED, "it was cancelled") : true;
}

//
// the directory
//

static int open_store(const char * path, size_t page_size, size_t * found, ggml_hugepages_error * error) {
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct statfs fs = {};
    struct stat   st = {};
    if (fd == -1 || fstatfs(fd, &fs) != 0 || fstat(fd, &st) != 0) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot open the store '%s': %s", path, strerror(errno));
        ggml_hugepages_hint(error, "hugepages store mount, and --hugepage-store auto");
    } else if ((long) fs.f_type != HUGETLBFS) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "the store '%s' is not a directory on hugetlbfs", path);
        ggml_hugepages_hint(error, "hugepages store mount, and --hugepage-store auto");
    } else if (page_size != GGML_HUGEPAGES_SIZE_AUTO && page_size != (size_t) fs.f_bsize) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "the store '%s' has pages of %s, not of %s", path,
            ggml_hugepages_size_name(fs.f_bsize).c_str(), ggml_hugepages_size_name(page_size).c_str());
        ggml_hugepages_hint(error, "--hugepage-size auto, or a store of that size");
    } else if ((st.st_uid != 0 && st.st_uid != geteuid() && geteuid() != 0) || ((st.st_mode & (S_IWGRP | S_IWOTH)) && !(st.st_mode & S_ISVTX))) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "others may write to the store '%s' (mode %04o, user %u)", path,
            (unsigned) st.st_mode & 07777, (unsigned) st.st_uid);
        ggml_hugepages_hint(error, "chmod go-w %s", path);
    } else {
        *found = fs.f_bsize;
        return fd;
    }
    if (fd != -1) {
        close(fd);
    }
    return -1;
}

// Of these that `hugepages store mount` makes, then of all mounts, the first that this user may write to.
static std::vector<std::string> candidates() {
    std::vector<std::string> result = { "/run/llama-hugepages/store/2M", "/run/llama-hugepages/store/1G" };
    FILE * file = fopen("/proc/self/mounts", "r");
    char line[8192];
    while (file && fgets(line, sizeof(line), file)) {
        char path[4096], type[64]; // NOLINT
        if (sscanf(line, "%*s %4095s %63s", path, type) == 2 && strcmp(type, "hugetlbfs") == 0 && strchr(path, '\\') == nullptr) {
            result.emplace_back(path);
        }
    }
    if (file) {
        fclose(file);
    }
    return result;
}

static int find_store(const char * store, size_t page_size, std::string & path, size_t * found, ggml_hugepages_error * error) {
    if (page_size == GGML_HUGEPAGES_SIZE_THP) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "a store has no THP");
        ggml_hugepages_hint(error, "--hugepage-size auto, or no --hugepage-store");
        return -1;
    }
    if (strcmp(store, "auto") != 0) {
        path = store;
        return open_store(store, page_size, found, error);
    }
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
        }
    }
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "no hugetlbfs%s%s is mounted that this user may use",
        page_size == GGML_HUGEPAGES_SIZE_AUTO ? "" : " with pages of ",
        page_size == GGML_HUGEPAGES_SIZE_AUTO ? "" : ggml_hugepages_size_name(page_size).c_str());
    ggml_hugepages_hint(error, "hugepages store mount, or --hugepage-store DIR");
    return -1;
}

bool ggml_hugepages_store_find(const char * store, size_t page_size, char * path, size_t path_size, size_t * found, ggml_hugepages_error * error) {
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
}

bool ggml_hugepages_residents_open(
        ggml_hugepages_resident_t *      residents,
        size_t                           n,
        const ggml_hugepages_params *    params,
        ggml_hugepages_progress_callback callback,
        void *                           user_data,
        ggml_hugepages_error *           error) {
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
        const auto g = geometry_of(file.size, store.page_size);
        file.dir       = store.dir;
        file.page_size = store.page_size;
        file.segment   = g.segment;
        file.length    = g.length;
        file.sums_at   = g.sums_at;
        file.sums.assign(g.n_segments, 0);
        file.name      = image_name(file.kind, file.source, name_hash(file.kind, file.size, store.page_size, file.identity.c_str()));
        file.path      = store.path + "/" + file.name;
        // a small buffer is ordinary memory
        if (!file.is_buffer || file.size >= store.page_size) {
            files.push_back(&file);
        }
    }
    // in the same order in every process: none waits for another that waits for it
    std::sort(files.begin(), files.end(), [](const auto * a, const auto * b) { return a->name < b->name; });
    for (auto * file : files) {
        if (!store.open(*file, error)) {
            return false;
        }
        if (params->verify && !params->plan_only && !verify(file->fd, file->sums, file->segment, file->size,
                ggml_hugepages_n_threads(*params), callback, user_data, error)) {
            return error->status == GGML_HUGEPAGES_STATUS_ABORTED ? false : store.refuse(*file, error);
        }
    }
    return true;
}

//
// for programs that look after a store
//

bool ggml_hugepages_resident_read(int dir_fd, const char * name, ggml_hugepages_resident_info * info, ggml_hugepages_error * error) {
    *info = {};
    const int fd = open_image(dir_fd, name, O_RDONLY);
    if (fd == -1) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "%s", errno == ELOOP ? "it is a symbolic link" : strerror(errno));
    }
    std::shared_ptr<void> closed(nullptr, [fd](void *) { close(fd); });
    struct stat st = {};
    size_t      page_size;
    if (!is_trusted(fd, true, &page_size, &st, error)) {
        return false;
    }
    info->page_size   = page_size;
    info->file_bytes  = st.st_size;
    info->used_bytes  = (uint64_t) st.st_blocks*512;
    info->used        = st.st_mtim.tv_sec;
    info->is_filling  = is_locked(fd, F_RDLCK, FILLER);
    // a lock for writing needs a file that is open for it: a reader asks whether one would be granted, F_OFD_GETLK does not mind
    info->is_attached = is_locked(fd, F_WRLCK, ATTACHED);
    char data[GGML_HUGEPAGES_HEADER_SIZE] = {};
    if ((size_t) st.st_size < sizeof(data)) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it is empty");
    }
    if (!read_all(fd, data, sizeof(data), st.st_size - sizeof(data))) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it cannot be read: %s", strerror(errno));
    }
    if (!ggml_hugepages_manifest_check(data, sizeof(data), st.st_size, page_size, name, info, error)) {
        return false;
    }
    const geometry g = geometry_of(info->size, page_size);
    std::vector<uint64_t> sums(g.n_segments);
    if (!read_all(fd, sums.data(), sums.size()*sizeof(uint64_t), g.sums_at)) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it cannot be read: %s", strerror(errno));
    }
    info->n_complete = sums.size() - std::count(sums.begin(), sums.end(), 0);
    info->is_stale   = is_stale(info->source, info->identity);
    return true;
}

bool ggml_hugepages_resident_verify(int dir_fd, const char * name, ggml_hugepages_progress_callback callback, void * user_data, ggml_hugepages_error * error) {
    auto info = std::make_unique<ggml_hugepages_resident_info>();
    if (!ggml_hugepages_resident_read(dir_fd, name, info.get(), error)) {
        return false;
    }
    const int fd = open_image(dir_fd, name, O_RDONLY);
    if (fd == -1) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "%s", strerror(errno));
    }
    const geometry g = geometry_of(info->size, info->page_size);
    std::vector<uint64_t> sums(g.n_segments);
    const bool ok = read_all(fd, sums.data(), sums.size()*sizeof(uint64_t), g.sums_at) ?
        verify(fd, sums, g.segment, info->size, ggml_hugepages_n_threads(ggml_hugepages_default_params()), callback, user_data, error) :
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it cannot be read: %s", strerror(errno));
    close(fd);
    return ok;
}

bool ggml_hugepages_resident_drop(int dir_fd, const char * name, bool force, ggml_hugepages_error * error) {
    // what is no ordinary file is nobody's memory
    const int fd = open_image(dir_fd, name, O_RDWR);
    if (fd == -1 && (errno == ENOENT || errno == EACCES || errno == EROFS)) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "%s", strerror(errno));
    }
    // with both locks: nobody attaches between the look and the removal
    const bool is_free = fd == -1 || (lock(fd, F_WRLCK, ATTACHED) && lock(fd, F_WRLCK, FILLER));
    bool ok = true;
    if (!is_free && !force) {
        ok = ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "a process uses it");
    } else if (unlinkat(dir_fd, name, 0) != 0) {
        ok = ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot remove it: %s", strerror(errno));
    }
    if (fd != -1) {
        close(fd);
    }
    return ok;
}

#else

ggml_hugepages_store_file::~ggml_hugepages_store_file() = default;

static bool unsupported(ggml_hugepages_error * error) {
    return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "huge pages need Linux");
}

bool ggml_hugepages_file_identity(int, size_t, char *, size_t) {
    return false;
}

bool ggml_hugepages_store_find(const char *, size_t, char *, size_t, size_t *, ggml_hugepages_error * error) {
    return unsupported(error);
}

bool ggml_hugepages_residents_open(ggml_hugepages_resident_t *, size_t, const ggml_hugepages_params *, ggml_hugepages_progress_callback, void *, ggml_hugepages_error * error) {
    return unsupported(error);
}

bool ggml_hugepages_resident_read(int, const char *, ggml_hugepages_resident_info *, ggml_hugepages_error * error) {
    return unsupported(error);
}

bool ggml_hugepages_resident_verify(int, const char *, ggml_hugepages_progress_callback, void *, ggml_hugepages_error * error) {
    return unsupported(error);
}

bool ggml_hugepages_resident_drop(int, const char *, bool, ggml_hugepages_error * error) {
    return unsupported(error);
}

#endif // __linux__

ggml_hugepages_resident_t ggml_hugepages_resident_init(ggml_hugepages_kind kind, int fd, const char * identity, size_t size) {
    auto * result = new ggml_hugepages_resident{ std::make_shared<ggml_hugepages_store_file>() };
    auto & file   = *result->file;
    file.kind     = kind;
    file.source   = ggml_hugepages_path_of(fd);
    file.size     = size;
    file.identity = std::string(identity) + "\nggml " + ggml_version() + " " + ggml_commit();
    // what does not fit in the manifest is there as its hash
    const size_t room = sizeof(header::identity) - 1;
    if (file.identity.size() > room) {
        const uint64_t hash = ggml_hugepages_checksum(file.identity.data(), file.identity.size());
        file.identity.resize(room - 32);
        file.identity += "\nrest " + std::to_string(hash);
    }
    file.source.resize(std::min(file.source.size(), sizeof(header::source) - 1));
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
