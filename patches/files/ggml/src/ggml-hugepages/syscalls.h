#pragma once

// system calls that a filter may refuse

#include <cstddef>
#include <cstdint>

// Whether a filter kills this process for a call. A filter that returns an error is harmless, because the caller sees the error.
// third: the third argument, for filters that check flags
bool ggml_hugepages_is_killing(long call, long third = 0);

// Counts the filters again, because the host program may have added filters since the last load.
void ggml_hugepages_forget_filters();

// -1 and EPERM if a filter would kill the process, else the result of the call.
long ggml_hugepages_call(long call, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0);

// madvise(2)
int ggml_hugepages_advise(void * addr, size_t size, int advice);

// a memfd of huge pages; -1 with errno
int ggml_hugepages_memfd(const char * name, size_t page_size);

// RLIMIT_FSIZE: the largest file that this process may make, in bytes
uint64_t ggml_hugepages_file_size_limit();

// ftruncate(2); EFBIG beyond ggml_hugepages_file_size_limit
bool ggml_hugepages_resize(int fd, size_t size);

// Returns the pages of [first, last) of a file of huge pages.
bool ggml_hugepages_punch(int fd, size_t first, size_t last);

// Reserves the pages of [first, last) of such a file. The reservation lasts as long as the file.
bool ggml_hugepages_reserve(int fd, size_t first, size_t last);

// madvise(2): MADV_POPULATE_WRITE reports a shortage as an error, while a touch would end in SIGBUS. Sets errno.
bool ggml_hugepages_populate(uint8_t * addr, size_t size);
