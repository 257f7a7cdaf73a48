// Turns of the loads of several processes. The lock is on a directory that every user can open and that holds no data, so it needs no right
// and leaves nothing behind. A process that keeps it longer than two seconds stops nobody.

#ifdef __linux__

#include "ggml-hugepages.h"
#include "syscalls.h"

#include <cerrno>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

int ggml_hugepages_turn_begin() noexcept {
    const int fd = open("/sys/kernel/mm/hugepages", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int ms = 10;
    for (int waited = 0; fd != -1 && waited < 2000; waited += ms) {
        if (ggml_hugepages_call(SYS_flock, fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) {
            break;
        }
        usleep(ms*1000);
    }
    return fd;
}

void ggml_hugepages_turn_end(int turn) noexcept {
    if (turn != -1) {
        close(turn);
    }
}

#endif // __linux__
