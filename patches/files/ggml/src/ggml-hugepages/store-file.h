#pragma once

// a resident image: a file on hugetlbfs
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
// A context (GGML_HUGEPAGES_KIND_KV) is no image of a file: one process at a time uses it and writes to all of it. This process holds the
// fill lock to its end. The checksums of a context only say that its pages exist.
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

#include "manifest.h"
#include "ranges.h"
#include "store-locks.h"

#include <atomic>
#include <memory>
#include <string>
#include <vector>

struct ggml_hugepages_store_file {
    ggml_hugepages_kind kind = GGML_HUGEPAGES_KIND_WEIGHTS;
    std::string         source;
    uint64_t            source_dev = 0;
    uint64_t            source_ino = 0;
    std::string         identity;          // of the image that is open
    std::string         content;           // the identity without the placement of the pages
    std::string         placement;         // of the images that this process makes, store-placement.h
    size_t              size = 0;
    bool                is_buffer = true;  // complete as a whole or not at all
    ggml_hugepages_ranges wants;           // of an image

    // set by the open
    std::shared_ptr<int>  dir;             // closes itself
    std::string           name;
    std::string           path;            // for messages
    int                   fd          = -1; // -1: no image with that name yet
    bool                  is_writable = false;
    size_t                page_size   = 0;
    size_t                segment     = 0; // bytes
    size_t                length      = 0; // of the file
    size_t                sums_at     = 0; // offset of the checksums
    std::vector<uint64_t> sums;            // of the segments, 0 for a missing segment

    // while this process fills the image
    std::unique_ptr<ggml_hugepages_fill_lock> lock;
    bool                  is_new = false;  // created by this process

    ~ggml_hugepages_store_file();

    // whether this process is attached to the image, or may fill it
    bool is_open() const { return fd != -1 || lock; }

    // whether all of [first, last) is complete; is_complete: for a buffer, all segments
    bool has(size_t first, size_t last) const;
    bool is_complete() const;

    // whether the page of this block is already allocated
    bool has_page(size_t first) const;

    // pages that the manifest still needs for itself: none if it exists, or if it shares its page with data
    size_t pages_of_manifest() const;

    // the same for the next load, if this one fails and removes the image that it created
    size_t pages_of_missing_manifest() const;

    // pages of the file that nobody uses, because a filler died before it completed them
    uint64_t pages_left_over() const;

    // Creates the image if it does not exist, and maps its manifest writable. Fails with GGML_HUGEPAGES_STATUS_SHORT if the manifest gets
    // no page.
    bool begin(ggml_hugepages_error * error);

    // whether begin() was called: this process may write to missing segments
    bool is_filling() const { return manifest != nullptr; }

    bool is_context() const { return kind == GGML_HUGEPAGES_KIND_KV; }

    // writes the checksums of the segments inside [first, last), whose bytes are at addr + first
    void complete(const uint8_t * addr, size_t first, size_t last);

    // All pages of this context exist. Ends the filling, but this process holds the lock until it ends.
    void settle_context();

    // ends the filling and releases the lock
    void finish();

    // Returns the pages that a dead filler left. This process holds the fill lock.
    void return_left_over() { return_pages(*lock); }

    // Returns the pages that are not complete, and removes the file if this process created it and no other process uses it.
    void give_up();

    // Removes the name: attached processes keep the image, and no other process can attach.
    void unlink();

private:
    void   * manifest      = nullptr; // mapped by the filler
    size_t   manifest_size = 0;

    std::atomic<uint64_t> * shared_sums() const;
    bool make(ggml_hugepages_error * error);
    void return_pages(const ggml_hugepages_fill_lock & proof);
    void unmap_manifest();
    void close_manifest();
};

// the handle of a resident image, shared by its images and buffers
struct ggml_hugepages_resident {
    std::shared_ptr<ggml_hugepages_store_file> file;
};

// Free bytes of the store's mount, UINT64_MAX if the mount has no limit.
uint64_t ggml_hugepages_store_free(const ggml_hugepages_store_file & file);

// Pages that the mount reserves for its files (min_size) and that no file uses yet: the pool counts them as reserved.
uint64_t ggml_hugepages_store_set_aside(const ggml_hugepages_store_file & file);
