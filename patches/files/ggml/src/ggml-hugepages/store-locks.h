#pragma once

// locks of resident images, and the trust in their files; store-file.h says what each lock protects

#include "ggml-hugepages.h"

#include <memory>
#include <string>

#include <sys/types.h>

struct stat;

// offsets in an image that serve only as locks
enum { GGML_HUGEPAGES_LOCK_ATTACHED = 1, GGML_HUGEPAGES_LOCK_FILLING = 2 };

// Sets errno. ggml_hugepages_is_taken(errno): another process has the lock; otherwise this process may not lock.
bool ggml_hugepages_lock(int fd, short type, off_t first, off_t n = 1);

bool ggml_hugepages_is_taken(int err);

// Whether another process holds the lock. n: number of bytes that it locks
bool ggml_hugepages_is_locked(int fd, short type, off_t first, off_t * n = nullptr);

// A lock covers 1 + PID bytes, because the kernel does not report the holder.
off_t ggml_hugepages_lock_size();

// O_NONBLOCK: the name may be a fifo
int ggml_hugepages_open_image(int dir_fd, const char * name, int flags);

// Fails with the reason if the file is not trusted. All checks use the open file, so nothing can change between two checks. any_owner: root
// may look at files of others, but attaches to none of them.
bool ggml_hugepages_is_trusted(int fd, bool any_owner, size_t * page_size, struct stat * st, ggml_hugepages_error * error);

// Opens an image that this process trusts, and reads its manifest. Returns -1 for any other file.
int ggml_hugepages_open_trusted(int dir_fd, const char * name, ggml_hugepages_resident_info * info);

// Proof that only this process may write to a resident image. The lock is on a file of mode 0600 beside the image, so a process that may
// only read the image cannot take it. The lock belongs to the open file, so the kernel releases it when the process ends.
struct ggml_hugepages_fill_lock {
    int         dir_fd;
    int         fd;
    std::string name;

    ggml_hugepages_fill_lock(int dir_fd, int fd, const std::string & name) : dir_fd(dir_fd), fd(fd), name(name) {}
    ggml_hugepages_fill_lock(const ggml_hugepages_fill_lock &) = delete;
    ~ggml_hugepages_fill_lock(); // removes the file, then releases the lock
};

enum ggml_hugepages_lock_answer { GGML_HUGEPAGES_LOCK_MINE, GGML_HUGEPAGES_LOCK_OTHERS, GGML_HUGEPAGES_LOCK_IMPOSSIBLE };

// image_name: the lock file is beside the image. holder: PID of the process that holds the lock, if it is another one. LOCK_IMPOSSIBLE sets
// errno: this user may not lock, or in a store for all users the lock file belongs to another user. Root removes such a file if nobody
// holds its lock.
ggml_hugepages_lock_answer ggml_hugepages_take_fill_lock(
        int                                         dir_fd,
        const std::string                         & image_name,
        std::unique_ptr<ggml_hugepages_fill_lock> & lock,
        off_t                                     * holder);

// Sets the time of the last use, if this user may. Only gc --older-than reads it.
void ggml_hugepages_touch(int fd);
