// The way of earlier guides, written anew for the tests of its mistakes: mmap of a large file becomes anonymous huge pages that one
// thread fills. Nothing else is interposed.

#include <cstddef>
#include <cstdint>

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef LEAST
#define LEAST (1ul << 30)
#endif

static const size_t PAGE = 2ul << 20;

extern "C" void * mmap(void * addr, size_t len, int prot, int flags, int fd, off_t offset) {
    if (fd >= 0 && len >= LEAST && offset == 0) {
        const size_t size = (len + PAGE - 1)/PAGE*PAGE;
        void * huge = (void *) syscall(SYS_mmap, nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
        if (huge != MAP_FAILED) {
            size_t n = 0;
            while (n < len) {
                const ssize_t got = pread(fd, (uint8_t *) huge + n, len - n, n);
                if (got <= 0) {
                    break;
                }
                n += got;
            }
            return huge;
        }
        // the program gets ordinary memory, and nobody is told
    }
    return (void *) syscall(SYS_mmap, addr, len, prot, flags, fd, offset);
}

extern "C" void * mmap64(void * addr, size_t len, int prot, int flags, int fd, off_t offset) {
    return mmap(addr, len, prot, flags, fd, offset);
}
