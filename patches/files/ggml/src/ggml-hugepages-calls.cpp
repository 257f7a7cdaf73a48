// System calls that a filter may refuse, and facts that only a trial shows.
//
// A filter that returns an error is harmless, because the caller sees the error. A filter may also kill the process, so a child process
// tries the call first. Without a filter the engine starts no child.

#include "ggml-hugepages-impl.h"

#ifdef __linux__

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>

#include <linux/memfd.h>
#include <fcntl.h>
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

bool ggml_hugepages_resize(int fd, size_t size) {
    if (ggml_hugepages_is_killing(SYS_ftruncate)) {
        errno = EPERM;
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

bool ggml_hugepages_try(const char * root, size_t page_size, uint64_t n_reserve, uint64_t n_populate, uint64_t need, ggml_hugepages_error * error) {
    if (root[0] != '\0') {
        return true; // a made-up machine has no pages to try
    }
    const char * call  = "memfd_create"; // the last call
    const auto   tried = [&](int fd) {
        if (fd == -1) {
            return false;
        }
        call = "ftruncate";
        if (!ggml_hugepages_resize(fd, n_reserve*page_size)) {
            return false;
        }
        if (n_reserve == 0) {
            call = "madvise";
            return ggml_hugepages_advise(nullptr, 0, MADV_POPULATE_WRITE) == 0;
        }
        call = "mmap";
        void * addr = MAP_FAILED;
        if (ggml_hugepages_reserve(fd, 0, n_reserve*page_size)) {
            addr = mmap(nullptr, n_populate*page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        }
        if (addr == MAP_FAILED) {
            return false;
        }
        call = "madvise";
        const bool ok  = ggml_hugepages_populate((uint8_t *) addr, n_populate*page_size);
        const int  err = errno;
        munmap(addr, n_populate*page_size);
        errno = err;
        return ok;
    };
    const int  fd  = ggml_hugepages_memfd("llama-try", page_size);
    const bool ok  = tried(fd);
    const int  err = errno;
    if (fd != -1) {
        // a child that another thread forked meanwhile also has the mapping, and would keep the pages
        ggml_hugepages_resize(fd, 0);
        close(fd); // before fail_refused counts pages
    }
    ggml_hugepages_image nothing;
    nothing.path = "a trial page";
    return ok || ggml_hugepages_fail_refused({ { page_size, need } }, nothing, { call, err, page_size, 0, false }, error);
}

#else

bool ggml_hugepages_punch(int, size_t, size_t) {
    return false;
}

bool ggml_hugepages_try(const char *, size_t, uint64_t, uint64_t, uint64_t, ggml_hugepages_error *) {
    return true;
}

#endif // __linux__

bool ggml_hugepages_probe(size_t page_size, ggml_hugepages_error * error) noexcept {
    return ggml_hugepages_guard(error, [&] {
        const auto supply = ggml_hugepages_supply_read("", page_size, {});
        if (supply.pool.page_size == 0) {
            return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "this kernel has no pool of huge pages of %s", ggml_hugepages_size_name(page_size).c_str());
        }
        const uint64_t n = supply.usable() > 0 ? 1 : 0;
        return ggml_hugepages_try("", page_size, n, n, n, error);
    });
}
