// The reaction to a shortage, and its cause. The planner, the overlay, the readers and the buffers use this file.
//
//   require   the load ends with the need and the cause
//   prefer    ordinary memory replaces the blocks, and the load continues

#include "ggml-hugepages-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef __linux__
#include <sys/resource.h>
#include <unistd.h>
#endif

bool ggml_hugepages_accepts_less(const ggml_hugepages_params * params) noexcept {
    return params->policy == GGML_HUGEPAGES_POLICY_PREFER && !params->plan_only && !params->load_only;
}

static std::atomic<ggml_hugepages_status> g_failure{GGML_HUGEPAGES_STATUS_OK};

void ggml_hugepages_set_failure(ggml_hugepages_status status) noexcept {
    g_failure = status;
}

ggml_hugepages_status ggml_hugepages_get_failure(void) noexcept {
    return g_failure;
}

//
// messages
//

// Cuts at a word border.
static void copy_text(char * to, size_t size, const std::string & text) {
    static const char MORE[] = " ...";
    if (text.size() < size) {
        memcpy(to, text.c_str(), text.size() + 1);
        return;
    }
    size_t end = text.rfind(' ', size - sizeof(MORE));
    end = end == std::string::npos ? size - sizeof(MORE) : end;
    memcpy(to, text.data(), end);
    memcpy(to + end, MORE, sizeof(MORE));
}

static std::string to_text(const char * fmt, va_list args) {
    va_list again;
    va_copy(again, args);
    const int n = vsnprintf(nullptr, 0, fmt, again);
    va_end(again);
    std::string text(n > 0 ? n : 0, '\0');
    vsnprintf(&text[0], text.size() + 1, fmt, args);
    return text;
}

bool ggml_hugepages_fail(ggml_hugepages_error * error, ggml_hugepages_status status, const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    error->status = status;
    copy_text(error->message, sizeof(error->message), to_text(fmt, args));
    va_end(args);
    error->hint[0] = '\0';
    return false;
}

void ggml_hugepages_hint(ggml_hugepages_error * error, const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    copy_text(error->hint, sizeof(error->hint), to_text(fmt, args));
    va_end(args);
}

static const char PREFER[] = "use --hugepage-policy prefer to load with fewer huge pages";

// malloc takes pages from the same pool, also after the engine counted them
static bool is_malloc_on_huge_pages() {
    const char * tunables = getenv("GLIBC_TUNABLES");
    return tunables && strstr(tunables, "glibc.malloc.hugetlb=2");
}

static std::string to_str(uint64_t need, const ggml_hugepages_supply & supply) {
    const auto & pool = supply.pool;
    char buf[512];
    snprintf(buf, sizeof(buf), "%" PRIu64 " huge pages of %s (%.2f MiB), only %" PRIu64 " are usable: "
        "free %" PRIu64 ", reserved %" PRIu64 ", total %" PRIu64 ", surplus %" PRIu64 ", overcommit %" PRIu64,
        need, ggml_hugepages_size_name(pool.page_size).c_str(), need*pool.page_size/1024.0/1024.0, supply.usable(),
        pool.free, pool.reserved, pool.total, pool.surplus, pool.overcommit);
    std::string text = buf;
    if (supply.is_bound || supply.nodes.size() > 1) {
        for (const auto & node : supply.nodes) {
            snprintf(buf, sizeof(buf), ", node %d free %" PRIu64 " of %" PRIu64, node.id, node.free, node.total);
            text += buf;
        }
    }
    if (const auto * limit = supply.tightest()) {
        text += ", " + limit->file + " of cgroup " + limit->path + " " + std::to_string(limit->limit) + " (used " + std::to_string(limit->used) + ")";
    }
    return text;
}

// the commands; each new total keeps the pages of others
static std::string to_hint(const char * root, uint64_t need, const ggml_hugepages_supply & supply) {
    const auto   & pool   = supply.pool;
    const uint64_t usable = supply.usable_of_pool();
    std::string text;
    if (need > usable) {
        if (supply.is_bound && !supply.nodes.empty()) {
            const auto & node = supply.nodes.front();
            text = "echo " + std::to_string(node.total + need - usable) + " > /sys/devices/system/node/node" + std::to_string(node.id) +
                "/hugepages/hugepages-" + std::to_string(pool.page_size/1024) + "kB/nr_hugepages";
        } else {
            text = ggml_hugepages_pool_command(root, pool.page_size, pool.total + need - usable);
        }
    }
    // a larger pool does not help against a limit
    for (const auto & limit : supply.limits) {
        if (limit.used + need*pool.page_size > limit.limit) {
            text += (text.empty() ? "set " : ", set ") + limit.file + " of cgroup " + limit.path + " to " + std::to_string(limit.used + need*pool.page_size);
        }
    }
    return text;
}

bool ggml_hugepages_fail_short(const char * root, const std::vector<std::pair<uint64_t, ggml_hugepages_supply>> & shortages, ggml_hugepages_error * error) {
    std::string message, hint;
    bool limit_only = true;
    for (const auto & [need, supply] : shortages) {
        message += (message.empty() ? "" : "; ") + to_str(need, supply);
        const std::string h = to_hint(root, need, supply);
        hint += (hint.empty() || h.empty() ? "" : ", ") + h;
        limit_only = limit_only && need <= supply.usable_of_pool();
    }
    message += limit_only ? " (the pool is large enough, but the limit of the cgroup is too low)" : "";
    if (root[0] == '\0' && is_malloc_on_huge_pages()) {
        message += "; malloc of this process also takes huge pages (glibc.malloc.hugetlb=2 in GLIBC_TUNABLES)";
        hint    += (hint.empty() ? "" : ", and ") + std::string("remove glibc.malloc.hugetlb=2 from GLIBC_TUNABLES");
    }
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "the model needs %s", message.c_str());
    ggml_hugepages_hint(error, "%s%s%s", hint.c_str(), hint.empty() ? "" : ", or ", PREFER);
    return false;
}

#ifdef __linux__

static bool is_forbidden(int err) {
    return err == EPERM || err == EACCES || err == ENOSYS;
}

// bytes left below RLIMIT_AS, UINT64_MAX without a limit
static uint64_t address_space_left() {
    struct rlimit limit = {};
    unsigned long pages = 0;
    FILE * file = fopen("/proc/self/statm", "r");
    const bool ok = file && fscanf(file, "%lu", &pages) == 1;
    if (file) {
        fclose(file);
    }
    if (!ok || getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
        return UINT64_MAX;
    }
    const uint64_t used = (uint64_t) pages*sysconf(_SC_PAGESIZE);
    return limit.rlim_cur - std::min<uint64_t>(limit.rlim_cur, used);
}

void ggml_hugepages_hint_address_space(ggml_hugepages_error * error, uint64_t size) {
    struct rlimit limit = {};
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        ggml_hugepages_hint(error, "run ulimit -v unlimited: the limit for address space is %ju KiB, and this mapping alone needs %" PRIu64 " KiB", (uintmax_t) limit.rlim_cur/1024, size/1024);
    }
}

bool ggml_hugepages_fail_refused(
        const std::map<size_t, uint64_t> & need,
        const ggml_hugepages_image       & image,
        const ggml_hugepages_refusal     & refusal,
        ggml_hugepages_error             * error) {
    const auto page = ggml_hugepages_size_name(refusal.page_size);
    const auto it   = need.find(refusal.page_size);
    const uint64_t pages = it == need.end() ? 0 : it->second;
    if (is_forbidden(refusal.err)) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_FORBIDDEN, "huge pages need the system call %s, but this process may not use it (%s)",
            refusal.call, refusal.err == ENOSYS ? "ENOSYS" : refusal.err == EACCES ? "EACCES" : "EPERM");
        ggml_hugepages_hint(error, "allow %s in the system call filter of the service or container (systemd: SystemCallFilter=, containers: seccomp profile), or %s",
            refusal.call, PREFER);
        return false;
    }
    const uint64_t room = address_space_left();
    if (strcmp(refusal.call, "mmap") == 0 && refusal.err == ENOMEM && room < pages*refusal.page_size) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "no address space for %" PRIu64 " KiB of huge pages: only %" PRIu64 " KiB are left",
            pages*refusal.page_size/1024, room/1024);
        ggml_hugepages_hint_address_space(error, pages*refusal.page_size);
        return false;
    }
    const auto nodes  = ggml_hugepages_placement_nodes("", image.params.placement);
    const auto supply = ggml_hugepages_supply_read("", refusal.page_size, nodes);
    if (refusal.is_in_store && image.resident) {
        const uint64_t room = ggml_hugepages_store_free(*image.resident);
        if (room < refusal.page_size) {
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "the mount of the store is full: no huge page for '%s' at offset %zu",
                image.resident->path.c_str(), refusal.at);
            ggml_hugepages_hint(error, "run hugepages store gc, raise the limit of the mount (hugepages store unmount, then mount --limit), or %s", PREFER);
            return false;
        }
    }
    if (supply.pool.page_size != 0 && pages > supply.usable()) {
        return ggml_hugepages_fail_short("", { { pages, supply } }, error);
    }
    // madvise(2): MADV_POPULATE_WRITE reports EFAULT if a touch would end in SIGBUS. A reserved page is only refused because of a limit or
    // a node without free pages.
    const char * cause = refusal.err == EFAULT ? "refused at the page fault" : strerror(refusal.err);
    const bool is_hidden = ggml_hugepages_limits_may_hide("");
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT,
        "the model needs %" PRIu64 " huge pages of %s, %" PRIu64 " seemed usable, but the kernel refused the page at offset %zu of %s (%s: %s): %s",
        pages, page.c_str(), supply.usable(), refusal.at, image.path.c_str(), refusal.call, cause,
        is_hidden ? "a cgroup outside this container or namespace limits huge pages, and this process cannot read the limit" :
                    "another process took pages in the meantime, or a memory policy or a limit that this process cannot read applies");
    ggml_hugepages_hint(error, "%s, or %s", is_hidden ?
            ("raise the hugetlb limit of the container or the pod to at least " + std::to_string(std::max<uint64_t>(pages, 1)*refusal.page_size) + " bytes").c_str() :
            "try again, check the hugetlb limits of all parent cgroups and the memory policy (numactl --show)", PREFER);
    return false;
}

bool ggml_hugepages_policy_refused(
        ggml_hugepages_image         & image,
        const ggml_hugepages_refusal & refusal,
        size_t                         first,
        size_t                         last,
        ggml_hugepages_error         * error) {
    if (!ggml_hugepages_accepts_less(&image.params)) {
        error->status = GGML_HUGEPAGES_STATUS_SHORT; // fail_refused sets the message, after the load has returned its pages
        return false;
    }
    if (!image.is_told) {
        image.is_told = true;
        GGML_LOG_WARN("%s: no huge page of %s is left for offset %zu of %s (%s: %s), the rest uses ordinary memory\n", __func__,
            ggml_hugepages_size_name(refusal.page_size).c_str(), first, image.path.c_str(), refusal.call,
            refusal.err == EFAULT ? "refused at the page fault" : strerror(refusal.err));
    }
    return ggml_hugepages_drop(image, refusal.page_size, first, last, error);
}

#endif // __linux__
