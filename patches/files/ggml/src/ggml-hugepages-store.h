#pragma once

// Resident images: what the parts of the store share. Not for other parts of the engine.
//
//   | segment | segment | ... | segment |      | checksums | header |
//   0                                  size     sums_at            length
//
// States of a segment, and who may do what:
//
//   absent      no page                  the filler may populate it
//   populated   a page, no checksum      the filler may write it, and nobody uses it. Whoever holds the fill lock may return its page
//   complete    a page and a checksum    never written and never returned. Whoever trusts the file may map it read-only
//
// A segment is populated, written, and then gets its checksum in one store: it becomes complete for everybody at that moment. What a
// process maps from a store and uses is complete, or was populated by that process while it fills. A page of 1 GiB has several segments: it
// is returned only while none of them is complete. The pages of the manifest are never returned.
//
// A buffer is complete as a whole or not at all: before it is filled, checksums of an earlier attempt are cleared.
//
// Locks are open file description locks, so none outlives its process:
//
//   NAME.lock   exclusive   the filler. Of mode 0600: a reader cannot open it, so it cannot hold up a filler. Its length of bytes tells the process
//   ATTACHED    shared      on the image, by whoever uses it. Exclusive, to remove an image that nobody uses
//   FILLING     exclusive   on the image, by the filler, for readers who wait. It only informs: a reader may be in its way
//
// After a crash:
//
//   before the image has a name    nothing remains; the image gets its name once its manifest is written
//   while segments are filled      complete segments stay. Populated ones stay until the next filler returns them, or fills them
//   of a process that attached     nothing remains
//
// Pages are not reserved when the file is mapped: a reservation would stay in the file when its process dies. Under
// GGML_HUGEPAGES_POLICY_REQUIRE all that is missing is populated before anything is read.

#include "ggml-hugepages-impl.h"

#include <sys/types.h>

struct stat;

// to be raised whenever an image or its locks mean something else than before
static const uint32_t GGML_HUGEPAGES_STORE_VERSION = 2;

static_assert(sizeof(ggml_hugepages_store_header) <= GGML_HUGEPAGES_HEADER_SIZE, "the header has its place");

struct ggml_hugepages_geometry {
    uint64_t segment;
    uint64_t n_segments;
    uint64_t sums_at;
    uint64_t length;
};

ggml_hugepages_geometry ggml_hugepages_geometry_of(uint64_t size, uint64_t page_size);

// What the name ends with is a hash of all that has to be the same: no two images that differ in it have the same name.
std::string ggml_hugepages_image_name(uint32_t kind, const std::string & source, uint64_t size, uint64_t page_size, const char * identity);

std::string ggml_hugepages_lock_name(const std::string & image_name);

#ifdef __linux__

// bytes of an image that mean nothing but a lock
enum { GGML_HUGEPAGES_LOCK_ATTACHED = 1, GGML_HUGEPAGES_LOCK_FILLING = 2 };

bool ggml_hugepages_lock(int fd, short type, off_t first, off_t n = 1);

// Whether another process holds it. n: bytes that it holds
bool ggml_hugepages_is_locked(int fd, short type, off_t first, off_t * n = nullptr);

// A process that holds a lock adds its number to the bytes that it locks, as the kernel does not tell who holds one.
off_t ggml_hugepages_lock_size();

bool ggml_hugepages_read_all(int fd, void * data, size_t size, off_t at);

// O_NONBLOCK: the name may be that of a fifo
int ggml_hugepages_open_image(int dir_fd, const char * name, int flags);

// Fails with the reason for which nobody should believe what is in the file. All is asked of the open file, so that nothing changes in
// between. any_owner: root looks at what belongs to others, and attaches to none of it.
bool ggml_hugepages_is_trusted(int fd, bool any_owner, size_t * page_size, struct stat * st, ggml_hugepages_error * error);

// Compares what is complete with its checksums. Through read(2), so that nothing that is wrong with the file can do any harm.
bool ggml_hugepages_verify(
        int                              fd,
        const ggml_hugepages_geometry  & g,
        size_t                           size,
        size_t                           n_threads,
        ggml_hugepages_progress_callback callback,
        void                           * user_data,
        ggml_hugepages_error           * error);

// Checksums are read a few at a time: how many a file claims to have says nothing of how many there are. f: index, checksum; false ends it
bool ggml_hugepages_each_checksum(int fd, const ggml_hugepages_geometry & g, const std::function<bool(uint64_t, uint64_t)> & f);

#endif // __linux__
