// Calls that the preload library must leave as they are, or answer as the C library does. Prints what it found, one line a check.
//
// usage: calls heap MODEL      large aligned allocations of a process with a model
//        calls fork MODEL      a child of fork has its own memory
//        calls raw MODEL       a child that no handler knows of changes nothing of its parent
//        calls handlers MODEL  fork handlers of the program free buffers
//        calls refused MODEL   calls that the kernel refuses change nothing
//        calls closed MODEL    the program closes all descriptors, and opens its own
//        calls locks FILE      locks on a large file that is no model
//        calls pipe MODEL      stderr is a pipe that nobody reads
//        calls sandbox MODEL   a filter that kills for optional calls, added after a load
//        calls stack MODEL     a thread with a small stack
//        calls cost            the time of a call that has nothing to do with a model
//        calls unload MODEL    loads and unloads MODEL many times, on several threads

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include <csignal>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(x)                                                              \
    do {                                                                      \
        if (!(x)) {                                                           \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #x, strerror(errno)); \
            _exit(1);                                                         \
        }                                                                     \
    } while (0)

static const size_t MIB = 1024*1024;

static size_t huge_kib() {
    FILE * file = fopen("/proc/self/status", "r");
    CHECK(file);
    char line[256];
    size_t kib = 0;
    while (fgets(line, sizeof(line), file)) {
        sscanf(line, "HugetlbPages: %zu", &kib);
    }
    fclose(file);
    return kib;
}

struct model {
    uint8_t * addr;
    size_t    size;

    explicit model(const char * path) {
        const int fd = open(path, O_RDONLY);
        CHECK(fd != -1);
        struct stat st;
        CHECK(fstat(fd, &st) == 0);
        size = st.st_size;
        addr = (uint8_t *) mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
        CHECK(addr != MAP_FAILED);
        close(fd);
        CHECK(memcmp(addr, "GGUF", 4) == 0);
    }

    ~model() { CHECK(munmap(addr, size) == 0); }
};

// with a pool that has room, an allocation is on huge pages
static void heap(const char * path) {
    void * before = nullptr;
    CHECK(posix_memalign(&before, 64, 4*MIB) == 0);
    CHECK(huge_kib() == 0);
    free(before);

    model m(path);
    const size_t of_model = huge_kib();
    CHECK(of_model > 0);

    uint8_t * p = nullptr;
    CHECK(posix_memalign((void **) &p, 64, 5*MIB) == 0);
    CHECK(huge_kib() == of_model + 6*1024);
    CHECK(malloc_usable_size(p) >= 5*MIB);
    for (size_t i = 0; i < 5*MIB; i++) {
        CHECK(p[i] == 0 || i > 0); // fresh memory of the engine may be read at once
        p[i] = (uint8_t) (i*7);
    }
    // hints, and a change of protection
    CHECK(madvise(p, 4*MIB, MADV_HUGEPAGE) == 0);
    CHECK(mlock(p, 5*MIB) == 0);
    p = (uint8_t *) realloc(p, 9*MIB);
    CHECK(p);
    for (size_t i = 0; i < 5*MIB; i++) {
        CHECK(p[i] == (uint8_t) (i*7));
    }
    CHECK(mprotect(p, 4096, PROT_READ) == 0);
    CHECK(mprotect(p, 4096, PROT_READ | PROT_WRITE) == 0);
    for (size_t i = 0; i < 5*MIB; i++) {
        CHECK(p[i] == (uint8_t) (i*7));
    }
    p = (uint8_t *) reallocarray(p, 3, MIB);
    CHECK(p);
    for (size_t i = 0; i < 3*MIB; i++) {
        CHECK(p[i] == (uint8_t) (i*7));
    }
    free(p);
    CHECK(huge_kib() == of_model);

    p = (uint8_t *) aligned_alloc(4096, 2*MIB);
    CHECK(p && (uintptr_t) p % 4096 == 0 && huge_kib() == of_model + 2*1024);
    uint8_t * q = (uint8_t *) memalign(64, 2*MIB);
    CHECK(q && huge_kib() == of_model + 4*1024);
    // MADV_DONTNEED zeroes the pages of an allocation
    memset(q, 1, 2*MIB);
    CHECK(madvise(q, 4096, MADV_DONTNEED) == 0);
    CHECK(q[0] == 0 && q[4096] == 1);
    free(q);
    free(p);
    CHECK(huge_kib() == of_model);

    // these stay with the C library
    errno = 4711;
    CHECK(posix_memalign((void **) &q, 3, 4*MIB) == EINVAL);
    q = (uint8_t *) malloc(4*MIB);
    CHECK(q && huge_kib() == of_model);
    errno = 4711;
    free(q);
    free(nullptr);
    CHECK(errno == 4711);
    printf("heap ok\n");
}

static void forks(const char * path) {
    model m(path);
    uint8_t * p = nullptr;
    CHECK(posix_memalign((void **) &p, 64, 4*MIB) == 0);
    CHECK(huge_kib() > 4*1024);
    memset(p, 1, 4*MIB);
    int fds[2];
    CHECK(pipe(fds) == 0);
    const pid_t child = fork();
    if (child == 0) {
        char byte;
        CHECK(read(fds[0], &byte, 1) == 1); // the parent has written
        CHECK(memcmp(m.addr, "GGUF", 4) == 0);
        for (size_t i = 0; i < 4*MIB; i++) {
            CHECK(p[i] == 1);
        }
        memset(p, 3, 4*MIB);
        free(p);
        CHECK(munmap(m.addr, m.size) == 0);
        _exit(0);
    }
    memset(p, 2, 4*MIB);
    CHECK(write(fds[1], "x", 1) == 1);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    for (size_t i = 0; i < 4*MIB; i++) {
        CHECK(p[i] == 2);
    }
    free(p);
    printf("fork ok\n");
}

static double ns_of(void (*call)(), size_t n) {
    double best = 1e9;
    for (int round = 0; round < 5; round++) {
        timespec a, b;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
        for (size_t i = 0; i < n; i++) {
            call();
        }
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
        const double ns = ((b.tv_sec - a.tv_sec)*1e9 + (b.tv_nsec - a.tv_nsec))/n;
        best = ns < best ? ns : best;
    }
    return best;
}

static void cost(const char * path) {
    static void * volatile none = nullptr;
    static void * volatile page = nullptr;
    static volatile size_t zero = 0;
    model * m = path ? new model(path) : nullptr;
    page = (void *) 0x1000;
    printf("free %.2f ns, ",          ns_of([] { free(none); }, 1000000));
    printf("usable size %.2f ns, ",   ns_of([] { malloc_usable_size(none); }, 1000000));
    printf("madvise %.2f ns, ",       ns_of([] { madvise(page, zero, MADV_NORMAL); }, 100000));
    printf("malloc and free %.2f ns", ns_of([] { void * volatile p = malloc(100); free(p); }, 1000000));
    if (m) {
        // a new mapping is below the last one, so this page is between two models
        static void * volatile between = memalign(4096, 512*1024);
        model second(path);
        printf(", usable size between two models %.2f ns", ns_of([] { malloc_usable_size(between); }, 1000000));
        free(between);
    }
    printf("\n");
    delete m;
}

static void unload(const char * path) {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; t++) {
        threads.emplace_back([&] {
            for (int i = 0; i < 10; i++) {
                model m(path);
                void * p = nullptr;
                CHECK(posix_memalign(&p, 64, 3*MIB) == 0);
                memset(p, 1, 3*MIB);
                CHECK(posix_madvise(m.addr, m.size, POSIX_MADV_RANDOM) == 0);
                free(p);
            }
        });
    }
    for (auto & thread : threads) {
        thread.join();
    }
    CHECK(huge_kib() == 0);
    printf("unload ok\n");
}

// compares with the file, read without the mapping
static void check_bytes(const model & m, const char * path) {
    std::vector<uint8_t> bytes(m.size);
    const int fd = open(path, O_RDONLY);
    CHECK(fd != -1 && read(fd, bytes.data(), m.size) == (ssize_t) m.size);
    close(fd);
    CHECK(memcmp(m.addr, bytes.data(), m.size) == 0);
}

static void refused(const char * path) {
    model m(path);
    uint8_t * const at = m.addr + MIB;
    const size_t size = 3*MIB;
    CHECK(mmap(at, size, PROT_READ, MAP_PRIVATE | MAP_FIXED, 999, 0) == MAP_FAILED && errno == EBADF);
    check_bytes(m, path);
    CHECK(mmap(at + 1, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED && errno == EINVAL);
    CHECK(mremap(at + 1, size, size, MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL);
    void * other = mmap(nullptr, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mremap(other, size, size, MREMAP_FIXED, at) == MAP_FAILED && errno == EINVAL);
    CHECK(munmap(at, SIZE_MAX/2) == -1 && errno == EINVAL);
    CHECK(mlock2(at, size, 0x80) == -1 && errno == EINVAL);
    CHECK(madvise(at, 4096, MADV_WIPEONFORK) == -1 && errno == EINVAL);
    check_bytes(m, path);
    void * p = nullptr;
    CHECK(posix_memalign(&p, 4, 4*MIB) == EINVAL);
    volatile size_t huge = SIZE_MAX/2;
    CHECK(posix_memalign(&p, 64, huge) == ENOMEM);
    printf("refused ok\n");
}

// fork without the handlers of pthread_atfork
static void raw(const char * path) {
    model m(path);
    uint8_t * p = nullptr;
    CHECK(posix_memalign((void **) &p, 64, 4*MIB) == 0);
    memset(p, 1, 4*MIB);
    int status = 0;
    for (const bool writes : { false, true }) {
        const pid_t child = (pid_t) syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
        if (child == 0) {
            munmap(m.addr, m.size);
            if (writes) {
                memset(p, 2, 4*MIB); // there is no memory
            }
            _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(writes ? WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV : WIFEXITED(status));
    }
    check_bytes(m, path);
    CHECK(p[0] == 1 && p[4*MIB - 1] == 1);
    free(p);
    printf("raw ok\n");
}

static uint8_t * g_buffers[2];

static void free_in_handler(int i) {
    free(g_buffers[i]);
    g_buffers[i] = nullptr;
}

static void handlers(const char * path) {
    CHECK(pthread_atfork([] { free_in_handler(0); }, nullptr, [] {
        g_buffers[1][0] = 7;
        free_in_handler(1);
    }) == 0);
    model m(path);
    for (auto & buffer : g_buffers) {
        CHECK(posix_memalign((void **) &buffer, 64, 2*MIB) == 0);
        buffer[0] = 1;
    }
    const pid_t child = fork();
    if (child == 0) {
        _exit(g_buffers[1] ? 1 : 0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(!g_buffers[0] && g_buffers[1][0] == 1);
    free_in_handler(1);
    printf("handlers ok\n");
}

static void closed(const char * path) {
    {
        model m(path);
        CHECK(syscall(SYS_close_range, 3u, ~0u, 0u) == 0);
        for (int i = 0; i < 300; i++) {
            CHECK(open("/dev/null", O_RDONLY) == 3 + i);
        }
        check_bytes(m, path); // opens and closes one more
    }
    for (int i = 0; i < 300; i++) {
        CHECK(fcntl(3 + i, F_GETFD) != -1);
    }
    printf("closed ok\n");
}

// close(2) of any descriptor of a file ends the locks of the process on it
static void locks(const char * path) {
    const int fd = open(path, O_RDWR);
    struct flock lock = {};
    lock.l_type   = F_WRLCK;
    lock.l_whence = SEEK_SET;
    CHECK(fd != -1 && fcntl(fd, F_SETLK, &lock) == 0);
    struct stat st;
    CHECK(fstat(fd, &st) == 0);
    void * addr = mmap(nullptr, st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(addr != MAP_FAILED);
    const pid_t child = fork();
    if (child == 0) {
        CHECK(fcntl(fd, F_GETLK, &lock) == 0);
        _exit(lock.l_type == F_WRLCK ? 0 : 1);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(munmap(addr, st.st_size) == 0);
    printf("locks ok\n");
}

static void broken_pipe(const char * path) {
    int fds[2];
    CHECK(pipe(fds) == 0);
    close(fds[0]);
    CHECK(dup2(fds[1], STDERR_FILENO) == STDERR_FILENO);
    model m(path); // the library says a line
    printf("pipe ok\n");
}

// docs/programs.md names this size
static void small_stack(const char * path) {
    pthread_attr_t attr;
    CHECK(pthread_attr_init(&attr) == 0 && pthread_attr_setstacksize(&attr, 64*1024) == 0);
    const auto run = [](void * path) -> void * {
        model m((const char *) path);
        void * p = nullptr;
        CHECK(posix_memalign(&p, 64, 3*MIB) == 0);
        CHECK(mprotect(m.addr, 4096, PROT_NONE) == 0);
        CHECK(munmap(m.addr, 3*MIB) == 0);
        CHECK(mprotect(p, 4096, PROT_READ) == 0);
        free(p);
        return nullptr;
    };
    pthread_t thread;
    CHECK(pthread_create(&thread, &attr, run, (void *) path) == 0 && pthread_join(thread, nullptr) == 0);
    printf("stack ok\n");
}

// the library knows the filters of a load, but a program may add another one later
static void sandbox(const char * path) {
    model m(path);
    std::vector<sock_filter> program = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0) };
    for (const long call : { SYS_fallocate, SYS_mincore, SYS_statx }) {
        program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t) call, 0, 1));
        program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
    }
    program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    const sock_fprog filter = { (unsigned short) program.size(), program.data() };
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) == 0);
    CHECK(mmap(m.addr, 4*MIB, PROT_READ, MAP_PRIVATE | MAP_FIXED, 999, 0) == MAP_FAILED && errno == EBADF);
    check_bytes(m, path);
    CHECK(munmap(m.addr, 2*MIB) == 0);
    check_bytes(model(path), path);
    printf("sandbox ok\n");
}

int main(int argc, char ** argv) {
    static const struct {
        const char * name;
        void (*run)(const char * path);
    } checks[] = {
        { "heap",     heap        },
        { "fork",     forks       },
        { "raw",      raw         },
        { "handlers", handlers    },
        { "refused",  refused     },
        { "closed",   closed      },
        { "locks",    locks       },
        { "pipe",     broken_pipe },
        { "sandbox",  sandbox     },
        { "stack",    small_stack },
        { "cost",     cost        },
        { "unload",   unload      },
    };
    const char * what = argc > 1 ? argv[1] : "";
    const char * path = argc > 2 ? argv[2] : nullptr;
    for (const auto & check : checks) {
        if (strcmp(what, check.name) == 0 && (path || check.run == cost)) {
            check.run(path);
            return 0;
        }
    }
    fprintf(stderr, "usage: %s heap|fork|raw|handlers|refused|closed|locks|pipe|sandbox|stack|cost|unload [MODEL]\n", argv[0]);
    return 2;
}
