#ifdef __linux__

#include "store-locks.h"
#include "error.h"
#include "file.h"
#include "manifest.h"
#include "syscalls.h"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct flock lock_of(short type, off_t first, off_t n) {
    struct flock l = {};
    l.l_type   = type;
    l.l_whence = SEEK_SET;
    l.l_start  = first;
    l.l_len    = n;
    return l;
}

bool ggml_hugepages_lock(int fd, short type, off_t first, off_t n) {
    if (ggml_hugepages_is_killing(SYS_fcntl)) {
        errno = EPERM;
        return false;
    }
    auto l = lock_of(type, first, n);
    return fcntl(fd, F_OFD_SETLK, &l) == 0;
}

bool ggml_hugepages_is_taken(int err) {
    return err == EAGAIN || err == EACCES;
}

bool ggml_hugepages_is_locked(int fd, short type, off_t first, off_t * n) {
    auto l = lock_of(type, first, 1);
    if (ggml_hugepages_is_killing(SYS_fcntl) || fcntl(fd, F_OFD_GETLK, &l) != 0 || l.l_type == F_UNLCK) {
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

int ggml_hugepages_open_image(int dir_fd, const char * name, int flags) {
    return openat(dir_fd, name, flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);
}

bool ggml_hugepages_is_trusted(int fd, bool any_owner, size_t * page_size, struct stat * st, ggml_hugepages_error * error) {
    if (fstat(fd, st) != 0) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "%s", strerror(errno));
    }
    *page_size = ggml_hugepages_page_of(fd);
    if (*page_size == 0) {
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
    return true;
}

int ggml_hugepages_open_trusted(int dir_fd, const char * name, ggml_hugepages_resident_info * info) {
    const int fd = ggml_hugepages_open_image(dir_fd, name, O_RDONLY);
    char data[GGML_HUGEPAGES_HEADER_SIZE];
    struct stat st = {};
    size_t      page_size;
    ggml_hugepages_error error = {};
    if (fd == -1 || (ggml_hugepages_is_trusted(fd, false, &page_size, &st, &error) && (size_t) st.st_size >= sizeof(data) &&
            ggml_hugepages_read_all(fd, data, sizeof(data), st.st_size - sizeof(data)) &&
            ggml_hugepages_manifest_check(data, sizeof(data), st.st_size, page_size, name, info, &error))) {
        return fd;
    }
    close(fd);
    return -1;
}

ggml_hugepages_fill_lock::~ggml_hugepages_fill_lock() {
    unlinkat(dir_fd, name.c_str(), 0);
    close(fd);
}

ggml_hugepages_lock_answer ggml_hugepages_take_fill_lock(
        int                                         dir_fd,
        const std::string                         & image_name,
        std::unique_ptr<ggml_hugepages_fill_lock> & lock,
        off_t                                     * holder) {
    const std::string name = ggml_hugepages_lock_name(image_name);
    *holder = 0;
    // proc(5), protected_regular: in a sticky directory O_CREAT refuses another user's file, so open without O_CREAT first
    int fd = ggml_hugepages_open_image(dir_fd, name.c_str(), O_RDWR);
    const bool is_new = fd == -1 && errno == ENOENT;
    if (is_new) {
        fd = ggml_hugepages_open_image(dir_fd, name.c_str(), O_RDWR | O_CREAT | O_EXCL);
    }
    if (fd == -1) {
        return errno == EEXIST || errno == ENOENT ? GGML_HUGEPAGES_LOCK_OTHERS : GGML_HUGEPAGES_LOCK_IMPOSSIBLE;
    }
    struct stat mine = {}, there = {};
    const bool is_file  = fstat(fd, &mine) == 0 && S_ISREG(mine.st_mode);
    const bool is_mine  = is_file && mine.st_uid == geteuid();
    const bool is_free  = is_file && (is_mine || geteuid() == 0) && ggml_hugepages_lock(fd, F_WRLCK, 0, ggml_hugepages_lock_size());
    const int  err      = errno;
    if (!is_mine) {
        const bool is_same = is_free && fstatat(dir_fd, name.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0 && there.st_ino == mine.st_ino;
        const bool is_gone = is_same && unlinkat(dir_fd, name.c_str(), 0) == 0;
        close(fd);
        errno = EPERM;
        return is_gone ? GGML_HUGEPAGES_LOCK_OTHERS : GGML_HUGEPAGES_LOCK_IMPOSSIBLE;
    }
    if (!is_free) {
        ggml_hugepages_is_locked(fd, F_WRLCK, 0, holder);
        *holder -= *holder > 0;
        if (is_new && !ggml_hugepages_is_taken(err)) {
            unlinkat(dir_fd, name.c_str(), 0);
        }
        close(fd);
        errno = err;
        return ggml_hugepages_is_taken(err) ? GGML_HUGEPAGES_LOCK_OTHERS : GGML_HUGEPAGES_LOCK_IMPOSSIBLE;
    }
    // the previous holder may have removed the file before this process got the lock
    if (fstatat(dir_fd, name.c_str(), &there, AT_SYMLINK_NOFOLLOW) != 0 || there.st_ino != mine.st_ino || there.st_dev != mine.st_dev) {
        close(fd);
        return GGML_HUGEPAGES_LOCK_OTHERS;
    }
    lock = std::make_unique<ggml_hugepages_fill_lock>(dir_fd, fd, name);
    return GGML_HUGEPAGES_LOCK_MINE;
}

void ggml_hugepages_touch(int fd) {
    if (!ggml_hugepages_is_killing(SYS_utimensat)) {
        futimens(fd, nullptr);
    }
}

#endif // __linux__
