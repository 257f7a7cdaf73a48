// The manifest of a resident image, and the names of files in a store.
//
// input: flags (1 byte), length of the file (8), page size (8), a name up to a zero byte, the header

#include "made-manifest.h"

#include <memory>

static void check_name(const std::string & name) {
    if (!ggml_hugepages_resident_is_name(name.c_str())) {
        return;
    }
    const std::string suffix = ".resident";
    FUZZ_CHECK(name.size() <= 255 && name.size() > suffix.size() && name[0] != '.');
    FUZZ_CHECK(name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0);
    FUZZ_CHECK(name.find('/') == std::string::npos);
}

bool fuzz_one(fuzz_input input) {
    const auto flags     = input.take<uint8_t>();
    const auto length    = input.take<uint64_t>();
    const auto page_size = input.take<uint64_t>();
    auto       name      = input.text();
    const size_t n       = input.size < GGML_HUGEPAGES_HEADER_SIZE ? GGML_HUGEPAGES_HEADER_SIZE : input.size;
    std::vector<char> page(n);
    input.take(page.data(), n);
    ggml_hugepages_store_header h;
    memcpy(&h, page.data(), sizeof(h));
    if (flags & FUZZ_CHECKSUM) {
        h.checksum = ggml_hugepages_header_checksum(h);
        memcpy(page.data(), &h, sizeof(h));
    }
    check_name(name);
    if (flags & FUZZ_NAMED) {
        name = fuzz_name(h);
        check_name(name);
    }
    auto info = std::make_unique<ggml_hugepages_resident_info>();
    ggml_hugepages_error error = {};
    const bool ok = ggml_hugepages_manifest_check(page.data(), page.size(), length, page_size, name.empty() ? nullptr : name.c_str(), info.get(), &error);
    FUZZ_CHECK(memchr(error.message, 0, sizeof(error.message)) && memchr(error.hint, 0, sizeof(error.hint)));
    FUZZ_CHECK(ok || error.message[0] != '\0');
    if (ok) {
        // the readers of an image rely on these
        FUZZ_CHECK(info->size > 0 && info->size <= length && info->file_bytes == length && info->page_size == page_size);
        FUZZ_CHECK(info->n_segments > 0 && info->n_segments <= length/4096);
        FUZZ_CHECK(info->kind < GGML_HUGEPAGES_KIND_COUNT);
        FUZZ_CHECK(memchr(info->source, 0, sizeof(info->source)) && memchr(info->identity, 0, sizeof(info->identity)));
    }
    return ok;
}

std::vector<std::string> fuzz_seeds() {
    std::vector<std::string> seeds;
    for (const uint64_t page_size : { 64*1024, 2*1024*1024 }) {
        for (uint32_t version = 1; version <= FUZZ_VERSIONS; version++) {
            auto h = fuzz_header(page_size);
            h.version = version;
            const uint64_t length = fuzz_length(h);
            for (const uint8_t flags : { 0 + FUZZ_CHECKSUM, FUZZ_CHECKSUM | FUZZ_NAMED }) {
                std::string seed((const char *) &flags, sizeof(flags));
                seed.append((const char *) &length, sizeof(length));
                seed.append((const char *) &page_size, sizeof(page_size));
                seed.push_back('\0');
                seed.append((const char *) &h, sizeof(h));
                seeds.push_back(seed);
            }
        }
    }
    return seeds;
}
