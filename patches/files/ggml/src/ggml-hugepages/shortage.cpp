// The cause of a shortage: too few pages, a visible or an invisible limit, a forbidden call, a full mount, or too little ordinary memory.

#ifdef __linux__

#include "shortage.h"
#include "error.h"
#include "kernel.h"
#include "names.h"
#include "store-file.h"
#include "syscalls.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/resource.h>
#include <unistd.h>

void ggml_hugepages_hint_prefer(const ggml_hugepages_params & params, ggml_hugepages_error * error) {
    if (params.policy != GGML_HUGEPAGES_POLICY_PREFER && !params.load_only) {
        const std::string hint = error->hint;
        ggml_hugepages_hint(error, "%s%suse --hugepage-policy prefer to load with fewer huge pages", hint.c_str(), hint.empty() ? "" : ", or ");
    }
}

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
        text += ", " + limit->file + " of cgroup " + limit->path + " " + std::to_string(limit->limit) + " (used " + std::to_string(limit->used) +
            (limit->is_of_memory && supply.growth > 0 ? ", kept for ordinary memory " + std::to_string(supply.growth) : "") + ")";
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
        const uint64_t needed = supply.needed_limit(limit, need);
        if (needed > limit.limit) {
            text += (text.empty() ? "set " : ", set ") + limit.file + " of cgroup " + limit.path + " to " + std::to_string(needed);
        }
    }
    return text;
}

bool ggml_hugepages_fail_short(
        const char                                                     * root,
        const char                                                     * who,
        const std::vector<std::pair<uint64_t, ggml_hugepages_supply>>  & shortages,
        const ggml_hugepages_params                                    & params,
        ggml_hugepages_error                                           * error) {
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
    const auto & [need, supply] = shortages.front();
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "%s %s", who, message.c_str());
    ggml_hugepages_hint(error, "%s", hint.c_str());
    ggml_hugepages_hint_prefer(params, error);
    ggml_hugepages_set_shortage(error, supply.pool.page_size, need, supply.usable());
    return false;
}

bool ggml_hugepages_fail_node_short(const ggml_hugepages_node & node, size_t page_size, uint64_t pages, uint64_t free, ggml_hugepages_error * error) {
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT,
        "the rows that the threads of node %d read need %" PRIu64 " huge pages of %s (%.2f MiB) on this node, only %" PRIu64 " are free: node %d free %" PRIu64 " of %" PRIu64,
        node.id, pages, ggml_hugepages_size_name(page_size).c_str(), pages*page_size/1024.0/1024.0, free, node.id, node.free, node.total);
    ggml_hugepages_hint(error, "echo %" PRIu64 " > /sys/devices/system/node/node%d/hugepages/hugepages-%zukB/nr_hugepages, or use --hugepage-policy prefer, which "
        "takes the rest from other nodes", node.total + pages - free, node.id, page_size/1024);
    ggml_hugepages_set_shortage(error, page_size, pages, free);
    return false;
}

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

bool ggml_hugepages_fail_file_size(const ggml_hugepages_params & params, uint64_t size, ggml_hugepages_error * error) {
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_FORBIDDEN, "huge pages need a file of %" PRIu64 " KiB, but this process may only make files of %" PRIu64 " KiB",
        size/1024, ggml_hugepages_file_size_limit()/1024);
    ggml_hugepages_hint(error, "run ulimit -f unlimited (systemd: LimitFSIZE=infinity)");
    ggml_hugepages_hint_prefer(params, error);
    return false;
}

bool ggml_hugepages_fail_ordinary_short(const std::string & kinds, uint64_t bytes, uint64_t available, ggml_hugepages_error * error) {
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "no huge page is left for %.2f MiB (%s), and only %.2f MiB of ordinary memory are available",
        bytes/1024.0/1024.0, kinds.c_str(), available/1024.0/1024.0);
    ggml_hugepages_hint(error, "end other programs, use a shorter context (-c) or a smaller model, or keep the weights in the file (--no-repack)");
    return false;
}

bool ggml_hugepages_fail_ordinary(ggml_hugepages_error * error, const ggml_hugepages_image & image, size_t size) {
    const int err = errno;
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "cannot allocate %.2f MiB of ordinary memory for %s: %s", size/1024.0/1024.0,
        image.path.c_str(), strerror(err));
    const std::string strict = ggml_hugepages_overcommit("");
    ggml_hugepages_hint_address_space(error, size);
    if (error->hint[0] == '\0' && !strict.empty()) {
        ggml_hugepages_hint(error, "end other programs, raise vm.overcommit_kbytes or vm.overcommit_ratio, or add huge pages (%s)", strict.c_str());
    }
    return false;
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
        ggml_hugepages_hint(error, "allow %s in the system call filter of the service or container (systemd: SystemCallFilter=, containers: seccomp profile)", refusal.call);
        ggml_hugepages_hint_prefer(image.params, error);
        return false;
    }
    if (refusal.err == EFBIG) {
        return ggml_hugepages_fail_file_size(image.params, std::max<uint64_t>(pages, 1)*refusal.page_size, error);
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
            ggml_hugepages_hint(error, "run hugepages store gc, raise the limit of the mount (hugepages store unmount, then mount --limit)");
            ggml_hugepages_hint_prefer(image.params, error);
            ggml_hugepages_set_shortage(error, refusal.page_size, pages, room/refusal.page_size);
            return false;
        }
    }
    if (supply.pool.page_size != 0 && pages > supply.usable()) {
        return ggml_hugepages_fail_short("", "the model needs", { { pages, supply } }, image.params, error);
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
    ggml_hugepages_hint(error, "%s", is_hidden ?
            ("raise the hugetlb limit of the container or the pod to at least " + std::to_string(std::max<uint64_t>(pages, 1)*refusal.page_size) + " bytes").c_str() :
            "try again, check the hugetlb limits of all parent cgroups and the memory policy (numactl --show)");
    ggml_hugepages_hint_prefer(image.params, error);
    ggml_hugepages_set_shortage(error, refusal.page_size, pages, supply.usable());
    return false;
}

#endif // __linux__
