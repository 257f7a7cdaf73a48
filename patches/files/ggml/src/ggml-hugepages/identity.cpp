// The identity of a model file: what must be equal before a process uses an image of the file.
//
//   size, modification time    a file that was changed in place has another time
//   header                     all names, types, shapes and metadata
//   content                    64 blocks of the file
//   tensors                    blocks that the caller chooses, so that no tensor and no expert is left out
//
// Archives and image builders may give two files the same times, and file systems the same inode. Copies have other inodes, and the same
// file has another device in each container. So neither is part of the identity. They only spare a restart the blocks of the tensors.

#ifdef __linux__

#include "identity.h"
#include "direct-io.h"
#include "file.h"
#include "image.h"
#include "manifest.h"
#include "ranges.h"
#include "store-directory.h"
#include "store-locks.h"
#include "threads.h"
#include "ggml-impl.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static const char TENSORS[] = ", tensors ";

// Hashes the blocks of a file that contain these places. The threads wait for the disk, so there are more of them than cores.
static bool hash_blocks(int fd, size_t file_size, const std::vector<uint64_t> & places, size_t block_size, uint64_t * hash) {
    ggml_hugepages_image image;
    image.fd   = fd;
    image.size = file_size;
    const ggml_hugepages_source source(&image);
    // a direct read may need more than a block, and the hash must not depend on the file system
    const size_t read_size = std::max(block_size, source.alignment);
    std::vector<uint64_t> hashes(places.size());
    std::atomic<size_t>   next{0};
    std::atomic<int>      error{0};
    ggml_hugepages_on_threads(std::min<size_t>(8, places.size()), [&] {
        const std::unique_ptr<char, void (*)(void *)> data((char *) aligned_alloc(read_size, read_size), free);
        if (!data) {
            error = ENOMEM;
        }
        for (size_t i; error == 0 && (i = next++) < places.size(); ) {
            const size_t block = ggml_hugepages_align_down(std::min<uint64_t>(places[i], file_size), block_size);
            const size_t at    = ggml_hugepages_align_down(block, read_size);
            const size_t n     = std::min(read_size, file_size - at);
            // past the page cache where possible, because a load leaves none of the file there
            const bool is_read = (source.direct_fd != -1 && pread(source.direct_fd, data.get(), read_size, (off_t) at) >= (ssize_t) n) ||
                ggml_hugepages_read_all(fd, data.get(), n, (off_t) at);
            if (!is_read) {
                error = errno == 0 ? EIO : errno;
            } else {
                hashes[i] = ggml_hugepages_checksum(data.get() + (block - at), std::min(block_size, file_size - block));
            }
        }
    });
    *hash = 1;
    for (const uint64_t one : hashes) {
        *hash = *hash*31 + one;
    }
    errno = error;
    return error == 0;
}

bool ggml_hugepages_sample(int fd, size_t file_size, uint64_t * hash) {
    static const size_t N = 64;
    std::vector<uint64_t> places;
    for (size_t i = 0; i < N; i++) {
        places.push_back(file_size/N*i);
    }
    return hash_blocks(fd, file_size, places, GGML_HUGEPAGES_GUARD_SIZE, hash);
}

// What an image of the same file says about its tensors. The file has the device, inode, size, time and blocks of the image's source, and
// nobody touched it since: a copy over it, or another file with its inode, would have a later time of change (ctime).
static std::string known_tensors(const ggml_hugepages_params & params, const struct stat & source, const std::string & identity) {
    std::string path, result;
    size_t      page_size;
    ggml_hugepages_error error = {};
    const int dir_fd = ggml_hugepages_store_open(params.store, params.page_size, path, &page_size, &error);
    const std::shared_ptr<void> dir_closed(nullptr, [dir_fd](void *) { if (dir_fd != -1) { close(dir_fd); } });
    if (dir_fd == -1) {
        return result;
    }
    const auto info = std::make_unique<ggml_hugepages_resident_info>();
    ggml_hugepages_each_image(dir_fd, [&](const char * name) {
        const int fd = ggml_hugepages_open_trusted(dir_fd, name, info.get());
        if (fd == -1) {
            return;
        }
        close(fd);
        if (info->source_dev == source.st_dev && info->source_ino == source.st_ino && source.st_ctim.tv_sec < info->created) {
            const std::string known = info->identity;
            const size_t      n     = identity.size() + strlen(TENSORS) + 16;
            if (known.size() >= n && known.compare(0, identity.size() + strlen(TENSORS), identity + TENSORS) == 0) {
                result = known.substr(n - 16, 16);
            }
        }
    });
    return result;
}

bool ggml_hugepages_file_identity(
        int                           fd,
        size_t                        header_size,
        const uint64_t *              places,
        size_t                        n_places,
        const ggml_hugepages_params * params,
        char *                        buf,
        size_t                        size) noexcept try {
    struct stat st = {};
    if (fstat(fd, &st) != 0) {
        return false;
    }
    std::vector<char> data(std::min<size_t>(1024*1024, header_size));
    uint64_t header = 1;
    for (size_t at = 0; at < header_size; at += data.size()) {
        const size_t n = std::min(data.size(), header_size - at);
        if (!ggml_hugepages_read_all(fd, data.data(), n, at)) {
            return false;
        }
        header = header*31 + ggml_hugepages_checksum(data.data(), n);
    }
    uint64_t content;
    if (!ggml_hugepages_sample(fd, st.st_size, &content)) {
        return false;
    }
    char text[256];
    snprintf(text, sizeof(text), "file %jd bytes, modified %jd.%09ld, header %016" PRIx64 ", content %016" PRIx64, (intmax_t) st.st_size,
        (intmax_t) st.st_mtim.tv_sec, (long) st.st_mtim.tv_nsec, header, content);
    std::string tensors = known_tensors(*params, st, text);
    if (tensors.empty()) {
        uint64_t hash;
        if (!hash_blocks(fd, st.st_size, { places, places + n_places }, GGML_HUGEPAGES_DIRECT_ALIGNMENT, &hash)) {
            return false;
        }
        char hex[32];
        snprintf(hex, sizeof(hex), "%016" PRIx64, hash);
        tensors = hex;
    }
    return snprintf(buf, size, "%s%s%s", text, TENSORS, tensors.c_str()) < (int) size;
} catch (...) {
    return false;
}

#endif // __linux__
