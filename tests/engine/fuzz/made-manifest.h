#pragma once

// Manifests that are valid except for the changes of an input.

#include "fuzz.h"

#include "ggml-hugepages/manifest.h"

static const uint64_t FUZZ_SIZE = 5*1024*1024; // of the image

// an image of FUZZ_SIZE bytes
inline ggml_hugepages_store_header fuzz_header(uint64_t page_size) {
    ggml_hugepages_store_header h = {};
    const char magic[8] = GGML_HUGEPAGES_STORE_MAGIC;
    memcpy(h.magic, magic, sizeof(magic));
    h.kind       = GGML_HUGEPAGES_KIND_WEIGHTS;
    h.size       = FUZZ_SIZE;
    h.page_size  = page_size;
    h.segment    = page_size < GGML_HUGEPAGES_CHUNK_SIZE ? page_size : GGML_HUGEPAGES_CHUNK_SIZE;
    h.n_segments = (h.size + h.segment - 1)/h.segment;
    snprintf(h.source,   sizeof(h.source),   "/models/a.gguf");
    snprintf(h.identity, sizeof(h.identity), "file 5242880 bytes, modified 3.000000004, header 0000000000000005");
    return h;
}

inline uint64_t fuzz_length(const ggml_hugepages_store_header & h) {
    const uint64_t sums   = ggml_hugepages_align_up(h.n_segments*sizeof(uint64_t), GGML_HUGEPAGES_HEADER_SIZE);
    const uint64_t behind = ggml_hugepages_align_up(h.size, GGML_HUGEPAGES_GUARD_SIZE);
    return ggml_hugepages_align_up(behind + sums + GGML_HUGEPAGES_HEADER_SIZE, h.page_size);
}

// Only one version is valid, but the targets do not know it, so the seeds contain one manifest of each of these versions.
static const uint32_t FUZZ_VERSIONS = 16;

// Bits of an input's first byte.
enum {
    FUZZ_CHECKSUM = 1, // set the right checksum of the header
    FUZZ_NAMED    = 2, // use the name that matches the manifest
    FUZZ_FULL     = 4, // the end of the file has pages
    FUZZ_LARGE    = 8, // pages of 2 MiB instead of 64 KiB
};

// The engine's name of an image. The seeds fail if the engine changes its names.
inline std::string fuzz_name(const ggml_hugepages_store_header & h) {
    char buf[4096];
    const std::string identity(h.identity, strnlen(h.identity, sizeof(h.identity)));
    const std::string source  (h.source,   strnlen(h.source,   sizeof(h.source)));
    const int n = snprintf(buf, sizeof(buf), "%u %u %llu %llu %s", h.version, h.kind, (unsigned long long) h.size,
        (unsigned long long) h.page_size, identity.c_str());
    const uint64_t hash = ggml_hugepages_checksum(buf, n);
    std::string stem = source.substr(source.rfind('/') + 1);
    if (stem.size() > 5 && stem.compare(stem.size() - 5, 5, ".gguf") == 0) {
        stem.resize(stem.size() - 5);
    }
    for (char & c : stem) {
        const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
        c = is_plain ? c : '_';
    }
    stem = stem.substr(0, 100);
    if (stem.empty() || stem[0] == '.') {
        stem = "model" + stem;
    }
    char hex[32];
    snprintf(hex, sizeof(hex), "%016llx", (unsigned long long) hash);
    const char * kind = h.kind < GGML_HUGEPAGES_KIND_COUNT ? ggml_hugepages_kind_name((ggml_hugepages_kind) h.kind) : "none";
    return stem + "." + kind + "-" + hex + ".resident";
}
