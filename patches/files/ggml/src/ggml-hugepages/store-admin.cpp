// Resident images for programs that manage a store: list, verify, remove. Files may belong to any user.

#ifdef __linux__

#include "error.h"
#include "file.h"
#include "identity.h"
#include "manifest.h"
#include "params.h"
#include "store-locks.h"
#include "store-states.h"
#include "threads.h"
#include "verify.h"

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

// Whether a file that is not there was on a file system that is there: the one of the nearest folder that exists.
static bool was_removed(std::string path, uintmax_t dev) {
    while (path.find('/') != std::string::npos) {
        path.resize(path.rfind('/'));
        struct stat st = {};
        if (stat(path.empty() ? "/" : path.c_str(), &st) == 0) {
            return st.st_dev == dev;
        }
        if (errno != ENOENT && errno != ENOTDIR) {
            return false;
        }
    }
    return false;
}

// Whether the file has another content than the one with this identity. Unknown counts as no.
static bool has_changed(const char * source, size_t size, const char * identity) {
    const char * text = strstr(identity, ", content ");
    const int    fd   = open(source, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    uint64_t before = 0, now = 0;
    const bool ok = text && fd != -1 && sscanf(text, ", content %" SCNx64, &before) == 1 && ggml_hugepages_sample(fd, size, &now);
    if (fd != -1) {
        close(fd);
    }
    return ok && before != now;
}

// Sets is_stale or is_hidden: another container, or a user without rights to a folder, cannot see the source although it exists.
static void look_at_source(ggml_hugepages_resident_info * info) {
    struct stat st = {};
    intmax_t size, sec; long nsec; // NOLINT
    if (sscanf(info->identity, "file %jd bytes, modified %jd.%ld", &size, &sec, &nsec) != 3) {
        info->is_stale = true;
    } else if (stat(info->source, &st) != 0) {
        info->is_stale  = (errno == ENOENT || errno == ENOTDIR) && was_removed(info->source, info->source_dev);
        info->is_hidden = !info->is_stale;
    } else if (S_ISREG(st.st_mode) && st.st_size == size && st.st_mtim.tv_sec == sec && st.st_mtim.tv_nsec == nsec) {
        // an older file has the content that the image was made of, so a list of many images reads no file
        const bool is_other = st.st_ctim.tv_sec >= info->created && has_changed(info->source, st.st_size, info->identity);
        info->is_stale  = is_other && st.st_dev == info->source_dev;
        info->is_hidden = is_other && !info->is_stale;
    } else if (st.st_dev != info->source_dev) {
        info->is_hidden = true; // a file of another file system has its path here
    } else {
        info->is_stale = true;
    }
}

static bool read_image(int dir_fd, const char * name, ggml_hugepages_resident_info * info, ggml_hugepages_error * error) {
    *info = {};
    const int fd = ggml_hugepages_open_image(dir_fd, name, O_RDONLY);
    if (fd == -1) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "%s", errno == ELOOP ? "it is a symbolic link" : strerror(errno));
    }
    std::shared_ptr<void> closed(nullptr, [fd](void *) { close(fd); });
    struct stat st = {};
    size_t      page_size;
    if (!ggml_hugepages_is_trusted(fd, true, &page_size, &st, error)) {
        return false;
    }
    info->page_size   = page_size;
    info->file_bytes  = st.st_size;
    info->used_bytes  = (uint64_t) st.st_blocks*512;
    info->used        = st.st_mtim.tv_sec;
    info->is_filling  = ggml_hugepages_is_locked(fd, F_RDLCK, GGML_HUGEPAGES_LOCK_FILLING);
    // A write lock needs a file that is open for writing, but F_OFD_GETLK also works with a read-only one.
    info->is_attached = ggml_hugepages_is_locked(fd, F_WRLCK, GGML_HUGEPAGES_LOCK_ATTACHED);
    char data[GGML_HUGEPAGES_HEADER_SIZE] = {};
    if ((size_t) st.st_size < sizeof(data)) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it is empty");
    }
    if (!ggml_hugepages_read_all(fd, data, sizeof(data), st.st_size - sizeof(data))) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it cannot be read: %s", strerror(errno));
    }
    if (!ggml_hugepages_manifest_check(data, sizeof(data), st.st_size, page_size, name, info, error)) {
        return false;
    }
    const auto g = ggml_hugepages_geometry_of(info->size, page_size);
    // a sparse file may claim any size, but a written manifest has its pages
    if (g.length - ggml_hugepages_align_down(g.sums_at, page_size) > info->used_bytes) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "its manifest is incomplete");
    }
    uint64_t n_complete = 0;
    if (!ggml_hugepages_each_checksum(fd, g, [&](uint64_t, uint64_t sum) { n_complete += sum != 0; return true; })) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it cannot be read: %s", strerror(errno));
    }
    info->n_complete = n_complete;
    look_at_source(info);
    return true;
}

bool ggml_hugepages_resident_read(int dir_fd, const char * name, ggml_hugepages_resident_info * info, ggml_hugepages_error * error) noexcept {
    return ggml_hugepages_guard(error, [&] { return read_image(dir_fd, name, info, error); });
}

bool ggml_hugepages_resident_verify(int dir_fd, const char * name, ggml_hugepages_progress_callback callback, void * user_data, ggml_hugepages_error * error) noexcept {
    return ggml_hugepages_guard(error, [&] {
        auto info = std::make_unique<ggml_hugepages_resident_info>();
        if (!read_image(dir_fd, name, info.get(), error)) {
            return false;
        }
        if (info->kind == GGML_HUGEPAGES_KIND_KV && !ggml_hugepages_is_state(info->identity)) {
            return true; // a context has no checksums
        }
        const int fd = ggml_hugepages_open_image(dir_fd, name, O_RDONLY);
        if (fd == -1) {
            return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "%s", strerror(errno));
        }
        std::shared_ptr<void> closed(nullptr, [fd](void *) { close(fd); });
        return ggml_hugepages_verify(fd, ggml_hugepages_geometry_of(info->size, info->page_size), info->size,
            ggml_hugepages_n_threads(ggml_hugepages_default_params()), callback, user_data, error);
    });
}

// PID of the filling process, 0 if no process fills the image or the PID is unknown
static off_t filler_of(int fd) {
    off_t n = 0;
    return ggml_hugepages_is_locked(fd, F_RDLCK, GGML_HUGEPAGES_LOCK_FILLING, &n) ? n - 1 : 0;
}

static bool drop(int dir_fd, const char * name, bool force, ggml_hugepages_error * error) {
    return ggml_hugepages_guard(error, [&] {
        // a file that cannot be opened as an image has no attached process
        const int fd = ggml_hugepages_open_image(dir_fd, name, O_RDWR);
        if (fd == -1 && (errno == ENOENT || errno == EACCES || errno == EROFS)) {
            return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "%s", strerror(errno));
        }
        std::shared_ptr<void> closed(nullptr, [fd](void *) { if (fd != -1) { close(fd); } });
        // a filler is attached too; the exclusive lock prevents an attach before the removal
        const bool is_free = fd == -1 || ggml_hugepages_lock(fd, F_WRLCK, GGML_HUGEPAGES_LOCK_ATTACHED);
        if (!is_free && !ggml_hugepages_is_taken(errno)) {
            return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot lock it: %s", strerror(errno));
        }
        if (!is_free && !force) {
            const off_t filler = filler_of(fd);
            return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, filler > 0 ? "process %jd fills it" : "a process is attached to it", (intmax_t) filler);
        }
        if (unlinkat(dir_fd, name, 0) != 0) {
            return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot remove it: %s", strerror(errno));
        }
        // the lock file of a dead filler
        const std::string lock_name = ggml_hugepages_lock_name(name);
        const int lock_fd = ggml_hugepages_open_image(dir_fd, lock_name.c_str(), O_RDWR);
        if (lock_fd != -1) {
            struct stat locked = {}, there = {};
            if (ggml_hugepages_lock(lock_fd, F_WRLCK, 0, ggml_hugepages_lock_size()) && fstat(lock_fd, &locked) == 0 &&
                    fstatat(dir_fd, lock_name.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0 && locked.st_ino == there.st_ino) {
                unlinkat(dir_fd, lock_name.c_str(), 0); // and not the lock file of a filler that started in between
            }
            close(lock_fd);
        }
        return true;
    });
}

// No process can use the states of a removed context, but the states contain its words.
bool ggml_hugepages_resident_drop(int dir_fd, const char * name, bool force, ggml_hugepages_error * error) noexcept {
    return ggml_hugepages_guard(error, [&] {
        struct stat st = {};
        const bool exists = fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
        if (!drop(dir_fd, name, force, error)) {
            return false;
        }
        std::vector<std::string> states;
        const std::string kind = std::string(".") + ggml_hugepages_kind_name(GGML_HUGEPAGES_KIND_KV) + "-";
        if (exists && ggml_hugepages_image_name_end(name).compare(0, kind.size(), kind) == 0) {
            ggml_hugepages_each_state(dir_fd, name, st.st_uid, [&](const auto & state) { states.push_back(state.name); });
        }
        for (const auto & state : states) {
            ggml_hugepages_error ignored = {};
            drop(dir_fd, state.c_str(), force, &ignored);
        }
        return true;
    });
}

#endif // __linux__
