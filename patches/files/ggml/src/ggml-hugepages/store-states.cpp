// The identity of a state:
//
//   the first line of the context's: its model file
//   state ID of NAME: the end of the context's name, which has the hash of its whole identity

#ifdef __linux__

#include "store-states.h"
#include "manifest.h"
#include "store-directory.h"
#include "store-locks.h"
#include "verify.h"

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <memory>

#include <sys/stat.h>
#include <unistd.h>

static const char LINE[] = "\nstate ";

std::string ggml_hugepages_state_line(uint64_t id, const std::string & context_name) {
    char line[64];
    snprintf(line, sizeof(line), "%s%016" PRIx64 " of ", LINE, id);
    return line + ggml_hugepages_image_name_end(context_name);
}

bool ggml_hugepages_is_state(const char * identity) {
    return strstr(identity, LINE) != nullptr;
}

void ggml_hugepages_each_state(int dir_fd, const std::string & context_name, uid_t user, const std::function<void(const ggml_hugepages_state_file & state)> & callback) {
    const std::string context = ggml_hugepages_image_name_end(context_name);
    auto info = std::make_unique<ggml_hugepages_resident_info>();
    ggml_hugepages_each_image(dir_fd, [&](const char * name) {
        const int fd = ggml_hugepages_open_trusted(dir_fd, name, info.get());
        if (fd == -1) {
            return;
        }
        const std::shared_ptr<void> closed(nullptr, [fd](void *) { close(fd); });
        struct stat st = {};
        uint64_t    id = 0;
        char        of[64] = "";
        const char * line = strstr(info->identity, LINE);
        const bool is_mine = fstat(fd, &st) == 0 && st.st_uid == user && (st.st_mode & 077) == 0;
        if (is_mine && line && sscanf(line + strlen(LINE), "%" SCNx64 " of %63s", &id, of) == 2 && context == of) {
            const auto g = ggml_hugepages_geometry_of(info->size, info->page_size);
            bool has_all = true;
            const bool is_read = ggml_hugepages_each_checksum(fd, g, [&](uint64_t, uint64_t sum) { return has_all = sum != 0; });
            callback({ name, id, info->size, is_read && has_all, fd });
        }
    });
}

#endif // __linux__
