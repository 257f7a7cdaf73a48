#pragma once

// Resident images: shared by the parts of the store. Other parts of the engine must not include this file.
//
//   | segment | segment | ... | segment |      | checksums | header |
//   0                                  size     sums_at            length
//
// States of a segment:
//
//   absent      no page                  the filler may populate it
//   populated   a page, no checksum      only the filler uses and writes it. The holder of the fill lock may return its page
//   complete    a page and a checksum    no process writes or returns it. Processes that trust the file may map it read-only
//
// The filler populates a segment, writes it, and stores its checksum in one atomic store. At that moment the segment becomes complete for
// all processes. A process uses only complete segments, and segments that it populated itself while it fills. A page of 1 GiB has several
// segments, so it may be returned only if none of them is complete. The pages of the manifest are never returned.
//
// A buffer is complete as a whole or not at all: before the fill, the filler clears the checksums of an earlier attempt.
//
// Locks are open file description locks, so the kernel releases them when their process ends:
//
//   NAME.lock   exclusive   the filler. The file has mode 0600, so a reader cannot open it and block a filler. 1 + PID locked bytes
//   ATTACHED    shared      on the image, by each attached process. Exclusive for the removal of an image that no process uses
//   FILLING     exclusive   on the image, by the filler, to inform waiting readers. It protects nothing, because a reader can block it
//
// After a crash:
//
//   before the image has a name    nothing remains; the image gets its name after its manifest is written
//   during the fill                complete segments remain. Populated segments remain until the next filler returns or fills them
//   of an attached process         nothing remains
//
// The engine does not reserve pages of the file, because a reservation would remain in the file after the process dies. Under
// GGML_HUGEPAGES_POLICY_REQUIRE it populates all missing pages before the first read.

#include "ggml-hugepages-impl.h"

#include <sys/types.h>

struct stat;

// raise it if the meaning of an image or its locks changes
static const uint32_t GGML_HUGEPAGES_STORE_VERSION = 2;

static_assert(sizeof(ggml_hugepages_store_header) <= GGML_HUGEPAGES_HEADER_SIZE, "the header fits in its place");

struct ggml_hugepages_geometry {
    uint64_t segment;
    uint64_t n_segments;
    uint64_t sums_at;
    uint64_t length;
};

ggml_hugepages_geometry ggml_hugepages_geometry_of(uint64_t size, uint64_t page_size);

// The name ends with a hash of the identity, the size, the page size and the version, so different images get different names.
std::string ggml_hugepages_image_name(uint32_t kind, const std::string & source, uint64_t size, uint64_t page_size, const char * identity);

std::string ggml_hugepages_lock_name(const std::string & image_name);

#ifdef __linux__

// offsets in an image that serve only as locks
enum { GGML_HUGEPAGES_LOCK_ATTACHED = 1, GGML_HUGEPAGES_LOCK_FILLING = 2 };

bool ggml_hugepages_lock(int fd, short type, off_t first, off_t n = 1);

// Whether another process holds the lock. n: number of bytes that it locks
bool ggml_hugepages_is_locked(int fd, short type, off_t first, off_t * n = nullptr);

// A lock covers 1 + PID bytes, because the kernel does not report the holder.
off_t ggml_hugepages_lock_size();

bool ggml_hugepages_read_all(int fd, void * data, size_t size, off_t at);

// O_NONBLOCK: the name may be a fifo
int ggml_hugepages_open_image(int dir_fd, const char * name, int flags);

// Fails with the reason if the file is not trusted. All checks use the open file, so nothing can change between two checks. any_owner: root
// may look at files of others, but attaches to none of them.
bool ggml_hugepages_is_trusted(int fd, bool any_owner, size_t * page_size, struct stat * st, ggml_hugepages_error * error);

// Compares complete segments with their checksums. It uses read(2), because a damaged file could end a mapping's read with SIGBUS.
bool ggml_hugepages_verify(
        int                              fd,
        const ggml_hugepages_geometry  & g,
        size_t                           size,
        size_t                           n_threads,
        ggml_hugepages_progress_callback callback,
        void                           * user_data,
        ggml_hugepages_error           * error);

// Reads the checksums in small groups, because the number in the header may be false. f: index, checksum; returns false to stop
bool ggml_hugepages_each_checksum(int fd, const ggml_hugepages_geometry & g, const std::function<bool(uint64_t, uint64_t)> & f);

#endif // __linux__
