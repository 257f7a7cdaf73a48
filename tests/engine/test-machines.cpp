// Decisions on made-up machines, each a folder with /sys and /proc.

#include "test.h"

#include "ggml-hugepages/kernel.h"
#include "ggml-hugepages/cgroup-limits.h"
#include "ggml-hugepages/plan.h"
#include "ggml-hugepages/store-file.h"

#include <cstring>
#include <fcntl.h>
#include <map>
#include <memory>
#include <unistd.h>

using limits = std::vector<std::string>;

// e.g. "hugetlb.2MB.max of /a/b: 4194304 of 8388608"
static limits limits_of(const ggml_hugepages_supply & supply) {
    limits result;
    for (const auto & l : supply.limits) {
        result.push_back(l.file + " of " + l.path + ": " + std::to_string(l.used) + " of " + std::to_string(l.limit));
    }
    return result;
}

static std::string tightest_of(const ggml_hugepages_supply & supply) {
    return supply.tightest() ? supply.tightest()->file + " of " + supply.tightest()->path : "none";
}

static std::vector<size_t> sizes_of(const machine & m) {
    size_t sizes[16];
    const size_t n = ggml_hugepages_page_sizes(m.root(), sizes, 16);
    return std::vector<size_t>(sizes, sizes + n);
}

// the hint up to its last alternative
static std::string commands_of(const ggml_hugepages_error & error) {
    const std::string hint = error.hint;
    const size_t end = hint.find(", or use --hugepage-policy prefer");
    CHECK(end != std::string::npos);
    return hint.substr(0, end);
}

// the whole image, with one rank
static wants all_of(size_t size) {
    return { size, { { 0, size, GGML_HUGEPAGES_RANK_LAYERS } } };
}

//
// no hugetlb
//

TEST(machines, without_hugetlb_there_is_nothing_to_be_had) {
    machine m;
    m.file("/proc/meminfo", "MemTotal: 1024 kB\n");
    CHECK_EQ(sizes_of(m).size(), (size_t) 0);
    CHECK_EQ(ggml_hugepages_page_size(m.root()), (size_t) 0);

    ggml_hugepages_pool pool;
    memset(&pool, 0xff, sizeof(pool));
    CHECK(!ggml_hugepages_pool_read(m.root(), 2*MIB, &pool));
    CHECK_EQ(pool.page_size, (size_t) 0);
    CHECK_EQ(pool.free, (uint64_t) 0);

    const auto supply = ggml_hugepages_supply_read(m.root(), 2*MIB, {});
    CHECK_EQ(supply.usable(), (uint64_t) 0);
    CHECK(supply.tightest() == nullptr);

    for (const auto & params : { require(), prefer() }) {
        const auto d = decide(m, { all_of(4*MIB) }, params);
        CHECK(!d.ok);
        CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_UNSUPPORTED);
        CHECK_SAYS(d.error.message, "no pool of huge pages", "2 MiB", "/sys/kernel/mm/hugepages");
        CHECK_EQ(std::string(d.error.hint), "");
        CHECK_EQ(d.runs(), "");
    }
    const auto d = decide(m, { all_of(4*MIB) }, require(2*MIB));
    CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_UNSUPPORTED);
    CHECK_SAYS(d.error.message, "no pool of huge pages of 2 MiB", "available sizes: none");
}

TEST(machines, without_hugetlb_there_may_be_thp) {
    machine m;
    m.file("/proc/meminfo", "MemTotal:       16384 kB\nMemAvailable:    8192 kB\n");
    auto d = decide(m, { all_of(4*MIB) }, require(GGML_HUGEPAGES_SIZE_THP));
    CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_UNSUPPORTED);
    CHECK_SAYS(d.error.message, "no transparent huge pages");
    CHECK_EQ(std::string(d.error.hint), "");

    m.file("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "2097152\n");
    m.file("/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
    d = decide(m, { all_of(4*MIB) }, require(GGML_HUGEPAGES_SIZE_THP));
    CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_UNSUPPORTED);
    CHECK_SAYS(d.error.message, "transparent huge pages disabled");
    CHECK_EQ(std::string(d.error.hint), "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");

    m.file("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
    d = decide(m, { all_of(4*MIB + 1) }, require(GGML_HUGEPAGES_SIZE_THP));
    CHECK(d.ok);
    CHECK_EQ(d.runs(), "0-6:2M");

    d = decide(m, { all_of(9*MIB) }, require(GGML_HUGEPAGES_SIZE_THP));
    CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_SHORT);
    CHECK_SAYS(d.error.message, "needs 10.00 MiB", "8.00 MiB are available");
    CHECK(decide(m, { all_of(9*MIB) }, prefer(GGML_HUGEPAGES_SIZE_THP)).ok);
}

TEST(machines, thp_runs_are_in_file_order_whatever_their_ranks) {
    machine m;
    m.file("/proc/meminfo", "MemAvailable:    65536 kB\n");
    m.file("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "2097152\n");
    m.file("/sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n");
    const auto d = decide(m, { { 20*MIB, {
        { 0,      4*MIB,  GGML_HUGEPAGES_RANK_EMBEDDINGS },
        { 4*MIB,  8*MIB,  GGML_HUGEPAGES_RANK_LAYERS     },
        { 12*MIB, 14*MIB, GGML_HUGEPAGES_RANK_OUTPUT     },
    } } }, require(GGML_HUGEPAGES_SIZE_THP));
    CHECK(d.ok);
    CHECK_EQ(d.runs(), "0-8:2M 12-14:2M");
}

//
// 2M
//

TEST(machines, usable_is_what_is_free_and_not_promised_and_what_may_still_grow) {
    const struct { uint64_t total, free, reserved, surplus, overcommit, usable; } table[] = {
        {   0,   0,  0,  0,  0,   0 },
        { 100, 100,  0,  0,  0, 100 },
        { 100,  60, 10,  0,  0,  50 },
        { 100,  10, 10,  0,  0,   0 },
        { 100,  10, 15,  0,  0,   0 }, // reservations that surplus pages will serve
        {   0,   0,  0,  0, 40,  40 }, // overcommit alone
        {  12,   2,  0,  5, 40,  37 },
        {  12,   0,  0, 10,  4,   0 }, // overcommit was lowered later
    };
    for (const auto & t : table) {
        machine m;
        m.pool(2*MIB, t.total, t.free, t.reserved, t.surplus, t.overcommit);
        const auto supply = ggml_hugepages_supply_read(m.root(), 2*MIB, {});
        CHECK_EQ(supply.pool.total, t.total);
        CHECK_EQ(supply.usable(), t.usable);
        CHECK_EQ(supply.usable_of_pool(), t.usable);
    }
}

TEST(machines, blocks_that_hold_wanted_bytes_are_taken_and_no_others) {
    machine m;
    m.pool(2*MIB, 100, 100);
    const auto d = decide(m, { { 64*MIB + 5, {
        { 10,          20,          0 },
        { 2*MIB - 1,   2*MIB + 1,   0 }, // across a border
        { 8*MIB,       10*MIB,      0 }, // both ends at a border
        { 20*MIB + 7,  20*MIB + 7,  0 }, // empty
        { 63*MIB,      64*MIB + 5,  0 }, // to the end of the image, inside a block
    } } }, require());
    CHECK(d.ok);
    CHECK_EQ(d.runs(), "0-4:2M 8-10:2M 62-66:2M");
    CHECK_EQ(d.pages(2*MIB), (uint64_t) 5);
}

TEST(machines, one_page_short_is_an_error_with_the_numbers_and_the_new_total) {
    machine m;
    m.pool(2*MIB, 100, 60, 10); // others use 40 pages and reserved 10
    CHECK(decide(m, { all_of(100*MIB) }, require()).ok);

    const auto d = decide(m, { all_of(100*MIB + 1) }, require());
    CHECK(!d.ok);
    CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_SHORT);
    CHECK_SAYS(d.error.message, "needs 51 huge pages of 2 MiB (102.00 MiB)", "only 50 are usable",
        "free 60, reserved 10, total 100, surplus 0, overcommit 0");
    CHECK_EQ(commands_of(d.error), "sysctl vm.nr_hugepages=101");
    CHECK_EQ(d.runs(), "");

    const auto p = decide(m, { all_of(100*MIB + 1), { 0, {} } }, prefer());
    CHECK(p.ok);
    CHECK_EQ(p.runs(), "0-100:2M");
    CHECK_SAYS(take_log(), " 50 of 51 huge pages of 2 MiB");
}

TEST(machines, the_need_is_the_sum_over_all_images_and_buffers) {
    machine m;
    m.pool(2*MIB, 11, 11);
    const std::vector<ggml_hugepages_demand> demands = {
        { GGML_HUGEPAGES_KIND_KV,      GGML_HUGEPAGES_RANK_KV,      5*MIB     }, // 3 pages
        { GGML_HUGEPAGES_KIND_COMPUTE, GGML_HUGEPAGES_RANK_COMPUTE, 2*MIB     }, // 1
        { GGML_HUGEPAGES_KIND_COMPUTE, GGML_HUGEPAGES_RANK_COMPUTE, 2*MIB - 1 }, // 1
        { GGML_HUGEPAGES_KIND_OTHER,   GGML_HUGEPAGES_RANK_LAYERS,  0         },
    };
    auto d = decide(m, { all_of(6*MIB), all_of(3*MIB), all_of(1) }, require(), demands); // 3 + 2 + 1
    CHECK(d.ok);
    CHECK_EQ(d.runs(0) + ", " + d.runs(1) + ", " + d.runs(2), "0-6:2M, 0-4:2M, 0-2:2M");

    m.pool(2*MIB, 10, 10);
    d = decide(m, { all_of(6*MIB), all_of(3*MIB), all_of(1) }, require(), demands);
    CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_SHORT);
    CHECK_SAYS(d.error.message, "needs 11 huge pages of 2 MiB (22.00 MiB)", "only 10 are usable");
}

TEST(machines, a_pool_that_only_grows_on_demand_is_used) {
    machine m;
    m.pool(2*MIB, 0, 0, 0, 0, 8);
    CHECK_EQ(decide(m, { all_of(16*MIB) }, require()).runs(), "0-16:2M");

    auto d = decide(m, { all_of(17*MIB) }, require());
    CHECK_SAYS(d.error.message, "needs 9 huge pages of 2 MiB (18.00 MiB)", "only 8 are usable",
        "free 0, reserved 0, total 0, surplus 0, overcommit 8");
    CHECK_EQ(commands_of(d.error), "sysctl vm.nr_hugepages=1");

    // nr_hugepages includes surplus pages, so the new total is never below the pages of others
    m.pool(2*MIB, 7, 0, 0, 7, 8);
    d = decide(m, { all_of(16*MIB) }, require());
    CHECK_EQ(commands_of(d.error), "sysctl vm.nr_hugepages=14");
}

TEST(machines, when_pages_are_short_ranks_are_served_in_order) {
    // in the order of llama.cpp's files: embeddings first
    const wants model = { 40*MIB, {
        { 0,      8*MIB,  GGML_HUGEPAGES_RANK_EMBEDDINGS },
        { 8*MIB,  16*MIB, GGML_HUGEPAGES_RANK_OUTPUT     },
        { 16*MIB, 40*MIB, GGML_HUGEPAGES_RANK_LAYERS     }, // 12 pages
    } };
    const std::vector<ggml_hugepages_demand> demands = {
        { GGML_HUGEPAGES_KIND_COMPUTE, GGML_HUGEPAGES_RANK_COMPUTE, 4*MIB },
        { GGML_HUGEPAGES_KIND_KV,      GGML_HUGEPAGES_RANK_KV,      6*MIB },
    };
    const struct { uint64_t pages; const char * runs; } table[] = {
        {  0, "" },
        {  5, "16-26:2M" },
        { 12, "16-40:2M" },
        { 13, "8-10:2M 16-40:2M" },
        { 16, "8-40:2M" },
        { 19, "8-40:2M" },  // 3 for KV
        { 21, "8-40:2M" },  // 2 for compute
        { 22, "0-2:2M 8-40:2M" },
        { 25, "0-40:2M" },
        { 99, "0-40:2M" },
    };
    for (const auto & t : table) {
        machine m;
        m.pool(2*MIB, 100, t.pages);
        const auto d = decide(m, { model }, prefer(), demands);
        CHECK(d.ok);
        CHECK_EQ(d.runs(), t.runs);
    }
}

TEST(machines, buffers_without_pages_must_fit_into_ordinary_memory) {
    machine m;
    m.pool(2*MIB, 100, 4);
    const std::vector<ggml_hugepages_demand> demands = {
        { GGML_HUGEPAGES_KIND_REPACKED, GGML_HUGEPAGES_RANK_LAYERS, 12*MIB },
        { GGML_HUGEPAGES_KIND_KV,       GGML_HUGEPAGES_RANK_KV,     6*MIB  },
    };
    const std::vector<wants> files = { { MIB, {} } };
    for (const char * memory : { "MemAvailable: 10240 kB\n", "MemAvailable: 8192 kB\nSwapFree: 2048 kB\n", "MemTotal: 1 kB\n" }) {
        m.file("/proc/meminfo", std::string("Hugepagesize: 2048 kB\n") + memory);
        CHECK(decide(m, files, prefer(), demands).ok);
    }
    m.file("/proc/meminfo", "Hugepagesize: 2048 kB\nMemAvailable: 10239 kB\n");
    auto d = decide(m, files, prefer(), demands);
    CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_NO_MEMORY);
    CHECK_SAYS(d.error.message, "10.00 MiB", "repacked, kv", "only 10.00 MiB of ordinary memory");
    CHECK_SAYS(d.error.hint, "-c", "--no-repack");

    // the weights of a file stay in the file
    CHECK(decide(m, { all_of(40*MIB) }, prefer(), {}).ok);

    auto params = prefer();
    params.plan_only = true;
    for (const int together : { 1, 2 }) {
        ggml_hugepages_plan_together(together == 2, false);
        for (int i = 0; i < together; i++) {
            d = decide(m, files, params, demands);
            // as the load
            CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_NO_MEMORY);
        }
        // the second plan gets no page
        CHECK_EQ(ggml_hugepages_planned_memory().buffers, (uint64_t) (together == 2 ? 28 : 10)*MIB);
    }
    ggml_hugepages_plan_together(false, false);
}

TEST(machines, a_block_has_the_best_rank_of_its_bytes) {
    machine m;
    m.pool(2*MIB, 100, 1);
    const auto d = decide(m, { { 8*MIB, {
        { 0,           5*MIB, GGML_HUGEPAGES_RANK_EMBEDDINGS },
        { 5*MIB,       5*MIB + 1, GGML_HUGEPAGES_RANK_LAYERS },
    } } }, prefer());
    CHECK_EQ(d.runs(), "4-6:2M");
}

TEST(machines, images_that_come_first_are_served_first_within_a_rank) {
    machine m;
    m.pool(2*MIB, 3, 3);
    const auto d = decide(m, { all_of(4*MIB), all_of(4*MIB) }, prefer());
    CHECK_EQ(d.runs(0), "0-4:2M");
    CHECK_EQ(d.runs(1), "0-2:2M");
}

TEST(machines, a_size_that_the_kernel_does_not_have_names_those_that_it_has) {
    machine m;
    m.pool(2*MIB, 100, 100);
    for (const auto & params : { require(GIB), prefer(GIB) }) {
        const auto d = decide(m, { all_of(4*MIB) }, params);
        CHECK(!d.ok);
        CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_UNSUPPORTED);
        CHECK_SAYS(d.error.message, "no pool of huge pages of 1 GiB", "available sizes: 2 MiB");
        CHECK_SAYS(d.error.hint, "--hugepage-size auto");
    }
}

TEST(machines, nothing_wanted_needs_nothing) {
    machine m;
    m.pool(2*MIB, 0, 0);
    CHECK(decide(m, {}, require()).ok);
    const auto d = decide(m, { { 4*MIB, {} }, { 0, {} }, { 4*MIB, { { MIB, MIB, 0 } } } }, require());
    CHECK(d.ok);
    CHECK_EQ(d.pages(2*MIB), (uint64_t) 0);
}

//
// 2M and 1G
//

TEST(machines, one_gib_pages_are_for_whole_gigabytes_and_2_mib_for_the_rest) {
    machine m;
    m.pool(2*MIB, 2000, 2000).pool(GIB, 4, 4);
    CHECK_EQ(sizes_of(m).size(), (size_t) 2);
    CHECK_EQ(ggml_hugepages_page_size(m.root()), 2*MIB);

    CHECK_EQ(decide(m, { all_of(GIB - 1) }, require()).runs(), "0-1024:1G");         // its last block ends at the gigabyte
    CHECK_EQ(decide(m, { all_of(GIB - 2*MIB) }, require()).runs(), "0-1022:2M");     // a page of 1 GiB would waste a block
    CHECK_EQ(decide(m, { all_of(2*GIB + 3*MIB) }, require()).runs(), "0-2048:1G 2048-2052:2M");
    CHECK_EQ(decide(m, { { 3*GIB, { { 4*MIB, 3*GIB - 4*MIB, 0 } } } }, require()).runs(), "4-1024:2M 1024-2048:1G 2048-3068:2M");
    // one page of 1 GiB covers neighbours of different ranks
    CHECK_EQ(decide(m, { { GIB, { { 0, 100*MIB + 1, 4 }, { 100*MIB + 1, GIB, 0 } } } }, require()).runs(), "0-1024:1G");
    // a hole of a whole block prevents the page of 1 GiB
    CHECK_EQ(decide(m, { { GIB, { { 0, 100*MIB, 0 }, { 102*MIB, GIB, 0 } } } }, require()).runs(), "0-100:2M 102-1024:2M");
    // a hole inside a block does not
    CHECK_EQ(decide(m, { { GIB, { { 0, 100*MIB + 1, 0 }, { 102*MIB - 1, GIB, 0 } } } }, require()).runs(), "0-1024:1G");
}

TEST(machines, large_pages_go_as_far_as_they_go_and_are_never_short) {
    machine m;
    m.pool(2*MIB, 600, 512).pool(GIB, 1, 1);
    CHECK_EQ(decide(m, { all_of(2*GIB) }, require()).runs(), "0-1024:1G 1024-2048:2M");

    // the message contains only the need from the pool that can grow
    auto d = decide(m, { all_of(2*GIB + 2*MIB) }, require());
    CHECK_SAYS(d.error.message, "needs 513 huge pages of 2 MiB (1026.00 MiB)", "only 512 are usable",
        "free 512, reserved 0, total 600, surplus 0, overcommit 0");
    CHECK_EQ(commands_of(d.error), "sysctl vm.nr_hugepages=601");

    // ranks apply to large pages too
    d = decide(m, { { 2*GIB, { { 0, GIB, GGML_HUGEPAGES_RANK_EMBEDDINGS }, { GIB, 2*GIB, GGML_HUGEPAGES_RANK_LAYERS } } } }, require());
    CHECK_EQ(d.runs(), "0-1024:2M 1024-2048:1G");

    m.pool(GIB, 1, 0);
    m.pool(2*MIB, 2000, 1024);
    CHECK_EQ(decide(m, { all_of(GIB) }, require()).runs(), "0-1024:2M");
}

TEST(machines, a_buffer_may_take_the_large_page_and_leaves_the_image_the_small_ones) {
    machine m;
    m.pool(2*MIB, 512, 512).pool(GIB, 1, 1);
    // a token reads more of the KV cache than of the embeddings
    const auto d = decide(m, { { GIB, { { 0, GIB, GGML_HUGEPAGES_RANK_EMBEDDINGS } } } }, prefer(),
        { { GGML_HUGEPAGES_KIND_KV, GGML_HUGEPAGES_RANK_KV, GIB } });
    CHECK(d.ok);
    CHECK_EQ(d.runs(), "0-1024:2M");
}

TEST(machines, an_explicit_size_is_the_only_one) {
    machine m;
    m.pool(2*MIB, 2000, 2000).pool(GIB, 4, 4);
    CHECK_EQ(decide(m, { all_of(GIB + 1) }, require(GIB)).runs(), "0-2048:1G");
    CHECK_EQ(decide(m, { all_of(GIB + 1) }, require(2*MIB)).runs(), "0-1026:2M");

    auto d = decide(m, { all_of(4*GIB + 1) }, require(GIB));
    CHECK_SAYS(d.error.message, "needs 5 huge pages of 1 GiB (5120.00 MiB)", "only 4 are usable",
        "free 4, reserved 0, total 4, surplus 0, overcommit 0");
    // sysctl sets only the default size, and this is another size
    CHECK_EQ(commands_of(d.error), "echo 5 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages");
    d = decide(m, { all_of(4*GIB + 1) }, prefer(GIB));
    CHECK_EQ(d.runs(), "0-4096:1G");
    // a buffer smaller than a page needs one
    const std::vector<ggml_hugepages_demand> demands = { { GGML_HUGEPAGES_KIND_KV, GGML_HUGEPAGES_RANK_KV, GIB - 1 } };
    CHECK_SAYS(decide(m, { all_of(4*GIB) }, require(GIB), demands).error.message, "needs 5 huge pages of 1 GiB");
    CHECK(decide(m, { all_of(3*GIB) }, require(GIB), demands).ok);
}

//
// larger pages with waste, and pages that buffers share
//

// KV cache, compute buffer, and mapped tensors that got a buffer
static const std::vector<ggml_hugepages_demand> BUFFERS = {
    { GGML_HUGEPAGES_KIND_KV,      GGML_HUGEPAGES_RANK_KV,      512*MIB    },
    { GGML_HUGEPAGES_KIND_COMPUTE, GGML_HUGEPAGES_RANK_COMPUTE, 98*MIB     },
    { GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_RANK_LAYERS,  300*KIB, nullptr },
};

// e.g. "0-1024:1G", in MiB: the pages of the range that all buffers share
static std::string shared_runs(const decision & d) {
    decision range;
    range.images.resize(1);
    range.images[0].runs = d.images.at(0).share.runs;
    return range.runs();
}

static std::map<std::string, uint64_t> pages_by_kind(size_t page_size) {
    std::vector<ggml_hugepages_need> needs(ggml_hugepages_get_needs(nullptr, 0));
    ggml_hugepages_get_needs(needs.data(), needs.size());
    std::map<std::string, uint64_t> pages;
    for (const auto & need : needs) {
        if (need.page_size == page_size) {
            pages[(need.image == -1 ? "" : "mapped ") + std::string(ggml_hugepages_kind_name(need.kind))] += need.pages;
        }
    }
    return pages;
}

TEST(machines, a_machine_with_only_1_gib_pages_uses_them_for_everything) {
    machine m;
    m.pool(2*MIB, 0, 0).pool(GIB, 10, 10);
    for (const auto & params : { require(), require(GIB), prefer(), prefer(GIB) }) {
        const auto d = decide(m, { all_of(6*GIB + 700*MIB) }, params, BUFFERS);
        CHECK(d.ok);
        CHECK_EQ(d.runs(), "0-7168:1G");
        CHECK_EQ(shared_runs(d), "0-1024:1G");
        CHECK_EQ(d.images[0].share.size, 612*MIB);
        CHECK_EQ(d.images[0].share.parts.size(), (size_t) 3);
        CHECK(d.images[0].grants.empty());
    }
    // exactly as many, then one less
    m.pool(GIB, 10, 8);
    CHECK(decide(m, { all_of(6*GIB + 700*MIB) }, require(), BUFFERS).ok);
    m.pool(GIB, 10, 7);
    auto d = decide(m, { all_of(6*GIB + 700*MIB) }, require(), BUFFERS);
    CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_SHORT);
    // seven pages hold the file, so the buffers lack pages
    CHECK_SAYS(d.error.message, "needs 306 huge pages of 2 MiB (612.00 MiB)", "only 0 are usable");
    CHECK_EQ(commands_of(d.error), "sysctl vm.nr_hugepages=306");
    d = decide(m, { all_of(6*GIB + 700*MIB) }, require(GIB), BUFFERS);
    CHECK_SAYS(d.error.message, "needs 8 huge pages of 1 GiB (8192.00 MiB)", "only 7 are usable");
    m.pool(2*MIB, 306, 306);
    CHECK(decide(m, { all_of(6*GIB + 700*MIB) }, require(), BUFFERS).ok);
}

TEST(machines, a_larger_page_with_waste_replaces_small_ones_only_if_they_are_short) {
    machine m;
    m.pool(2*MIB, 200, 154).pool(GIB, 2, 2);
    CHECK_EQ(decide(m, { all_of(GIB + 308*MIB) }, require()).runs(), "0-1024:1G 1024-1332:2M");
    m.pool(2*MIB, 200, 153);
    CHECK_EQ(decide(m, { all_of(GIB + 308*MIB) }, require()).runs(), "0-2048:1G");
    CHECK_EQ(decide(m, { all_of(GIB + 308*MIB) }, prefer()).runs(), "0-2048:1G");

    // of two files, the one that wastes less, and as few pages as possible
    for (const uint64_t small : { 59, 10 }) {
        m.pool(2*MIB, 100, small).pool(GIB, 2, 2);
        const auto d = decide(m, { all_of(20*MIB), all_of(100*MIB) }, require());
        CHECK_EQ(d.runs(0) + ", " + d.runs(1), "0-20:2M, 0-1024:1G");
    }
    m.pool(2*MIB, 100, 9);
    const auto d = decide(m, { all_of(20*MIB), all_of(100*MIB) }, require());
    CHECK_EQ(d.runs(0) + ", " + d.runs(1), "0-1024:1G, 0-1024:1G");

    // arm64: the smaller of two larger sizes wastes less, and a larger one replaces it
    machine arm;
    arm.pool(2*MIB, 0, 0).pool(32*MIB, 3, 3).pool(GIB, 1, 1);
    CHECK_EQ(decide(arm, { all_of(70*MIB) }, require()).runs(), "0-96:32M");
    CHECK_EQ(decide(arm, { all_of(100*MIB) }, require()).runs(), "0-1024:1G");
}

TEST(machines, buffers_on_small_pages_share_none) {
    machine m;
    m.pool(2*MIB, 2000, 2000).pool(GIB, 1, 0);
    const auto d = decide(m, { all_of(4*MIB) }, require(), BUFFERS);
    CHECK(d.ok);
    CHECK_EQ(d.images[0].share.size, (size_t) 0);
    REQUIRE_EQ(d.images[0].grants.size(), (size_t) 2);
    CHECK_EQ(d.images[0].grants[0].pages + d.images[0].grants[1].pages, (uint64_t) (256 + 49));
}

TEST(machines, a_range_that_buffers_share_has_pages_of_both_sizes) {
    machine m;
    m.pool(2*MIB, 2000, 2000).pool(GIB, 1, 1);
    const std::vector<ggml_hugepages_demand> demands = {
        { GGML_HUGEPAGES_KIND_KV,      GGML_HUGEPAGES_RANK_KV,      1000*MIB },
        { GGML_HUGEPAGES_KIND_COMPUTE, GGML_HUGEPAGES_RANK_COMPUTE, 98*MIB   },
    };
    const auto d = decide(m, { all_of(4*MIB) }, require(), demands);
    CHECK_EQ(shared_runs(d), "0-1024:1G 1024-1098:2M");
    auto params = require();
    params.plan_only = true;
    CHECK_EQ(decide(m, { all_of(4*MIB) }, params, demands).error.status, GGML_HUGEPAGES_STATUS_PLANNED);
    using counts = std::map<std::string, uint64_t>;
    CHECK(pages_by_kind(GIB)   == (counts { { "kv", 1 }, { "compute", 0 } }));
    CHECK(pages_by_kind(2*MIB) == (counts { { "mapped weights", 2 }, { "compute", 37 } }));
}

TEST(machines, plans_that_are_one_share_the_last_page) {
    machine m;
    m.pool(2*MIB, 0, 0).pool(GIB, 3, 3);
    for (const size_t page_size : { (size_t) GGML_HUGEPAGES_SIZE_AUTO, GIB }) {
        auto params = require(page_size);
        params.plan_only = true;
        ggml_hugepages_plan_together(true, false);
        CHECK_EQ(decide(m, { all_of(GIB) }, params, BUFFERS).error.status, GGML_HUGEPAGES_STATUS_PLANNED);
        // 412 MiB are left: an adapter, and the buffers of a draft model without mapped tensors
        CHECK_EQ(decide(m, {}, params, { { GGML_HUGEPAGES_KIND_OTHER, GGML_HUGEPAGES_RANK_LAYERS, 12*MIB } }).error.status, GGML_HUGEPAGES_STATUS_PLANNED);
        CHECK_EQ(decide(m, { { MIB, {} } }, params, { { GGML_HUGEPAGES_KIND_KV, GGML_HUGEPAGES_RANK_KV, 300*MIB } }).error.status, GGML_HUGEPAGES_STATUS_PLANNED);
        CHECK_EQ(pages_by_kind(GIB)["mapped weights"] + pages_by_kind(GIB)["kv"], (uint64_t) 2);
        CHECK_EQ(pages_by_kind(GIB)["other"], (uint64_t) 0);
        // 100 MiB are left
        CHECK_EQ(decide(m, {}, params, { { GGML_HUGEPAGES_KIND_OTHER, GGML_HUGEPAGES_RANK_LAYERS, 101*MIB } }).error.status, GGML_HUGEPAGES_STATUS_PLANNED);
        CHECK_EQ(pages_by_kind(GIB)["other"], (uint64_t) 1);
        CHECK_EQ(decide(m, {}, params, { { GGML_HUGEPAGES_KIND_OTHER, GGML_HUGEPAGES_RANK_LAYERS, 1000*MIB } }).error.status, GGML_HUGEPAGES_STATUS_SHORT);
        ggml_hugepages_plan_together(false, false);
    }
}

//
// two nodes
//

static machine & two_nodes(machine & m) {
    return m.pool(2*MIB, 300, 120)
        .node(0, 2*MIB, 200, 100, "0-4095")  // all CPUs, so that the placement does not depend on the CPU of this process
        .node(1, 2*MIB, 100,  20, "");
}

TEST(machines, a_process_that_may_use_all_nodes_has_all_pages) {
    machine m;
    two_nodes(m);
    const auto supply = ggml_hugepages_supply_read(m.root(), 2*MIB, {});
    CHECK(!supply.is_bound);
    REQUIRE_EQ(supply.nodes.size(), (size_t) 2);
    CHECK_EQ(supply.nodes[1].id, 1);
    CHECK_EQ(supply.nodes[1].total, (uint64_t) 100);
    CHECK_EQ(supply.nodes[1].free, (uint64_t) 20);
    CHECK_EQ(supply.usable(), (uint64_t) 120);
    CHECK_EQ(ggml_hugepages_all_nodes(m.root()).size(), (size_t) 2);

    const auto d = decide(m, { all_of(242*MIB) }, require());
    CHECK_SAYS(d.error.message, "needs 121 huge pages of 2 MiB (242.00 MiB)", "only 120 are usable",
        "free 120, reserved 0, total 300, surplus 0, overcommit 0, node 0 free 100 of 200, node 1 free 20 of 100");
    CHECK_EQ(commands_of(d.error), "sysctl vm.nr_hugepages=301");
}

TEST(machines, a_process_that_is_bound_has_the_pages_of_its_nodes) {
    machine m;
    two_nodes(m);
    auto supply = ggml_hugepages_supply_read(m.root(), 2*MIB, { 1 });
    CHECK(supply.is_bound);
    REQUIRE_EQ(supply.nodes.size(), (size_t) 1);
    CHECK_EQ(supply.nodes[0].id, 1);
    CHECK_EQ(supply.usable(), (uint64_t) 20);
    CHECK_EQ(ggml_hugepages_supply_read(m.root(), 2*MIB, { 0, 1 }).usable(), (uint64_t) 120);

    // reservations may be for any node
    m.pool(2*MIB, 300, 120, 110);
    CHECK_EQ(ggml_hugepages_supply_read(m.root(), 2*MIB, { 1 }).usable(), (uint64_t) 10);
    // surplus pages can come from any node
    m.pool(2*MIB, 300, 120, 0, 0, 7);
    CHECK_EQ(ggml_hugepages_supply_read(m.root(), 2*MIB, { 1 }).usable(), (uint64_t) 27);
    // a node that does not exist
    CHECK_EQ(ggml_hugepages_supply_read(m.root(), 2*MIB, { 7 }).nodes.size(), (size_t) 0);
}

TEST(machines, a_bound_process_is_told_to_grow_its_own_node) {
    machine m;
    two_nodes(m);
    const auto nodes = ggml_hugepages_placement_nodes(m.root(), GGML_HUGEPAGES_PLACEMENT_BIND);
    if (nodes != std::vector<int>{ 0 }) {
        SKIP("numactl has set a memory policy");
    }
    CHECK(ggml_hugepages_placement_nodes(m.root(), GGML_HUGEPAGES_PLACEMENT_DEFAULT).empty());
    CHECK(ggml_hugepages_placement_nodes(m.root(), GGML_HUGEPAGES_PLACEMENT_INTERLEAVE).empty());

    auto params = require();
    params.placement = GGML_HUGEPAGES_PLACEMENT_BIND;
    CHECK(decide(m, { all_of(200*MIB) }, params).ok);
    const auto d = decide(m, { all_of(202*MIB) }, params);
    CHECK_SAYS(d.error.message, "needs 101 huge pages of 2 MiB (202.00 MiB)", "only 100 are usable",
        "free 120, reserved 0, total 300, surplus 0, overcommit 0, node 0 free 100 of 200");
    CHECK_EQ(commands_of(d.error), "echo 201 > /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages");
}

TEST(machines, cpus_on_all_nodes_are_no_restriction) {
    machine m;
    m.pool(2*MIB, 300, 120).node(0, 2*MIB, 200, 100, "0-4095").node(1, 2*MIB, 100, 20, "0-4095");
    CHECK(ggml_hugepages_placement_nodes(m.root(), GGML_HUGEPAGES_PLACEMENT_BIND).empty());
    machine without_numa;
    without_numa.pool(2*MIB, 300, 120);
    CHECK(ggml_hugepages_placement_nodes(without_numa.root(), GGML_HUGEPAGES_PLACEMENT_BIND).empty());
}

//
// containers
//

static const std::string V2 = "/sys/fs/cgroup";

TEST(machines, a_limit_of_any_ancestor_counts_for_pages_and_for_reservations) {
    machine m;
    m.pool(2*MIB, 1000, 1000).cgroup2("/kube/pod/box");
    m.file(V2 + "/kube/pod/box/hugetlb.2MB.max", "max\n").file(V2 + "/kube/pod/box/hugetlb.2MB.current", "0\n");
    m.file(V2 + "/kube/pod/hugetlb.2MB.max", "209715200\n").file(V2 + "/kube/pod/hugetlb.2MB.current", "20971520\n");           // 90 pages left
    m.file(V2 + "/kube/pod/hugetlb.2MB.rsvd.max", "209715200\n").file(V2 + "/kube/pod/hugetlb.2MB.rsvd.current", "41943040\n"); // 80
    m.file(V2 + "/kube/hugetlb.2MB.max", "2097152000\n").file(V2 + "/kube/hugetlb.2MB.current", "0\n");
    m.file(V2 + "/hugetlb.1GB.max", "0\n").file(V2 + "/hugetlb.1GB.current", "0\n");                                            // another size
    const auto supply = ggml_hugepages_supply_read(m.root(), 2*MIB, {});
    CHECK_EQ(limits_of(supply), (limits {
        "hugetlb.2MB.max of /kube/pod: 20971520 of 209715200",
        "hugetlb.2MB.rsvd.max of /kube/pod: 41943040 of 209715200",
        "hugetlb.2MB.max of /kube: 0 of 2097152000",
    }));
    CHECK_EQ(tightest_of(supply), "hugetlb.2MB.rsvd.max of /kube/pod");
    CHECK_EQ(supply.usable(), (uint64_t) 80);
    CHECK_EQ(supply.usable_of_pool(), (uint64_t) 1000);

    CHECK(decide(m, { all_of(160*MIB) }, require()).ok);
    auto d = decide(m, { all_of(161*MIB) }, require());
    CHECK_SAYS(d.error.message, "needs 81 huge pages of 2 MiB (162.00 MiB)", "only 80 are usable",
        "free 1000, reserved 0, total 1000, surplus 0, overcommit 0, hugetlb.2MB.rsvd.max of cgroup /kube/pod 209715200 (used 41943040)");
    CHECK_EQ(commands_of(d.error), "set hugetlb.2MB.rsvd.max of cgroup /kube/pod to 211812352");

    // both limits are too low
    d = decide(m, { all_of(182*MIB) }, require());
    CHECK_EQ(commands_of(d.error), "set hugetlb.2MB.max of cgroup /kube/pod to 211812352, set hugetlb.2MB.rsvd.max of cgroup /kube/pod to 232783872");

    // both the pool and the limit are too small
    m.pool(2*MIB, 1000, 70);
    d = decide(m, { all_of(162*MIB) }, require());
    CHECK(std::string(d.error.message).find("the pool is large enough") == std::string::npos);
    CHECK_EQ(commands_of(d.error), "sysctl vm.nr_hugepages=1011, set hugetlb.2MB.rsvd.max of cgroup /kube/pod to 211812352");
    CHECK_EQ(decide(m, { all_of(162*MIB) }, prefer()).runs(), "0-140:2M");
}

// Since Linux 6.7, a mount option of cgroup2 makes huge pages count as memory.
TEST(machines, a_limit_on_memory_counts_where_huge_pages_are_memory) {
    const std::string dir = V2 + "/box";
    for (const bool is_memory : { false, true }) {
        machine m;
        m.pool(2*MIB, 1000, 1000).file("/proc/self/cgroup", "0::/box\n");
        m.mounts(std::string("29 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate") + (is_memory ? ",memory_hugetlb_accounting\n" : "\n"));
        m.file(dir + "/memory.max", "209715200\n").file(dir + "/memory.current", "104857600\n");
        // the kernel takes back page cache first
        m.file(dir + "/memory.stat", "anon 20971520\nfile 83886080\nshmem 20971520\ninactive_file 41943040\nactive_file 20971520\n");
        m.file("/proc/meminfo", "MemAvailable: 10485760 kB\n");
        CHECK_EQ(ggml_hugepages_memory_left(m.root(), 0), (uint64_t) 160*MIB);
        const auto fits = decide(m, { all_of(160*MIB) }, require());
        CHECK(fits.ok);
        const auto d = decide(m, { all_of(162*MIB) }, require());
        CHECK_EQ(d.ok, !is_memory);
        if (is_memory) {
            CHECK_SAYS(d.error.message, "needs 81 huge pages of 2 MiB", "only 80 are usable", "memory.max of cgroup /box 209715200 (used 41943040)");
            CHECK_EQ(commands_of(d.error), "set memory.max of cgroup /box to 211812352");
        }
    }
}

TEST(machines, a_plan_within_a_limit_on_memory_leaves_room_for_the_server) {
    const std::string dir = V2 + "/box";
    machine m;
    m.pool(2*MIB, 1000, 1000).file("/proc/self/cgroup", "0::/box\n").file("/proc/meminfo", "MemAvailable: 10485760 kB\n");
    m.mounts("29 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,memory_hugetlb_accounting\n");
    m.file(dir + "/memory.max", "104857600\n").file(dir + "/memory.current", "4194304\n");
    auto params = require();
    params.plan_only = true;
    CHECK_EQ(decide(m, { all_of(64*MIB) }, params).error.status, GGML_HUGEPAGES_STATUS_PLANNED);
    const auto d = decide(m, { all_of(66*MIB) }, params);
    CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_SHORT);
    CHECK_SAYS(d.error.message, "only 32 are usable", "memory.max of cgroup /box 104857600 (used 4194304, kept for ordinary memory 33554432)");
    CHECK_EQ(commands_of(d.error), "set memory.max of cgroup /box to 106954752");
    // a buffer of a running server
    CHECK(decide(m, { all_of(96*MIB) }, require()).ok);
}

TEST(machines, ordinary_memory_is_what_counted_huge_pages_leave) {
    const std::string dir = V2 + "/box";
    for (const bool is_memory : { false, true }) {
        machine m;
        m.pool(2*MIB, 10, 10).file("/proc/self/cgroup", "0::/box\n").file("/proc/meminfo", "MemAvailable: 10485760 kB\n");
        m.mounts(std::string("29 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw") + (is_memory ? ",memory_hugetlb_accounting\n" : "\n"));
        m.file(dir + "/memory.max", "41943040\n").file(dir + "/memory.current", "4194304\n");
        CHECK_EQ(ggml_hugepages_memory_left(m.root(), 20*MIB), (uint64_t) (is_memory ? 16 : 36)*MIB);
        // 0 would mean unknown
        CHECK_EQ(ggml_hugepages_memory_left(m.root(), 36*MIB), is_memory ? (uint64_t) 1 : (uint64_t) 36*MIB);
        // 20 MiB on pages, the rest in ordinary memory
        const auto kv = [&](size_t size) {
            return decide(m, { { MIB, {} } }, prefer(), { { GGML_HUGEPAGES_KIND_KV, GGML_HUGEPAGES_RANK_KV, size } });
        };
        CHECK(kv(36*MIB).ok);
        const auto d = kv(38*MIB);
        CHECK_EQ(d.ok, !is_memory);
        if (is_memory) {
            CHECK_SAYS(d.error.message, "no huge page is left for 18.00 MiB", "only 16.00 MiB of ordinary memory are available");
        }
    }
}

TEST(machines, what_is_left_of_memory_is_within_the_limits_of_cgroup_v1_too) {
    machine m;
    m.pool(2*MIB, 10, 10).file("/proc/self/cgroup", "5:memory:/a/b\n0::/\n").file("/proc/meminfo", "MemAvailable: 1048576 kB\n");
    m.mounts("34 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
    CHECK_EQ(ggml_hugepages_memory_left(m.root(), 0), (uint64_t) GIB);
    const std::string dir = "/sys/fs/cgroup/memory/a";
    m.file(dir + "/b/memory.limit_in_bytes", "9223372036854771712\n").file(dir + "/b/memory.usage_in_bytes", "1\n");
    m.file(dir + "/memory.limit_in_bytes", "104857600\n").file(dir + "/memory.usage_in_bytes", "94371840\n");
    m.file(dir + "/memory.stat", "inactive_file 1\nactive_file 1\ntotal_inactive_file 10485760\ntotal_active_file 0\n");
    CHECK_EQ(ggml_hugepages_memory_left(m.root(), 0), (uint64_t) 20*MIB);
}

TEST(machines, plans_that_are_one_count_each_other) {
    machine m;
    m.pool(2*MIB, 100, 100);
    auto params = require();
    params.plan_only = true;
    ggml_hugepages_plan_together(true, false);
    CHECK_EQ(decide(m, { all_of(120*MIB) }, params).error.status, GGML_HUGEPAGES_STATUS_PLANNED);
    CHECK_EQ(decide(m, { all_of(80*MIB) }, params).error.status, GGML_HUGEPAGES_STATUS_PLANNED);
    const auto d = decide(m, { all_of(2*MIB) }, params);
    CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_SHORT);
    CHECK_SAYS(d.error.message, "the models together need 101 huge pages of 2 MiB", "only 100 are usable");
    std::vector<ggml_hugepages_need> needs(ggml_hugepages_get_needs(nullptr, 0));
    ggml_hugepages_get_needs(needs.data(), needs.size());
    std::vector<std::pair<uint32_t, uint64_t>> pages;
    for (const auto & need : needs) {
        pages.emplace_back(need.plan, need.pages);
    }
    CHECK(pages == (std::vector<std::pair<uint32_t, uint64_t>> { { 0, 60 }, { 1, 40 }, { 2, 1 } }));
    ggml_hugepages_plan_together(false, false);
    CHECK_EQ(decide(m, { all_of(200*MIB) }, params).error.status, GGML_HUGEPAGES_STATUS_PLANNED);
}

TEST(machines, a_limit_below_what_is_used_leaves_nothing) {
    machine m;
    m.pool(2*MIB, 10, 10).cgroup2("/box");
    m.file(V2 + "/box/hugetlb.2MB.max", "4194304\n").file(V2 + "/box/hugetlb.2MB.current", "8388608\n");
    CHECK_EQ(ggml_hugepages_supply_read(m.root(), 2*MIB, {}).usable(), (uint64_t) 0);
    // a limit inside a page
    m.file(V2 + "/box/hugetlb.2MB.max", "6291455\n").file(V2 + "/box/hugetlb.2MB.current", "0\n");
    CHECK_EQ(ggml_hugepages_supply_read(m.root(), 2*MIB, {}).usable(), (uint64_t) 2);
}

TEST(machines, a_limit_on_large_pages_leaves_them_to_others) {
    machine m;
    m.pool(2*MIB, 2000, 2000).pool(GIB, 4, 4).cgroup2("/box");
    m.file(V2 + "/box/hugetlb.1GB.max", "1073741824\n").file(V2 + "/box/hugetlb.1GB.current", "0\n");
    m.file(V2 + "/box/hugetlb.2MB.max", "max\n").file(V2 + "/box/hugetlb.2MB.current", "0\n");
    CHECK_EQ(decide(m, { all_of(2*GIB) }, require()).runs(), "0-1024:1G 1024-2048:2M");
}

TEST(machines, limits_of_cgroup_v1_count) {
    machine m;
    m.pool(2*MIB, 1000, 1000);
    m.file("/proc/self/cgroup", "11:hugetlb:/docker/box\n10:cpu,cpuacct:/docker/cpu\n1:name=systemd:/docker/box\n");
    m.mounts("33 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
             "36 30 0:30 / /sys/fs/cgroup/hugetlb rw,nosuid shared:9 master:2 - cgroup cgroup rw,hugetlb\n");
    const std::string dir = "/sys/fs/cgroup/hugetlb/docker";
    // cgroup v1 shows "no limit" as a number
    m.file(dir + "/box/hugetlb.2MB.limit_in_bytes", "9223372036852678656\n").file(dir + "/box/hugetlb.2MB.usage_in_bytes", "0\n");
    m.file(dir + "/box/hugetlb.2MB.rsvd.limit_in_bytes", "20971520\n").file(dir + "/box/hugetlb.2MB.rsvd.usage_in_bytes", "2097152\n");
    m.file(dir + "/hugetlb.2MB.limit_in_bytes", "16777216\n").file(dir + "/hugetlb.2MB.usage_in_bytes", "2097152\n");
    const auto supply = ggml_hugepages_supply_read(m.root(), 2*MIB, {});
    CHECK_EQ(limits_of(supply), (limits {
        "hugetlb.2MB.rsvd.limit_in_bytes of /docker/box: 2097152 of 20971520",
        "hugetlb.2MB.limit_in_bytes of /docker: 2097152 of 16777216",
    }));
    CHECK_EQ(supply.usable(), (uint64_t) 7);
    const auto d = decide(m, { all_of(16*MIB) }, require());
    CHECK_EQ(commands_of(d.error), "set hugetlb.2MB.limit_in_bytes of cgroup /docker to 18874368");
}

TEST(machines, in_a_hybrid_hierarchy_the_limits_may_be_in_cgroup2) {
    machine m;
    m.pool(2*MIB, 1000, 1000);
    m.file("/proc/self/cgroup", "5:memory:/other\n1:name=systemd:/user.slice\n0::/user.slice/job\n");
    m.mounts("32 30 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
             "33 30 0:26 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
             "34 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
    const std::string dir = "/sys/fs/cgroup/unified/user.slice";
    m.file(dir + "/job/hugetlb.2MB.max", "8388608\n").file(dir + "/job/hugetlb.2MB.current", "0\n");
    // these limits do not apply to the process
    m.file("/sys/fs/cgroup/memory/other/hugetlb.2MB.limit_in_bytes", "0\n").file("/sys/fs/cgroup/memory/other/hugetlb.2MB.usage_in_bytes", "0\n");
    m.file("/sys/fs/cgroup/systemd/user.slice/hugetlb.2MB.max", "0\n").file("/sys/fs/cgroup/systemd/user.slice/hugetlb.2MB.current", "0\n");
    const auto supply = ggml_hugepages_supply_read(m.root(), 2*MIB, {});
    CHECK_EQ(limits_of(supply), (limits { "hugetlb.2MB.max of /user.slice/job: 0 of 8388608" }));
    CHECK_EQ(supply.usable(), (uint64_t) 4);
}

TEST(machines, in_a_container_the_mount_may_be_a_part_of_the_hierarchy) {
    machine m;
    m.pool(2*MIB, 1000, 1000).cgroup2("/docker/box/job", "/sys/fs/cgroup", "/docker/box");
    m.file(V2 + "/job/hugetlb.2MB.max", "8388608\n").file(V2 + "/job/hugetlb.2MB.current", "2097152\n");
    m.file(V2 + "/hugetlb.2MB.max", "6291456\n").file(V2 + "/hugetlb.2MB.current", "2097152\n");
    auto supply = ggml_hugepages_supply_read(m.root(), 2*MIB, {});
    CHECK_EQ(limits_of(supply), (limits {
        "hugetlb.2MB.max of /job: 2097152 of 8388608",
        "hugetlb.2MB.max of /: 2097152 of 6291456",
    }));
    CHECK_EQ(supply.usable(), (uint64_t) 2);

    // the process is in the cgroup at the start of the mount
    m.file("/proc/self/cgroup", "0::/docker/box\n");
    supply = ggml_hugepages_supply_read(m.root(), 2*MIB, {});
    CHECK_EQ(limits_of(supply), (limits { "hugetlb.2MB.max of /: 2097152 of 6291456" }));

    // a cgroup whose name starts with the name of the mounted one
    m.file("/proc/self/cgroup", "0::/docker/box/job\n").file("/proc/self/mountinfo", "29 24 0:26 /docker/bo /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    m.file(V2 + "/x/job/hugetlb.2MB.max", "0\n").file(V2 + "/x/job/hugetlb.2MB.current", "0\n");
    m.file(V2 + "x/job/hugetlb.2MB.max", "0\n").file(V2 + "x/job/hugetlb.2MB.current", "0\n");
    for (const auto & text : limits_of(ggml_hugepages_supply_read(m.root(), 2*MIB, {}))) {
        CHECK_EQ(text.find("of x/job"), std::string::npos);
    }
}

TEST(machines, a_hierarchy_that_is_mounted_twice_is_counted_once) {
    machine m;
    m.pool(2*MIB, 1000, 1000).cgroup2("/box").mounts("30 24 0:26 / /mnt/cgroup rw - cgroup2 cgroup2 rw\n");
    for (const std::string & mount : { V2, std::string("/mnt/cgroup") }) {
        m.file(mount + "/box/hugetlb.2MB.max", "4194304\n").file(mount + "/box/hugetlb.2MB.current", "0\n");
    }
    const auto d = decide(m, { all_of(6*MIB) }, require());
    CHECK_EQ(commands_of(d.error), "set hugetlb.2MB.max of cgroup /box to 6291456");
}

TEST(machines, files_that_cannot_be_understood_are_no_limits) {
    machine m;
    m.pool(2*MIB, 10, 10);
    m.file("/proc/self/cgroup", "\n:\nnothing\n0:\n0::\n7:hugetlb\n").mounts("\n- - -\n29 24\n29 24 0:26 / /sys/fs/cgroup rw shared:4 cgroup2\n"
        "29 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    m.file(V2 + "/hugetlb.2MB.max", "many\n").file(V2 + "/hugetlb.2MB.current", "0\n");
    CHECK_EQ(ggml_hugepages_supply_read(m.root(), 2*MIB, {}).usable(), (uint64_t) 10);
    // a limit without a usage file cannot be applied
    m.file(V2 + "/hugetlb.2MB.max", "4194304\n").file(V2 + "/hugetlb.2MB.current", "");
    CHECK_EQ(ggml_hugepages_supply_read(m.root(), 2*MIB, {}).usable(), (uint64_t) 10);
    // a pool with missing files is ignored
    machine half;
    half.file("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "10\n");
    CHECK_EQ(ggml_hugepages_supply_read(half.root(), 2*MIB, {}).usable(), (uint64_t) 0);
}

//
// arm64
//

TEST(machines, arm64_with_4k_base_pages_has_four_sizes_and_begins_with_2_mib) {
    machine m;
    m.pool(2*MIB, 600, 600).pool(64*KIB, 100, 100).pool(32*MIB, 40, 40).pool(GIB, 2, 2);
    CHECK_EQ(sizes_of(m), (std::vector<size_t> { 64*KIB, 2*MIB, 32*MIB, GIB }));
    CHECK_EQ(ggml_hugepages_page_size(m.root()), 2*MIB);

    CHECK_EQ(decide(m, { all_of(GIB + 70*MIB + 1) }, require()).runs(), "0-1024:1G 1024-1088:32M 1088-1096:2M");
    // too few pages of 1 GiB: the next smaller size replaces them
    m.pool(GIB, 2, 0);
    CHECK_EQ(decide(m, { all_of(GIB + 262*MIB) }, require()).runs(), "0-1280:32M 1280-1286:2M");
    m.pool(32*MIB, 40, 1);
    CHECK_EQ(decide(m, { all_of(70*MIB) }, require()).runs(), "0-32:32M 32-70:2M");

    // pages of 64K need an explicit size
    CHECK_EQ(decide(m, { { 8*MIB, { { 100*KIB, 200*KIB, 0 } } } }, require(64*KIB)).runs(), "64K-256K:64K");
    const auto d = decide(m, { all_of(100*64*KIB + 1) }, require(64*KIB));
    CHECK_SAYS(d.error.message, "needs 101 huge pages of 64 KiB (6.31 MiB)", "only 100 are usable",
        "free 100, reserved 0, total 100, surplus 0, overcommit 0");
    CHECK_EQ(commands_of(d.error), "echo 101 > /sys/kernel/mm/hugepages/hugepages-64kB/nr_hugepages");
}

TEST(machines, arm64_with_64k_base_pages_has_2_mib_512_mib_and_16_gib) {
    machine m;
    m.pool(512*MIB, 3, 3).pool(2*MIB, 600, 600).pool(16*GIB, 1, 1).cgroup2("/box");
    CHECK_EQ(sizes_of(m), (std::vector<size_t> { 2*MIB, 512*MIB, 16*GIB }));
    CHECK_EQ(ggml_hugepages_page_size(m.root()), 2*MIB);
    CHECK_EQ(decide(m, { all_of(16*GIB + 513*MIB) }, require()).runs(), "0-16384:16G 16384-16896:512M 16896-16898:2M");

    // the default size of this machine is 512 MiB
    CHECK_EQ(commands_of(decide(m, { all_of(4*512*MIB) }, require(512*MIB)).error), "sysctl vm.nr_hugepages=4");
    CHECK_EQ(commands_of(decide(m, { all_of(17*GIB) }, require(16*GIB)).error), "echo 2 > /sys/kernel/mm/hugepages/hugepages-16777216kB/nr_hugepages");

    // the names of the kernel's files
    for (const char * name : { "512MB", "16GB", "64KB" }) {
        m.file(V2 + "/box/hugetlb." + name + ".max", "0\n").file(V2 + "/box/hugetlb." + name + ".current", "0\n");
    }
    CHECK_EQ(decide(m, { all_of(513*MIB) }, require()).runs(), "0-514:2M");
}

// The kernel of x86-64 has no such pages, so a folder of another file system stands for the mount.
TEST(machines, a_store_with_64_kib_pages_holds_every_wanted_block) {
    machine m;
    m.pool(2*MIB, 600, 600).pool(64*KIB, 200, 200);
    const size_t size     = 5*MIB + 100*KIB;
    const auto   geometry = ggml_hugepages_geometry_of(size, 64*KIB);
    auto file = std::make_shared<ggml_hugepages_store_file>();
    file->dir       = std::shared_ptr<int>(new int(open(m.root(), O_RDONLY | O_DIRECTORY)), [](int * fd) { close(*fd); delete fd; });
    file->size      = size;
    file->is_buffer = false;
    file->page_size = 64*KIB;
    file->segment   = geometry.segment;
    file->length    = geometry.length;
    file->sums_at   = geometry.sums_at;
    file->sums.assign(geometry.n_segments, 0);

    const wants part = { size, { { 0, MIB, GGML_HUGEPAGES_RANK_LAYERS }, { 3*MIB + 1, size, GGML_HUGEPAGES_RANK_LAYERS } }, file };
    for (const auto & params : { require(), prefer() }) {
        const auto d = decide(m, { part }, params);
        CHECK(d.ok);
        const auto & runs = d.images[0].runs;
        CHECK_EQ(runs.size(), (size_t) 2);
        for (const auto & run : runs) {
            CHECK_EQ(run.page_size, 64*KIB);
            CHECK_EQ((int) run.owner, (int) GGML_HUGEPAGES_OWNER_FILLING);
        }
        CHECK_EQ(runs[0].first, (size_t) 0);
        CHECK_EQ(runs[0].last, MIB);
        CHECK_EQ(runs[1].first, 3*MIB);
        CHECK_EQ(runs[1].last, ggml_hugepages_align_up(size, 64*KIB));
    }

    m.pool(64*KIB, 200, 40);
    wants whole = all_of(size); // more than 80 blocks
    whole.resident = file;
    const auto d = decide(m, { whole }, require());
    CHECK(!d.ok);
    CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_SHORT);
    CHECK_SAYS(d.error.message, "huge pages of 64 KiB", "only 40 are usable");
}

TEST(machines, small_pages_alone_are_not_chosen_unasked) {
    machine m;
    m.pool(64*KIB, 100, 100);
    CHECK_EQ(decide(m, { all_of(MIB) }, require()).error.status, GGML_HUGEPAGES_STATUS_UNSUPPORTED);
    CHECK_EQ(decide(m, { all_of(MIB) }, require(64*KIB)).runs(), "0-1:64K");
}

//
// plans
//

TEST(machines, a_plan_has_what_a_decision_takes_for_each_file_and_each_buffer) {
    machine m;
    m.pool(2*MIB, 600, 600).pool(GIB, 2, 1);
    const std::vector<wants> files = { all_of(GIB + 5*MIB), all_of(3*MIB) };
    const std::vector<ggml_hugepages_demand> demands = {
        { GGML_HUGEPAGES_KIND_KV,      GGML_HUGEPAGES_RANK_KV,      7*MIB },
        { GGML_HUGEPAGES_KIND_COMPUTE, GGML_HUGEPAGES_RANK_COMPUTE, MIB   },
    };
    auto params = require();
    const auto taken = decide(m, files, params, demands);
    CHECK(taken.ok);
    params.plan_only = true;

    for (const auto & p : { params, prefer() }) {
        auto asked = p;
        asked.plan_only = true;
        const auto d = decide(m, files, asked, demands);
        CHECK(!d.ok);
        CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_PLANNED);
        std::vector<ggml_hugepages_need> needs(ggml_hugepages_get_needs(nullptr, 0));
        REQUIRE(ggml_hugepages_get_needs(needs.data(), needs.size()) == 5);
        std::map<int, std::map<size_t, uint64_t>> pages; // by file, -1 for all buffers together
        uint64_t bytes = 0;
        for (const auto & need : needs) {
            pages[need.image][need.page_size] += need.pages;
            bytes += need.bytes;
        }
        CHECK_EQ(pages[0][GIB],   (uint64_t) 1);
        CHECK_EQ(pages[0][2*MIB], (uint64_t) 3);
        CHECK_EQ(pages[1][2*MIB], (uint64_t) 2);
        CHECK_EQ(pages[-1][2*MIB], (uint64_t) 5);
        CHECK_EQ(bytes, (uint64_t) (GIB + 5*MIB + 3*MIB + 7*MIB + MIB));
        CHECK_EQ(pages[0][2*MIB] + pages[1][2*MIB], taken.pages(2*MIB));
    }

    // a plan also describes a need that does not fit, even if a load would continue with fewer pages
    m.pool(2*MIB, 8, 8);
    params.policy = GGML_HUGEPAGES_POLICY_PREFER;
    const auto d = decide(m, files, params, demands);
    CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_SHORT);
    CHECK_EQ(ggml_hugepages_get_needs(nullptr, 0), (size_t) 5);
}
