#include "manifest.h"
#include "error.h"

#include <algorithm>
#include <cinttypes>
#include <cstddef>
#include <cstdio>
#include <cstring>

static const char MAGIC[8]      = GGML_HUGEPAGES_STORE_MAGIC;
static const char SUFFIX[]      = ".resident";
static const char LOCK_SUFFIX[] = ".lock";

uint64_t ggml_hugepages_checksum(const void * data, size_t size) {
    const uint64_t prime = 0x9e3779b97f4a7c15;
    uint64_t lanes[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    const auto * bytes = (const uint8_t *) data;
    size_t at = 0;
    const auto mix = [&](uint64_t lane, uint64_t word) {
        lane = (lane ^ word)*prime;
        return lane ^ (lane >> 29);
    };
    for (; at + sizeof(lanes) <= size; at += sizeof(lanes)) {
        uint64_t words[8];
        memcpy(words, bytes + at, sizeof(words));
        for (int i = 0; i < 8; i++) {
            lanes[i] = mix(lanes[i], words[i]);
        }
    }
    uint64_t sum = size;
    for (const uint64_t lane : lanes) {
        sum = mix(sum, lane);
    }
    for (; at < size; at++) {
        sum = mix(sum, bytes[at]);
    }
    return sum == 0 ? 1 : sum;
}

uint64_t ggml_hugepages_header_checksum(const ggml_hugepages_store_header & h) {
    return ggml_hugepages_checksum((const char *) &h + offsetof(ggml_hugepages_store_header, version), offsetof(ggml_hugepages_store_header, checksum) - offsetof(ggml_hugepages_store_header, version));
}

static std::string base_name(const std::string & path) {
    return path.substr(path.rfind('/') + 1);
}

std::string ggml_hugepages_image_name(uint32_t kind, const std::string & source, uint64_t size, uint64_t page_size, const char * identity) {
    char buf[4096];
    const int n = snprintf(buf, sizeof(buf), "%" PRIu32 " %" PRIu32 " %" PRIu64 " %" PRIu64 " %s", GGML_HUGEPAGES_STORE_VERSION, kind, size, page_size, identity);
    const uint64_t hash = ggml_hugepages_checksum(buf, std::min<size_t>(n, sizeof(buf) - 1));
    std::string stem = base_name(source);
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
    snprintf(hex, sizeof(hex), "%016" PRIx64, hash);
    return stem + "." + ggml_hugepages_kind_name((ggml_hugepages_kind) kind) + "-" + hex + SUFFIX;
}

std::string ggml_hugepages_image_name_of_user(const std::string & image_name, unsigned uid) {
    return "uid" + std::to_string(uid) + "." + image_name;
}

// whether a file with this name may be the image
static bool is_name_of(const std::string & name, const std::string & image_name) {
    const size_t dot = name.find('.');
    return name == image_name || (name.compare(0, 3, "uid") == 0 && name.find_first_not_of("0123456789", 3) == dot && name.substr(dot + 1) == image_name);
}

std::string ggml_hugepages_image_name_end(const std::string & image_name) {
    const size_t dot = image_name.rfind('.', image_name.rfind('-'));
    return dot == std::string::npos ? image_name : image_name.substr(dot);
}

std::string ggml_hugepages_lock_name(const std::string & image_name) {
    return "." + image_name + LOCK_SUFFIX;
}

bool ggml_hugepages_resident_is_name(const char * name) noexcept try {
    const std::string text = name;
    const size_t n = text.size();
    const size_t n_suffix = sizeof(SUFFIX) - 1;
    if (n < n_suffix + 18 || n > 255 || text[0] == '.' || text.compare(n - n_suffix, n_suffix, SUFFIX) != 0 || text[n - n_suffix - 17] != '-') {
        return false;
    }
    const std::string hex = text.substr(n - n_suffix - 16, 16);
    return hex.find_first_not_of("0123456789abcdef") == std::string::npos && text.find('/') == std::string::npos;
} catch (...) {
    return false;
}

ggml_hugepages_geometry ggml_hugepages_geometry_of(uint64_t size, uint64_t page_size) {
    ggml_hugepages_geometry g = {};
    g.segment    = std::min<uint64_t>(page_size, GGML_HUGEPAGES_CHUNK_SIZE);
    g.n_segments = (size + g.segment - 1)/g.segment;
    const uint64_t manifest = ggml_hugepages_align_up(g.n_segments*sizeof(uint64_t), GGML_HUGEPAGES_HEADER_SIZE) + GGML_HUGEPAGES_HEADER_SIZE;
    g.length  = ggml_hugepages_align_up(ggml_hugepages_align_up(size, GGML_HUGEPAGES_GUARD_SIZE) + manifest, page_size);
    g.sums_at = g.length - manifest;
    return g;
}

bool ggml_hugepages_manifest_check(
        const void                   * data,
        size_t                         size,
        uint64_t                       length,
        uint64_t                       page_size,
        const char                   * name,
        ggml_hugepages_resident_info * info,
        ggml_hugepages_error         * error) {
    const auto refuse = [&](const char * reason) { return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "%s", reason); };
    ggml_hugepages_store_header h = {};
    if (size != GGML_HUGEPAGES_HEADER_SIZE || page_size == 0 || length == 0 || length % page_size != 0) {
        return refuse("no image has this file length");
    }
    memcpy(&h, data, sizeof(h));
    if (memcmp(h.magic, MAGIC, sizeof(MAGIC)) != 0) {
        return refuse("it does not end with a manifest");
    }
    if (h.checksum != ggml_hugepages_header_checksum(h)) {
        return refuse("its manifest is damaged");
    }
    if (h.version != GGML_HUGEPAGES_STORE_VERSION) {
        return refuse("its manifest has another version");
    }
    if (h.kind >= GGML_HUGEPAGES_KIND_COUNT || !memchr(h.source, 0, sizeof(h.source)) || !memchr(h.identity, 0, sizeof(h.identity))) {
        return refuse("its manifest has invalid fields");
    }
    // the limit prevents overflow in sums of sizes
    if (h.size == 0 || h.size > length || length > UINT64_MAX/4 || h.page_size != page_size) {
        return refuse("its size does not match its manifest");
    }
    const auto g = ggml_hugepages_geometry_of(h.size, page_size);
    if (g.length != length || g.segment != h.segment || g.n_segments != h.n_segments) {
        return refuse("its size does not match its manifest");
    }
    if (name && !is_name_of(name, ggml_hugepages_image_name(h.kind, h.source, h.size, page_size, h.identity))) {
        return refuse("its name does not match its manifest");
    }
    info->kind       = (ggml_hugepages_kind) h.kind;
    info->page_size  = page_size;
    info->size       = h.size;
    info->file_bytes = length;
    info->n_segments = h.n_segments;
    info->created    = h.created;
    info->filler     = h.filler;
    info->source_dev = h.source_dev;
    info->source_ino = h.source_ino;
    memcpy(info->source,   h.source,   sizeof(h.source));
    memcpy(info->identity, h.identity, sizeof(h.identity));
    return true;
}
