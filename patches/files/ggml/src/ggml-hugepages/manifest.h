#pragma once

// The manifest of a resident image: its format, its name, and its checks. Does no I/O.
//
//   | segment | segment | ... | segment |      | checksums | header |
//   0                                  size     sums_at            length

#include "ggml-hugepages.h"
#include "ranges.h"

#include <cstdint>
#include <string>

// one read, and one checksum
static const size_t GGML_HUGEPAGES_CHUNK_SIZE = 8*1024*1024;

// A direct read of the last sector may write garbage behind the end of the file, so the manifest starts this far behind it.
static const size_t GGML_HUGEPAGES_GUARD_SIZE = 64*1024;

// bytes of the header, the last of the file
static const size_t GGML_HUGEPAGES_HEADER_SIZE = 4096;

// raise it if the meaning of an image or its locks changes
static const uint32_t GGML_HUGEPAGES_STORE_VERSION = 3;

#define GGML_HUGEPAGES_STORE_MAGIC { 'l', 'l', 'a', 'm', 'a', 'h', 'p', '\n' }

struct ggml_hugepages_store_header {
    char     magic[8]; // written last
    uint32_t version;
    uint32_t kind;
    uint64_t size;
    uint64_t page_size;
    uint64_t segment;
    uint64_t n_segments;
    int64_t  created;
    uint64_t source_dev;
    uint64_t source_ino;
    char     source[1024];
    char     identity[2048];
    uint64_t checksum; // of the fields above, except the magic
    uint32_t filler;   // process
    uint32_t unused;
};

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

// The name of a user's own image in a store where another user's image has the plain name.
std::string ggml_hugepages_image_name_of_user(const std::string & image_name, unsigned uid);

// The end of the name, which is the same for all names of the source.
std::string ggml_hugepages_image_name_end(const std::string & image_name);

std::string ggml_hugepages_lock_name(const std::string & image_name);

// Eight lanes, to keep up with the memory; neither libc nor ggml has a fast checksum. It detects flipped bits, not forgeries.
uint64_t ggml_hugepages_checksum(const void * data, size_t size);

uint64_t ggml_hugepages_header_checksum(const ggml_hugepages_store_header & h);

// Whether these bytes are the header of a resident image with that name, length and page size. Fills in info.
bool ggml_hugepages_manifest_check(
        const void                   * header,
        size_t                         size,
        uint64_t                       length,
        uint64_t                       page_size,
        const char                   * name,
        ggml_hugepages_resident_info * info,
        ggml_hugepages_error         * error);
