// System calls that a filter may refuse.
//
// A filter that returns an error is harmless, because the caller sees the error. A filter may also kill the process, so a child process
// tries the call first. Without a filter the engine starts no child.

#ifdef __linux__

#include "syscalls.h"

#include "ggml-hugepages.h"

#include <cerrno>
#include <cstdio>
#include <map>
#include <mutex>
#include <tuple>

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

// proc_pid_status(5): number of seccomp filters of this thread; a filter cannot be removed
static unsigned n_filters() {
    FILE * file = fopen("/proc/self/status", "r");
    if (!file) {
        return 1; // unknown: ask a child
    }
    char line[256];
    unsigned mode  = 0;
    unsigned count = 0;
    while (fgets(line, sizeof(line), file)) {
        sscanf(line, "Seccomp: %u", &mode);
        sscanf(line, "Seccomp_filters: %u", &count);
    }
    fclose(file);
    return mode == 0 ? 0 : count == 0 ? 1 : count;
}

// Makes the call with arguments that have no effect: the kernel refuses them, or only answers.
static bool survives(long call, long third) {
    // like fork(2), but runs no handlers of the host program and sends no SIGCHLD
    const long pid = syscall(SYS_clone, 0, 0, 0, 0, 0);
    if (pid == 0) {
        // a core dump of the child is useless
        syscall(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
        syscall(call, -1L, 0L, third, 0L, 0L, 0L);
        syscall(SYS_exit_group, 0);
    }
    int status = 0;
    int ret    = -1;
    do {
        ret = pid > 0 ? waitpid((pid_t) pid, &status, __WCLONE) : -1;
    } while (ret == -1 && errno == EINTR);
    return ret == pid && WIFEXITED(status);
}

// A thread inherits the filters of the thread that starts it, so each thread counts them once, and the loading thread again when a
// load starts.
static thread_local int t_n_filters = -1;

void ggml_hugepages_forget_filters() {
    t_n_filters = -1;
}

bool ggml_hugepages_is_killing(long call, long third) {
    static std::mutex mutex;
    static std::map<std::tuple<int, long, long>, bool> known;
    if (t_n_filters == -1) {
        t_n_filters = (int) n_filters();
    }
    if (t_n_filters == 0) {
        return false;
    }
    std::lock_guard<std::mutex> lock(mutex);
    const auto key = std::make_tuple(t_n_filters, call, third);
    if (known.count(key) == 0) {
        known[key] = !survives(call, third);
    }
    return known[key];
}

long ggml_hugepages_call(long call, long a, long b, long c, long d, long e, long f) {
    if (ggml_hugepages_is_killing(call)) {
        errno = EPERM;
        return -1;
    }
    return syscall(call, a, b, c, d, e, f);
}

int ggml_hugepages_memfd(const char * name, size_t page_size) {
    int log2 = 0;
    while (((size_t) 1 << log2) < page_size) {
        log2++;
    }
    const unsigned flags = MFD_CLOEXEC | MFD_HUGETLB | ((unsigned) log2 << MFD_HUGE_SHIFT);
    // vm.memfd_noexec=2 refuses a memfd without the seal, and kernels before 6.3 refuse the seal
    int fd = (int) ggml_hugepages_call(SYS_memfd_create, (long) name, flags | MFD_NOEXEC_SEAL);
    if (fd == -1 && errno == EINVAL) {
        fd = (int) ggml_hugepages_call(SYS_memfd_create, (long) name, flags);
    }
    return fd;
}

uint64_t ggml_hugepages_file_size_limit() {
    struct rlimit limit = {};
    return getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : limit.rlim_cur;
}

bool ggml_hugepages_resize(int fd, size_t size) {
    if (ggml_hugepages_is_killing(SYS_ftruncate)) {
        errno = EPERM;
        return false;
    }
    // setrlimit(2): the kernel would send SIGXFSZ, which ends the process
    if (size > ggml_hugepages_file_size_limit()) {
        errno = EFBIG;
        return false;
    }
    return ftruncate(fd, (off_t) size) == 0;
}

bool ggml_hugepages_punch(int fd, size_t first, size_t last) {
    if (ggml_hugepages_is_killing(SYS_fallocate)) {
        errno = EPERM;
        return false;
    }
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t) first, (off_t) (last - first)) == 0;
}

bool ggml_hugepages_file_punch(int fd, size_t first, size_t last) noexcept try {
    ggml_hugepages_forget_filters();
    return ggml_hugepages_punch(fd, first, last);
} catch (...) {
    errno = ENOMEM;
    return false;
}

bool ggml_hugepages_reserve(int fd, size_t first, size_t last) {
    void * addr = mmap(nullptr, last - first, PROT_NONE, MAP_SHARED, fd, (off_t) first);
    if (addr == MAP_FAILED) {
        return false;
    }
    munmap(addr, last - first);
    return true;
}

int ggml_hugepages_advise(void * addr, size_t size, int advice) {
    if (ggml_hugepages_is_killing(SYS_madvise)) {
        errno = EPERM;
        return -1;
    }
    return madvise(addr, size, advice);
}

bool ggml_hugepages_populate(uint8_t * addr, size_t size) {
    int ret;
    do {
        ret = ggml_hugepages_advise(addr, size, MADV_POPULATE_WRITE);
    } while (ret != 0 && (errno == EINTR || errno == EAGAIN));
    return ret == 0;
}

#endif // __linux__
