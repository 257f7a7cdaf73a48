// Random calls on a mapped model, under the preload library, compared with the same calls on a plain mapping of the same file.
//
// The plain mapping uses system calls, which nothing interposes. After each call both mappings must have the same result and errno. At every
// page, what the plain mapping can read must be readable and equal, and what it protects must be protected. Pages that the program unmapped
// may stay readable, because they can share a huge page with others.
//
// usage: stress MODEL SEED CALLS

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static const size_t PAGE = 4096;

enum state { UNMAPPED, MAPPED, HIDDEN }; // HIDDEN: PROT_NONE

static size_t g_calls = 0;
static char   g_last[8][96]; // the last calls, for the message of a failure
static size_t g_sequences = 0;

struct pair {
    uint8_t * ours  = nullptr; // through the preload library
    uint8_t * plain = nullptr; // system calls
    size_t    pages = 0;
    std::vector<state> states; // of the pages of the plain mapping
    bool      is_private = false;
};

[[noreturn]] static void fail(const char * what, const pair & p, size_t page) {
    for (size_t i = g_calls > 7 ? g_calls - 7 : 0; i <= g_calls; i++) {
        fprintf(stderr, "  %s\n", g_last[i % 8]);
    }
    fprintf(stderr, "call %zu: %s at page %zu of %zu (%s)\n", g_calls, what, page, p.pages, p.is_private ? "private" : "shared");
    _exit(1);
}

// whether a byte can be read, without a signal
static bool peek(const void * at, uint8_t * byte) {
    iovec to = { byte, 1 }, from = { (void *) at, 1 };
    return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1;
}

// one byte of some pages
static void compare_some(const pair & p) {
    static std::mt19937 rng(7);
    for (size_t n = 0; n < 64; n++) {
        const size_t i = rng() % p.pages;
        if (p.states[i] == UNMAPPED) {
            continue;
        }
        uint8_t ours = 0, plain = 0;
        const size_t at = i*PAGE + rng() % PAGE;
        const bool can_ours  = peek(p.ours + at, &ours);
        const bool can_plain = peek(p.plain + at, &plain);
        if (can_plain != (p.states[i] == MAPPED)) {
            fail("the test is wrong about the plain mapping", p, i);
        }
        if (can_ours != can_plain) {
            fail(can_plain ? "cannot read" : "can read", p, i);
        }
        if (can_plain && ours != plain) {
            fail("another byte", p, i);
        }
    }
}

// each byte of each page
static void compare(const pair & p) {
    static std::vector<uint8_t> copy;
    copy.resize(p.pages*PAGE);
    for (size_t i = 0; i < p.pages;) {
        size_t last = i;
        while (last < p.pages && p.states[last] == p.states[i]) {
            last++;
        }
        const size_t size = (last - i)*PAGE;
        if (p.states[i] == MAPPED) {
            iovec to = { copy.data(), size }, from = { p.ours + i*PAGE, size };
            const ssize_t n = process_vm_readv(getpid(), &to, 1, &from, 1, 0);
            if (n != (ssize_t) size) {
                fail("cannot read", p, i + std::max<ssize_t>(n, 0)/PAGE);
            }
            for (size_t page = i; page < last; page++) {
                if (memcmp(copy.data() + (page - i)*PAGE, p.plain + page*PAGE, PAGE) != 0) {
                    fail("other bytes", p, page);
                }
            }
        }
        i = last;
    }
    compare_some(p);
}

static void same(const pair & p, size_t page, const char * what, long ours, int err_ours, long plain, int err_plain) {
    if (ours != plain || (ours == -1 && err_ours != err_plain)) {
        fprintf(stderr, "%s: %ld (%s), plain %ld (%s)\n", what, ours, ours == -1 ? strerror(err_ours) : "", plain, plain == -1 ? strerror(err_plain) : "");
        fail(what, p, page);
    }
}

#define BOTH(what, page, ours, plain)                                        \
    do {                                                                     \
        errno = 0;                                                           \
        const long r_ours = (long) (ours);                                   \
        const int  e_ours = errno;                                           \
        errno = 0;                                                           \
        const long r_plain = (long) (plain);                                 \
        same(p, page, what, r_ours, e_ours, r_plain, errno);                 \
        result = r_plain;                                                    \
    } while (0)

static void one_call(pair & p, std::mt19937 & rng, uint8_t * reserve_ours, uint8_t * reserve_plain) {
    static const int advices[] = { MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED, MADV_FREE, MADV_DONTDUMP, MADV_DODUMP,
        MADV_DONTFORK, MADV_DOFORK, MADV_COLD, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_REMOVE, 4711 };
    const size_t first = rng() % p.pages;
    // short ranges at the borders of huge pages matter most
    const size_t most  = rng() % 3 == 0 ? p.pages : 8;
    const size_t n     = std::min(p.pages - first, 1 + rng() % most);
    uint8_t * ours  = p.ours  + first*PAGE;
    uint8_t * plain = p.plain + first*PAGE;
    const size_t size = n*PAGE - (rng() % 4 == 0 ? rng() % PAGE : 0);
    long result = 0;
    g_calls++;
    const unsigned kind = rng() % 12;
    const unsigned how  = rng();
    snprintf(g_last[g_calls % 8], sizeof(g_last[0]), "call %zu: kind %u, how %u, pages %zu to %zu", g_calls, kind, how, first, first + n);

    switch (kind) {
        case 0:
        case 1: {
            BOTH("munmap", first, munmap(ours, size), syscall(SYS_munmap, plain, size));
            std::fill_n(p.states.begin() + first, n, UNMAPPED);
        } break;
        case 2: {
            const int prots[] = { PROT_READ, PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE };
            const int prot = prots[how % 5];
            BOTH("mprotect", first, mprotect(ours, size, prot), syscall(SYS_mprotect, plain, size, prot));
            if (result == 0) {
                std::fill_n(p.states.begin() + first, n, prot == PROT_NONE ? HIDDEN : MAPPED);
            }
            for (size_t i = first; result != 0 && i < first + n; i++) {
                uint8_t byte;
                // the kernel has protected the pages before the first hole
                p.states[i] = p.states[i] == UNMAPPED ? UNMAPPED : peek(p.plain + i*PAGE, &byte) ? MAPPED : HIDDEN;
            }
            if (result == 0 && (prot & PROT_WRITE)) {
                for (size_t i = first; i < first + n; i++) {
                    ours[(i - first)*PAGE + 17] = plain[(i - first)*PAGE + 17] = (uint8_t) rng();
                }
            }
        } break;
        case 3:
        case 4: {
            const int advice = advices[how % (sizeof(advices)/sizeof(advices[0]))];
            BOTH("madvise", first, madvise(ours, size, advice), syscall(SYS_madvise, plain, size, advice));
        } break;
        case 5: {
            BOTH("posix_madvise", first, posix_madvise(ours, size, POSIX_MADV_WILLNEED), syscall(SYS_madvise, plain, size, MADV_WILLNEED) == 0 ? 0 : errno);
        } break;
        case 6: {
#ifndef __SANITIZE_ADDRESS__ // which makes mlock do nothing
            BOTH("mlock", first, mlock(ours + 100, size/2), syscall(SYS_mlock, plain + 100, size/2));
            BOTH("munlock", first, munlock(ours, p.pages*PAGE - first*PAGE) || true, syscall(SYS_munlock, plain, p.pages*PAGE - first*PAGE) || true);
#endif
        } break;
        case 7: {
            // the old mapping moves away, and disappears
            void * moved_ours  = mremap(ours, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, reserve_ours);
            const int err_ours = errno;
            void * moved_plain = (void *) syscall(SYS_mremap, plain, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, reserve_plain);
            same(p, first, "mremap", moved_ours == MAP_FAILED ? -1 : 0, err_ours, moved_plain == MAP_FAILED ? -1 : 0, errno);
            if (moved_plain != MAP_FAILED) {
                for (size_t i = 0; i < n; i++) {
                    if (p.states[first + i] == MAPPED && memcmp((uint8_t *) moved_ours + i*PAGE, (uint8_t *) moved_plain + i*PAGE, PAGE) != 0) {
                        fail("other bytes after mremap", p, first + i);
                    }
                }
                std::fill_n(p.states.begin() + first, n, UNMAPPED);
            } else {
                for (size_t i = first; i < first + n; i++) {
                    uint8_t byte;
                    p.states[i] = p.states[i] == HIDDEN ? HIDDEN : peek(p.plain + i*PAGE, &byte) ? MAPPED : UNMAPPED;
                }
            }
            // the kernel unmaps the target of a move even if the move fails
            for (uint8_t * reserve : { reserve_ours, reserve_plain }) {
                syscall(SYS_mmap, reserve, p.pages*PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
            }
        } break;
        case 8: {
            const int prot = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
            BOTH("mmap", first, mmap(ours, size, prot, flags, -1, 0) == ours, (void *) syscall(SYS_mmap, plain, size, prot, flags, -1, 0) == plain);
            const int fill = rng() & 0xff;
            memset(ours, fill, n*PAGE);
            memset(plain, fill, n*PAGE);
            std::fill_n(p.states.begin() + first, n, MAPPED);
        } break;
        case 9: {
            // only where the plain mapping has a hole: there both succeed
            const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
            errno = 0;
            const bool is_ours = mmap(ours, size, PROT_READ, flags, -1, 0) == ours;
            const bool is_plain = (void *) syscall(SYS_mmap, plain, size, PROT_READ, flags, -1, 0) == plain;
            if (is_ours != is_plain) {
                fail("MAP_FIXED_NOREPLACE", p, first);
            }
            if (is_plain) {
                std::fill_n(p.states.begin() + first, n, MAPPED);
            }
        } break;
        case 10: {
            BOTH("madvise at no page", first, madvise(ours + 1, size, MADV_NORMAL), syscall(SYS_madvise, plain + 1, size, MADV_NORMAL));
            BOTH("munmap of nothing", first, munmap(ours, 0), syscall(SYS_munmap, plain, 0));
            BOTH("mprotect of nothing", first, mprotect(ours, 0, PROT_NONE), syscall(SYS_mprotect, plain, 0, PROT_NONE));
        } break;
        case 11: {
            if (how % 8 != 0) {
                break;
            }
            // MADV_DONTFORK removes pages of the child, also of the plain mapping
            madvise(p.ours, p.pages*PAGE, MADV_DOFORK);
            syscall(SYS_madvise, p.plain, p.pages*PAGE, MADV_DOFORK);
            const pid_t child = fork();
            if (child == 0) {
                compare(p);
                munmap(p.ours, p.pages*PAGE);
                _exit(0);
            }
            int status = 0;
            if (waitpid(child, &status, 0) != child || status != 0) {
                fail("in the child of a fork", p, first);
            }
        } break;
    }
}

static void sequence(const char * path, std::mt19937 & rng, size_t calls) {
    const int fd = open(path, O_RDONLY);
    struct stat st;
    if (fd == -1 || fstat(fd, &st) != 0) {
        perror(path);
        exit(2);
    }
    pair p;
    p.is_private = rng() % 2 == 0;
    const int    flags = (p.is_private ? MAP_PRIVATE : MAP_SHARED) | (rng() % 2 ? MAP_POPULATE : 0);
    const size_t size  = rng() % 4 == 0 ? st.st_size - rng() % (st.st_size/4) : st.st_size;
    p.pages = (size + PAGE - 1)/PAGE;
    p.ours  = (uint8_t *) mmap(nullptr, size, PROT_READ, flags, fd, 0);
    p.plain = (uint8_t *) syscall(SYS_mmap, nullptr, size, PROT_READ, flags & ~MAP_POPULATE, fd, 0);
    close(fd);
    if (p.ours == MAP_FAILED || p.plain == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    p.states.assign(p.pages, MAPPED);
    uint8_t * reserves[2];
    for (uint8_t *& reserve : reserves) {
        reserve = (uint8_t *) syscall(SYS_mmap, nullptr, p.pages*PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    compare(p);
    for (size_t i = 0; i < calls; i++) {
        one_call(p, rng, reserves[0], reserves[1]);
        if (i % 8 == 0) {
            compare_some(p);
        }
    }
    compare(p);
    munmap(p.ours, p.pages*PAGE);
    syscall(SYS_munmap, p.plain, p.pages*PAGE);
    for (uint8_t * reserve : reserves) {
        syscall(SYS_munmap, reserve, p.pages*PAGE);
    }
    g_sequences++;
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL SEED CALLS\n", argv[0]);
        return 2;
    }
    std::mt19937 rng((unsigned) strtoul(argv[2], nullptr, 10));
    const size_t calls = strtoull(argv[3], nullptr, 10);
    while (g_calls < calls) {
        sequence(argv[1], rng, 40);
    }
    printf("%zu calls in %zu sequences\n", g_calls, g_sequences);
    return 0;
}
