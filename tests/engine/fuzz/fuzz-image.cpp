// A whole file in a store, for ggml_hugepages_resident_read and ggml_hugepages_resident_verify.
//
// hugetlbfs has no write(2) and few pages. So the files are in ordinary memory, and a wrapper of fstatfs reports hugetlbfs: link with
// -Wl,--wrap=fstatfs.
//
// input: flags (1 byte), length of the file (8), the header, then the checksums, which precede the header in the file

#include "made-manifest.h"

#include <algorithm>
#include <memory>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

static long g_page_size;

extern "C" int __real_fstatfs(int fd, struct statfs * fs);
extern "C" int __wrap_fstatfs(int fd, struct statfs * fs) {
    const int ret = __real_fstatfs(fd, fs);
    fs->f_type  = 0x958458f6; // hugetlbfs of linux/magic.h
    fs->f_bsize = g_page_size;
    return ret;
}

static void write_at(int fd, const void * data, size_t size, uint64_t at) {
    FUZZ_CHECK(pwrite(fd, data, size, (off_t) at) == (ssize_t) size);
}

static bool go_on(uint64_t, uint64_t, void *) { return true; }

bool fuzz_one(fuzz_input input) {
    static const int dir = open(fuzz_dir().c_str(), O_RDONLY | O_DIRECTORY);
    FUZZ_CHECK(dir != -1);
    const auto flags = input.take<uint8_t>();
    g_page_size = flags & FUZZ_LARGE ? 2*1024*1024 : 64*1024;
    const uint64_t length = input.take<uint64_t>() & (uint64_t) INT64_MAX;
    ggml_hugepages_store_header h;
    input.take(&h, sizeof(h));
    if (flags & FUZZ_CHECKSUM) {
        h.checksum = ggml_hugepages_header_checksum(h);
    }
    const std::string name = flags & FUZZ_NAMED ? fuzz_name(h) : "a.weights-0123456789abcdef.resident";

    const int fd = openat(dir, name.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    FUZZ_CHECK(fd != -1);
    bool ok = false;
    if (ftruncate(fd, (off_t) length) == 0) {
        const uint64_t end = ggml_hugepages_align_down(length, g_page_size);
        if (flags & FUZZ_FULL && end == length && length > 0) {
            FUZZ_CHECK(fallocate(fd, 0, (off_t) (length - g_page_size), g_page_size) == 0);
        }
        if (length >= GGML_HUGEPAGES_HEADER_SIZE) {
            const uint64_t at = length - GGML_HUGEPAGES_HEADER_SIZE;
            write_at(fd, &h, sizeof(h), at);
            const size_t n = std::min<uint64_t>({ input.size, at, GGML_HUGEPAGES_HEADER_SIZE });
            if (n > 0) {
                write_at(fd, input.data, n, at - n);
            }
        }
        auto info = std::make_unique<ggml_hugepages_resident_info>();
        ggml_hugepages_error error = {};
        ok = ggml_hugepages_resident_read(dir, name.c_str(), info.get(), &error);
        FUZZ_CHECK(memchr(error.message, 0, sizeof(error.message)) && memchr(error.hint, 0, sizeof(error.hint)));
        FUZZ_CHECK(ok || error.message[0] != '\0');
        if (ok) {
            FUZZ_CHECK(info->file_bytes == length && info->size <= length && info->n_complete <= info->n_segments);
            FUZZ_CHECK(memchr(info->source, 0, sizeof(info->source)) && memchr(info->identity, 0, sizeof(info->identity)));
            if (length <= 64*1024*1024) {
                error = {};
                const bool is_whole = ggml_hugepages_resident_verify(dir, name.c_str(), go_on, nullptr, &error);
                FUZZ_CHECK(is_whole || error.message[0] != '\0');
            }
        }
    }
    close(fd);
    unlinkat(dir, name.c_str(), 0);
    return ok;
}

std::vector<std::string> fuzz_seeds() {
    std::vector<std::string> seeds;
    for (const uint8_t large : { 0, 0 + FUZZ_LARGE }) {
        for (uint32_t version = 1; version <= FUZZ_VERSIONS; version++) {
            for (const uint64_t size : { FUZZ_SIZE, (uint64_t) 1 << 60 }) {
                auto h = fuzz_header(large ? 2*1024*1024 : 64*1024);
                h.version    = version;
                h.size       = size;
                h.n_segments = (size + h.segment - 1)/h.segment;
                const uint64_t length = fuzz_length(h);
                const uint8_t  flags  = large | FUZZ_CHECKSUM | FUZZ_NAMED | FUZZ_FULL;
                std::string seed((const char *) &flags, sizeof(flags));
                seed.append((const char *) &length, sizeof(length));
                seed.append((const char *) &h, sizeof(h));
                seed.append(64, '\1');
                seeds.push_back(seed);
            }
        }
    }
    return seeds;
}
