#ifdef __linux__

#include "store-directory.h"
#include "error.h"
#include "file.h"
#include "kernel.h"
#include "names.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

// the private directory of this user in a directory where others may also write
static std::string private_dir(const char * path) {
    return std::string(path) + "/llama-" + std::to_string(geteuid());
}

static const char MOUNT[] = "run sudo hugepages store mount --uid \"$USER\", then use --hugepage-store auto";

static int open_store(const char * path, size_t page_size, size_t * found, ggml_hugepages_error * error) {
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    errno = fd == -1 ? errno : 0;
    const size_t page_there = fd == -1 ? 0 : ggml_hugepages_page_of(fd);
    const int    err_there  = errno;
    struct stat st = {};
    if (fd == -1 || fstat(fd, &st) != 0) {
        const int err = errno;
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot open the store '%s': %s", path, strerror(err));
        ggml_hugepages_hint_errno(error, err, "open", MOUNT);
    } else if (page_there == 0 && err_there != 0) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot see on which file system the store '%s' is: fstatfs: %s", path, strerror(err_there));
        ggml_hugepages_hint_errno(error, err_there, "fstatfs", MOUNT);
    } else if (page_there == 0) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "the store '%s' is not a directory on hugetlbfs", path);
        ggml_hugepages_hint(error, "%s", MOUNT);
    } else if (page_size != GGML_HUGEPAGES_SIZE_AUTO && page_size != page_there) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "the store '%s' has pages of %s, not of %s", path,
            ggml_hugepages_size_name(page_there).c_str(), ggml_hugepages_size_name(page_size).c_str());
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
        *found = page_there;
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

int ggml_hugepages_store_open(const char * store, size_t page_size, std::string & path, size_t * found, ggml_hugepages_error * error) {
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
    ggml_hugepages_hint(error, "run sudo hugepages store mount --uid \"$USER\", or use --hugepage-store DIR");
    return -1;
}

bool ggml_hugepages_store_find(const char * store, size_t page_size, char * path, size_t path_size, size_t * found, ggml_hugepages_error * error) noexcept {
    return ggml_hugepages_guard(error, [&] {
        std::string text;
        const int fd = ggml_hugepages_store_open(store, page_size, text, found, error);
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

void ggml_hugepages_each_image(int dir_fd, const std::function<void(const char * name)> & callback) {
    const int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC); // a copy would share its position with others
    DIR * dir = fd == -1 ? nullptr : fdopendir(fd);
    if (!dir) {
        if (fd != -1) {
            close(fd);
        }
        return;
    }
    const std::unique_ptr<DIR, int (*)(DIR *)> closed(dir, closedir);
    while (const auto * entry = readdir(dir)) {
        if (ggml_hugepages_resident_is_name(entry->d_name)) {
            callback(entry->d_name);
        }
    }
}

#endif // __linux__
