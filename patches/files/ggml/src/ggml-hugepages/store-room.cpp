// The room that the mount of a store has.

#ifdef __linux__

#include "store-file.h"
#include "kernel.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

uint64_t ggml_hugepages_store_free(const ggml_hugepages_store_file & file) {
    struct statfs fs = {};
    if (fstatfs(*file.dir, &fs) != 0 || fs.f_blocks == 0 || (int64_t) fs.f_blocks < 0) {
        return UINT64_MAX;
    }
    return (uint64_t) fs.f_bfree*fs.f_bsize;
}

uint64_t ggml_hugepages_store_set_aside(const ggml_hugepages_store_file & file) {
    static const std::string OPTION = ",min_size=";
    struct stat st = {};
    if (fstat(*file.dir, &st) != 0) {
        return 0;
    }
    const std::string device = std::to_string(major(st.st_dev)) + ":" + std::to_string(minor(st.st_dev));
    for (const auto & mount : ggml_hugepages_mounts("")) {
        const size_t at = mount.options.find(OPTION);
        if (mount.device != device || mount.fs_root != "/" || at == std::string::npos) {
            continue;
        }
        const uint64_t kept = strtoull(mount.options.c_str() + at + OPTION.size(), nullptr, 10);
        // statfs shows the use of the files only if the mount also has a limit
        uint64_t used = 0;
        std::error_code ec;
        std::filesystem::recursive_directory_iterator files(mount.path, ec);
        for (const std::filesystem::recursive_directory_iterator end; !ec && files != end; files.increment(ec)) {
            if (lstat(files->path().c_str(), &st) == 0) {
                used += S_ISREG(st.st_mode) ? (uint64_t) st.st_blocks*512 : 0;
            }
        }
        return ec ? 0 : (kept - std::min(kept, used))/file.page_size;
    }
    return 0;
}

#endif // __linux__
