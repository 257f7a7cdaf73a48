// Opening resident images: attach, or fill, or wait for another process that fills.

#ifdef __linux__

#include "syscalls.h"
#include "error.h"
#include "file.h"
#include "image.h"
#include "names.h"
#include "store-directory.h"
#include "store-file.h"
#include "store-locks.h"
#include "store-placement.h"
#include "threads.h"
#include "verify.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

// time without a message while a process waits for a lock, and interval of the messages after it
static const auto SILENCE  = std::chrono::seconds(2);
static const auto INTERVAL = std::chrono::seconds(10);

static const char OWN_STORE[] =
    "use a store that this user may write to (hugepages store mount --uid), or run hugepages store load as the owner of this one";

// The name of the image, which a process may have made from another name of the same file; `own` if this process could not attach to it.
static std::string existing_name(int dir_fd, const std::string & own) {
    const std::string end = ggml_hugepages_image_name_end(own);
    std::string found;
    ggml_hugepages_each_image(dir_fd, [&](const char * other) {
        const std::string name = other;
        if (found == own || name.size() < end.size() || name.compare(name.size() - end.size(), end.size(), end) != 0) {
            return;
        }
        const int fd = ggml_hugepages_open_image(dir_fd, other, O_RDONLY);
        struct stat st = {};
        size_t      page_size;
        ggml_hugepages_error error = {};
        if (name == own || (fd != -1 && ggml_hugepages_is_trusted(fd, false, &page_size, &st, &error) && (found.empty() || name < found))) {
            found = name;
        }
        if (fd != -1) {
            close(fd);
        }
    });
    return found.empty() ? own : found;
}

struct ggml_hugepages_store {
    std::shared_ptr<int>             dir;
    std::string                      path;
    size_t                           page_size;
    bool                             plan_only;
    ggml_hugepages_progress_callback callback;
    void                           * user_data;

    bool open_directory(const ggml_hugepages_params & params, ggml_hugepages_error * error) {
        plan_only = params.plan_only;
        dir  = std::shared_ptr<int>(new int(-1), [](int * fd) { if (*fd != -1) { close(*fd); } delete fd; });
        *dir = ggml_hugepages_store_open(params.store, params.page_size, path, &page_size, error);
        return *dir != -1;
    }

    // sets what the file takes from its store
    void prepare(ggml_hugepages_store_file & file, const ggml_hugepages_params & params) const {
        const auto g = ggml_hugepages_geometry_of(file.size, page_size);
        file.dir       = dir;
        file.page_size = page_size;
        file.segment   = g.segment;
        file.length    = g.length;
        file.sums_at   = g.sums_at;
        file.sums.assign(g.n_segments, 0);
        file.placement = file.placement.empty() ? ggml_hugepages_placement_line(params) : file.placement;
        file.identity  = ggml_hugepages_identity_with(file.content, file.placement);
        file.name      = own_name(file);
    }

    bool refuse(const ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        const std::string reason = error->message;
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "resident image '%s' is refused: %s", file.path.c_str(), reason.c_str());
        struct stat st = {}, store = {};
        const bool is_mine = fstatat(*dir, file.name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0 || fstat(*dir, &store) != 0 || geteuid() == 0 ||
            st.st_uid == geteuid() || store.st_uid == geteuid();
        if (is_mine) {
            ggml_hugepages_hint(error, "hugepages store drop %s, or start without --hugepage-store", file.name.c_str());
        } else {
            ggml_hugepages_hint(error, "run hugepages store drop %s as user %u or root, use another store, or start without --hugepage-store", file.name.c_str(),
                (unsigned) st.st_uid);
        }
        return false;
    }

    // In a directory where each user has their own images, another user may have the same model.
    std::string own_name(const ggml_hugepages_store_file & file) const {
        const auto name = ggml_hugepages_image_name(file.kind, file.source, file.size, page_size, file.identity.c_str());
        struct stat store = {}, st = {};
        const bool is_taken = fstat(*dir, &store) == 0 && (store.st_mode & S_ISVTX) && fstatat(*dir, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            st.st_uid != geteuid() && (st.st_uid != 0 || file.is_context());
        return is_taken ? ggml_hugepages_image_name_of_user(name, geteuid()) : name;
    }

    // a plan asks the kernel what the load would do, but changes nothing
    bool may_fill(const ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        off_t holder = 0;
        const bool is_filled = file.fd != -1 && (file.is_complete() || ggml_hugepages_is_locked(file.fd, F_RDLCK, GGML_HUGEPAGES_LOCK_FILLING, &holder));
        if (file.fd != -1 && !is_filled && faccessat(*dir, file.name.c_str(), W_OK, AT_EACCESS) != 0) {
            return fail_read_only(file, error);
        }
        if (file.fd == -1 && faccessat(*dir, ".", W_OK | X_OK, AT_EACCESS) != 0) {
            return fail_lock(file, errno, error);
        }
        return true;
    }

    // leaves fd at -1, with errno, if the image cannot be opened
    void try_open(ggml_hugepages_store_file & file, const std::string & name) const {
        file.name        = name;
        file.path        = path + "/" + file.name;
        file.fd          = ggml_hugepages_open_image(*dir, file.name.c_str(), plan_only ? O_RDONLY : O_RDWR);
        file.is_writable = !plan_only;
        if (file.fd == -1 && (errno == EACCES || errno == EROFS)) {
            file.fd          = ggml_hugepages_open_image(*dir, file.name.c_str(), O_RDONLY);
            file.is_writable = false;
        }
    }

    // Whether this name is a complete image of the same content with another placement. Sets the identity to that of the image.
    bool is_elsewhere(ggml_hugepages_store_file & file, const char * name) const {
        auto info = std::make_unique<ggml_hugepages_resident_info>();
        const int fd = ggml_hugepages_open_trusted(*dir, name, info.get());
        if (fd == -1) {
            return false;
        }
        const std::shared_ptr<void> closed(nullptr, [fd](void *) { close(fd); });
        const std::string placement = ggml_hugepages_placement_of(info->identity);
        if (info->kind != file.kind || info->size != file.size || ggml_hugepages_identity_with(file.content, placement) != info->identity) {
            return false;
        }
        const bool is_complete = ggml_hugepages_read_all(fd, file.sums.data(), file.sums.size()*sizeof(uint64_t), file.sums_at) && file.is_complete();
        std::fill(file.sums.begin(), file.sums.end(), 0);
        if (is_complete) {
            file.identity = info->identity;
        }
        return is_complete;
    }

    // Leaves fd at -1 if the image does not exist. An image with the same content and another placement is as good as none that this
    // process would have to fill first.
    bool open_file(ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        file.identity = ggml_hugepages_identity_with(file.content, file.placement);
        try_open(file, existing_name(*dir, own_name(file)));
        if (file.fd == -1 && errno == ENOENT) {
            std::string elsewhere;
            ggml_hugepages_each_image(*dir, [&](const char * name) {
                if (elsewhere.empty() && is_elsewhere(file, name)) {
                    elsewhere = name;
                }
            });
            errno = ENOENT;
            if (!elsewhere.empty()) {
                try_open(file, elsewhere);
            }
        }
        if (file.fd == -1 && errno == ENOENT) {
            file.identity = ggml_hugepages_identity_with(file.content, file.placement);
            file.name     = own_name(file); // another process may have removed the image that had the name
            file.path     = path + "/" + file.name;
            return true;
        }
        if (file.fd == -1) {
            const int err = errno;
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot open resident image '%s': %s", file.path.c_str(),
                err == ELOOP ? "it is a symbolic link" : strerror(err));
            if (err != ELOOP) {
                ggml_hugepages_hint_errno(error, err, "openat", OWN_STORE);
            }
            return false;
        }
        struct stat st = {};
        size_t      found;
        if (!ggml_hugepages_is_trusted(file.fd, false, &found, &st, error)) {
            refuse(file, error);
            forget(file);
            return false;
        }
        return true;
    }

    static void forget(ggml_hugepages_store_file & file) {
        if (file.fd != -1) {
            close(file.fd);
            file.fd = -1;
        }
    }

    // reads the checksums and verifies that complete segments have pages
    bool look(ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        std::fill(file.sums.begin(), file.sums.end(), 0);
        struct stat st = {};
        char data[GGML_HUGEPAGES_HEADER_SIZE] = {};
        if (fstat(file.fd, &st) != 0 || (size_t) st.st_size < sizeof(data) || !ggml_hugepages_read_all(file.fd, data, sizeof(data), st.st_size - sizeof(data))) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "its manifest cannot be read");
            return refuse(file, error);
        }
        auto info = std::make_unique<ggml_hugepages_resident_info>();
        if (!ggml_hugepages_manifest_check(data, sizeof(data), st.st_size, page_size, file.name.c_str(), info.get(), error)) {
            return refuse(file, error);
        }
        if (info->size != file.size || info->kind != file.kind || file.identity != info->identity) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "its manifest describes another image");
            return refuse(file, error);
        }
        if (!ggml_hugepages_read_all(file.fd, file.sums.data(), file.sums.size()*sizeof(uint64_t), file.sums_at)) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it cannot be read: %s", strerror(errno));
            return refuse(file, error);
        }
        // a hole reads as zeros, which the server would use as weights
        uint64_t known = 0;
        for (size_t at = 0; at < file.length; at += page_size) {
            known += file.has_page(at);
        }
        if (fstat(file.fd, &st) != 0 || (uint64_t) st.st_blocks*512 < known*page_size) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "pages of its complete segments are missing");
            return refuse(file, error);
        }
        return true;
    }

    bool is_unlinked(const ggml_hugepages_store_file & file) const {
        struct stat st = {};
        return fstat(file.fd, &st) != 0 || st.st_nlink == 0;
    }

    // This process holds the fill lock, so no other process creates or fills the image.
    bool open_locked(ggml_hugepages_store_file & file, bool * again, ggml_hugepages_error * error) const {
        if (file.fd == -1) {
            if (!open_file(file, error)) {
                return false;
            }
            if (file.fd == -1) {
                return true;
            }
            if (!ggml_hugepages_lock(file.fd, F_RDLCK, GGML_HUGEPAGES_LOCK_ATTACHED) || is_unlinked(file)) {
                *again = true;
                return true;
            }
        }
        // another process may have completed more segments
        if (!look(file, error)) {
            return false;
        }
        if (file.is_complete()) {
            file.finish();
            return true;
        }
        if (!file.is_writable) {
            return fail_read_only(file, error);
        }
        // a buffer whose filler died during the last step: clear its checksums before its pages are returned
        const bool has_sums = std::any_of(file.sums.begin(), file.sums.end(), [](uint64_t sum) { return sum != 0; });
        if (file.is_buffer && has_sums && !file.begin(error)) {
            return false;
        }
        // pages of a dead filler would count as missing, and would not be free
        file.return_left_over();
        return true;
    }

    bool fail_read_only(const ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "resident image '%s' is not complete, and this user may not write to it", file.path.c_str());
        ggml_hugepages_hint(error, "run hugepages store load as the owner of the image");
        return false;
    }

    bool fail_lock(const ggml_hugepages_store_file & file, int err, ggml_hugepages_error * error) const {
        const std::string name = ggml_hugepages_lock_name(file.name);
        struct stat st = {};
        if (fstatat(*dir, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_uid != geteuid()) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot lock resident image '%s': user %u owns its lock file", file.path.c_str(),
                (unsigned) st.st_uid);
            ggml_hugepages_hint(error, "use another store, or remove '%s/%s' as user %u or root", path.c_str(), name.c_str(), (unsigned) st.st_uid);
        } else {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot lock resident image '%s': %s", file.path.c_str(), strerror(err));
            ggml_hugepages_hint_errno(error, err, "fcntl", OWN_STORE);
        }
        return false;
    }

    // Returns when the image is attached, or this process holds its fill lock, or the image does not exist and plan_only is set.
    bool open(ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        const auto begin = std::chrono::steady_clock::now();
        auto told = begin + SILENCE - INTERVAL;
        for (;; std::this_thread::sleep_for(std::chrono::milliseconds(20))) {
            if (file.fd == -1 && !open_file(file, error)) {
                return false;
            }
            if (plan_only) {
                return (file.fd == -1 || look(file, error)) && may_fill(file, error);
            }
            // another process is removing the image, or has removed it
            if (file.fd != -1 && !ggml_hugepages_lock(file.fd, F_RDLCK, GGML_HUGEPAGES_LOCK_ATTACHED)) {
                if (!ggml_hugepages_is_taken(errno)) {
                    return fail_lock(file, errno, error);
                }
                forget(file);
                continue;
            }
            if (file.fd != -1 && is_unlinked(file)) {
                forget(file);
                continue;
            }
            if (file.fd != -1 && !look(file, error)) {
                return false;
            }
            if (file.fd != -1 && file.is_complete()) {
                ggml_hugepages_touch(file.fd); // the time of the last use, if this user may set it
                return true;
            }
            off_t holder = 0;
            if (file.fd == -1 || file.is_writable) {
                const auto answer = ggml_hugepages_take_fill_lock(*dir, file.name, file.lock, &holder);
                const int  err    = errno;
                if (answer == GGML_HUGEPAGES_LOCK_MINE) {
                    bool again = false;
                    if (!open_locked(file, &again, error)) {
                        return false;
                    }
                    if (!again) {
                        return true;
                    }
                    file.lock.reset();
                    forget(file);
                    continue;
                }
                if (answer == GGML_HUGEPAGES_LOCK_IMPOSSIBLE && (file.fd != -1 || std::chrono::steady_clock::now() - begin > SILENCE)) {
                    return fail_lock(file, err, error);
                }
            } else if (!ggml_hugepages_is_locked(file.fd, F_RDLCK, GGML_HUGEPAGES_LOCK_FILLING, &holder)) {
                return fail_read_only(file, error);
            } else {
                holder--;
            }
            tell(file, holder, told);
            const uint64_t done = std::min<uint64_t>(file.size, done_bytes(file));
            if (callback && !callback(done, file.size, user_data)) {
                return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_ABORTED, "loading was cancelled");
            }
        }
    }

    // Opens a context and takes its lock, or fails: only one process uses it.
    bool open_context(ggml_hugepages_store_file & file, ggml_hugepages_error * error) const {
        for (int tries = 0; tries < 10; tries++) {
            struct stat st = {};
            if (!open_file(file, error)) {
                return false;
            }
            if (file.fd != -1 && (fstat(file.fd, &st) != 0 || st.st_uid != geteuid() || (st.st_mode & 077) != 0)) {
                ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "other users may read it");
                return refuse(file, error);
            }
            off_t holder = 0;
            if (plan_only) {
                const std::string lock_name = ggml_hugepages_lock_name(file.name);
                const int fd = ggml_hugepages_open_image(*dir, lock_name.c_str(), O_RDONLY);
                const bool is_used = fd != -1 && ggml_hugepages_is_locked(fd, F_WRLCK, 0, &holder);
                if (fd != -1) {
                    close(fd);
                }
                return is_used ? fail_used(file, holder - 1, error) : (file.fd == -1 || look(file, error)) && may_fill(file, error);
            }
            const auto answer = ggml_hugepages_take_fill_lock(*dir, file.name, file.lock, &holder);
            if (answer != GGML_HUGEPAGES_LOCK_MINE) {
                const int err = errno;
                return answer == GGML_HUGEPAGES_LOCK_OTHERS ? fail_used(file, holder, error) : fail_lock(file, err, error);
            }
            // another process may have removed it, or made it, before this one got the lock
            if (file.fd != -1 && (!ggml_hugepages_lock(file.fd, F_RDLCK, GGML_HUGEPAGES_LOCK_ATTACHED) || is_unlinked(file))) {
                file.lock.reset();
                forget(file);
                continue;
            }
            if (file.fd == -1 && faccessat(*dir, file.name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
                file.lock.reset();
                continue;
            }
            if (file.fd == -1) {
                return true;
            }
            if (!look(file, error)) {
                return false;
            }
            if (!file.is_complete()) {
                file.return_left_over();
            }
            return true;
        }
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "cannot open '%s': other processes remove it again and again", file.path.c_str());
    }

    static bool fail_used(const ggml_hugepages_store_file & file, off_t holder, ggml_hugepages_error * error) {
        const std::string who = holder > 0 ? "process " + std::to_string(holder) : "another process";
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "%s uses '%s'", who.c_str(), file.path.c_str());
    }

    static uint64_t done_bytes(const ggml_hugepages_store_file & file) {
        return (file.sums.size() - std::count(file.sums.begin(), file.sums.end(), 0))*file.segment;
    }

    // logs the holder of the lock at each interval
    static void tell(const ggml_hugepages_store_file & file, off_t holder, std::chrono::steady_clock::time_point & told) {
        const auto now = std::chrono::steady_clock::now();
        if (now - told < INTERVAL) {
            return;
        }
        told = now;
        const std::string who = holder > 0 ? "process " + std::to_string(holder) : "another process";
        GGML_LOG_WARN("%s: waiting for %s, which fills '%s': %.0f %%\n", __func__, who.c_str(), file.path.c_str(),
            100.0*done_bytes(file)/(file.sums.size()*file.segment));
    }
};

bool ggml_hugepages_residents_open(
        ggml_hugepages_resident_t *      residents,
        size_t                           n,
        const ggml_hugepages_params *    params,
        ggml_hugepages_progress_callback callback,
        void *                           user_data,
        ggml_hugepages_error *           error) {
    ggml_hugepages_forget_filters();
    ggml_hugepages_store store = {};
    store.callback  = callback;
    store.user_data = user_data;
    if (!store.open_directory(*params, error)) {
        return false;
    }
    std::vector<ggml_hugepages_store_file *> files;
    for (size_t i = 0; i < n; i++) {
        auto & file = *residents[i]->file;
        store.prepare(file, *params);
        // a buffer smaller than a page uses ordinary memory
        if (!file.is_buffer || file.size >= store.page_size) {
            files.push_back(&file);
        } else if (params->load_only && file.size >= ggml_hugepages_page_size("")) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "the store '%s' has pages of %s, and a buffer of %.2f MiB needs less than one of them",
                store.path.c_str(), ggml_hugepages_size_name(store.page_size).c_str(), file.size/1024.0/1024.0);
            ggml_hugepages_hint(error, "use a store with smaller pages");
            return false;
        }
    }
    // all processes open them in the same order, which prevents a deadlock
    const auto end_of = [](const ggml_hugepages_store_file * file) { return ggml_hugepages_image_name_end(file->name); };
    std::sort(files.begin(), files.end(), [&](const auto * a, const auto * b) { return end_of(a) < end_of(b); });
    for (auto * file : files) {
        if (!store.open(*file, error)) {
            return false;
        }
        const std::string placement = ggml_hugepages_placement_of(file->identity);
        if (!file->placement.empty() && placement != file->placement) {
            GGML_LOG_WARN("%s: '%s' has %s, but the threads of this process read with %s; hugepages store drop %s places it again at the next start\n", __func__,
                file->path.c_str(), placement.empty() ? "its pages on any node" : placement.c_str(), file->placement.c_str(), file->name.c_str());
        }
        if (params->verify && !params->plan_only && file->fd != -1 && !ggml_hugepages_verify(file->fd, ggml_hugepages_geometry_of(file->size, store.page_size),
                file->size, ggml_hugepages_n_threads(*params), callback, user_data, error)) {
            return error->status == GGML_HUGEPAGES_STATUS_ABORTED ? false : store.refuse(*file, error);
        }
    }
    return true;
}

bool ggml_hugepages_context_open(ggml_hugepages_resident_t context, const ggml_hugepages_params * params, ggml_hugepages_error * error) {
    ggml_hugepages_forget_filters();
    ggml_hugepages_store store = {};
    if (!store.open_directory(*params, error)) {
        return false;
    }
    auto & file = *context->file;
    store.prepare(file, *params);
    if (file.size < store.page_size) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "the store '%s' has pages of %s, and a context of %.2f MiB needs less than one of them",
            store.path.c_str(), ggml_hugepages_size_name(store.page_size).c_str(), file.size/1024.0/1024.0);
    }
    return store.open_context(file, error);
}

ggml_hugepages_resident_t ggml_hugepages_resident_init(ggml_hugepages_kind kind, int fd, const char * name, const char * identity, size_t size) {
    auto * result = new ggml_hugepages_resident{ std::make_shared<ggml_hugepages_store_file>() };
    auto & file   = *result->file;
    file.kind     = kind;
    file.source   = ggml_hugepages_path_of(fd, name);
    struct stat st = {};
    if (fstat(fd, &st) == 0) {
        file.source_dev = st.st_dev;
        file.source_ino = st.st_ino;
    }
    file.size     = size;
    file.content  = std::string(identity) + "\nggml " + ggml_version() + " " + ggml_commit();
    file.identity = ggml_hugepages_identity_with(file.content, "");
    file.source.resize(std::min(file.source.size(), sizeof(ggml_hugepages_store_header::source) - 1));
    return result;
}

void ggml_hugepages_resident_free(ggml_hugepages_resident_t resident) {
    delete resident;
}

void ggml_hugepages_image_reside(ggml_hugepages_image_t image, ggml_hugepages_resident_t resident) {
    image->resident = resident ? resident->file : nullptr;
    if (!resident) {
        return;
    }
    resident->file->is_buffer = false;
    for (const auto & want : image->wants) {
        if (want.first < want.last) {
            resident->file->wants.emplace_back(want.first, want.last);
        }
    }
}

bool ggml_hugepages_resident_is_complete(ggml_hugepages_resident_t resident) {
    return resident->file->fd != -1 && resident->file->is_complete();
}

#endif // __linux__
