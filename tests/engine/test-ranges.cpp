// Random wants from a seeded generator, compared with the simplest way to count.

#include "test.h"

#include "ggml-hugepages/ranges.h"

#include <algorithm>
#include <map>
#include <set>

using ranges = ggml_hugepages_ranges;
using bitmap = std::vector<bool>;

static const size_t N_BITS = 96;

static ranges random_ranges(random_numbers & random) {
    ranges rs(random.below(8));
    for (auto & r : rs) {
        r.first  = random.below(N_BITS);
        r.second = r.first + 1 + random.below(std::min<size_t>(20, N_BITS - r.first));
    }
    return rs;
}

static bitmap to_bitmap(const ranges & rs) {
    bitmap bits(N_BITS);
    for (const auto & r : rs) {
        std::fill(bits.begin() + r.first, bits.begin() + r.second, true);
    }
    return bits;
}

static ranges from_bitmap(const bitmap & bits) {
    ranges rs;
    for (size_t i = 0; i < bits.size(); i++) {
        if (bits[i] && (i == 0 || !bits[i - 1])) {
            rs.emplace_back(i, i);
        }
        if (bits[i]) {
            rs.back().second = i + 1;
        }
    }
    return rs;
}

TEST(ranges, sets_of_ranges_are_what_bitmaps_are) {
    random_numbers random{ 1 };
    for (int i = 0; i < 5000 && !test_has_failed(); i++) {
        const auto a_raw = random_ranges(random);
        const auto b_raw = random_ranges(random);
        const auto a     = ggml_hugepages_normalized(a_raw);
        const auto b     = ggml_hugepages_normalized(b_raw);
        const auto bits  = to_bitmap(a_raw);
        CHECK_EQ(a, from_bitmap(bits));

        auto minus = bits;
        const auto holes = to_bitmap(b_raw);
        for (size_t k = 0; k < N_BITS; k++) {
            minus[k] = bits[k] && !holes[k];
        }
        CHECK_EQ(ggml_hugepages_minus(a, b), from_bitmap(minus));

        const size_t first = random.below(N_BITS);
        const size_t last  = first + random.below(N_BITS - first + 1);
        CHECK_EQ(ggml_hugepages_overlap(a, first, last), (size_t) std::count(bits.begin() + first, bits.begin() + last, true));
    }
}

//
// decisions
//

struct block {
    size_t image;
    size_t index;
    bool operator<(const block & b) const { return std::make_pair(image, index) < std::make_pair(b.image, b.index); }
};

// images with odd sizes, and wants that overlap, touch, and start or end near page borders
static std::vector<wants> random_images(random_numbers & random, size_t page_size) {
    std::vector<wants> images(1 + random.below(3));
    for (auto & image : images) {
        image.size = 1 + random.below((random.below(4) == 0 ? 200 : 20)*page_size);
        const size_t n = random.below(12);
        for (size_t i = 0; i < n; i++) {
            size_t first = random.below(image.size + 1);
            size_t last  = first + random.below(std::min(image.size - first, 5*page_size) + 1);
            if (random.below(3) == 0) {
                first = ggml_hugepages_align_down(first, page_size);
            }
            if (random.below(3) == 0) {
                last = std::min(image.size, ggml_hugepages_align_up(last, page_size));
            }
            image.list.push_back({ first, std::max(first, last), (int) random.below(5) });
        }
    }
    return images;
}

// the blocks that contain wanted bytes, each with its best rank
static std::map<block, int> blocks_of(const std::vector<wants> & images, size_t page_size) {
    std::map<block, int> result;
    for (size_t i = 0; i < images.size(); i++) {
        for (const auto & want : images[i].list) {
            for (size_t b = want.first/page_size; want.first < want.last && b*page_size < want.last; b++) {
                const auto it = result.emplace(block{ i, b }, want.rank).first;
                it->second = std::min(it->second, want.rank);
            }
        }
    }
    return result;
}

// checks the shape of all runs, and returns their blocks
static std::set<block> blocks_of(const decision & d, size_t page_size) {
    std::set<block> result;
    for (size_t i = 0; i < d.images.size(); i++) {
        size_t end = 0;
        for (const auto & r : d.images[i].runs) {
            CHECK(r.first < r.last);
            CHECK(r.first >= end);
            CHECK_EQ(r.first % r.page_size, (size_t) 0);
            CHECK_EQ(r.last  % r.page_size, (size_t) 0);
            end = r.last;
            for (size_t b = r.first/page_size; b < r.last/page_size; b++) {
                result.insert({ i, b });
            }
        }
        CHECK_EQ(d.images[i].wanted, ggml_hugepages_normalized(d.images[i].wanted));
    }
    return result;
}

static uint64_t pages_of(const std::vector<ggml_hugepages_demand> & demands, size_t page_size) {
    uint64_t n = 0;
    for (const auto & demand : demands) {
        n += (demand.bytes + page_size - 1)/page_size;
    }
    return n;
}

TEST(ranges, one_size_takes_exactly_the_blocks_that_hold_wanted_bytes) {
    random_numbers random{ 2 };
    for (const size_t page_size : { 64*KIB, 2*MIB, GIB }) {
        for (int i = 0; i < 100 && !test_has_failed(); i++) {
            const uint64_t pool = random.below(3) == 0 ? random.below(20) : random.below(100);
            machine m;
            m.pool(page_size, pool + 7, pool);
            for (int k = 0; k < 10 && !test_has_failed(); k++) {
                const auto images  = random_images(random, page_size);
                const auto wanted  = blocks_of(images, page_size);
                std::vector<ggml_hugepages_demand> demands;
                if (random.below(2)) {
                    demands.push_back({ GGML_HUGEPAGES_KIND_KV, (ggml_hugepages_rank) random.below(5), random.below(6*page_size) });
                }
                const uint64_t need = wanted.size() + pages_of(demands, page_size);

                // require: all or nothing
                const auto strict = decide(m, images, require(page_size), demands);
                CHECK_EQ(strict.ok, need <= pool);
                const auto taken = blocks_of(strict, page_size);
                if (strict.ok) {
                    CHECK_EQ(strict.pages(page_size), (uint64_t) wanted.size());
                    CHECK(std::equal(taken.begin(), taken.end(), wanted.begin(), wanted.end(), [](const auto & a, const auto & b) { return !(a < b.first) && !(b.first < a); }));
                } else {
                    const std::string begin = "the model needs " + std::to_string(need) + " huge pages";
                    CHECK_EQ(std::string(strict.error.message).substr(0, begin.size()), begin);
                    CHECK_EQ(strict.error.status, GGML_HUGEPAGES_STATUS_SHORT);
                    // the new total adds exactly the missing pages
                    CHECK(std::string(strict.error.hint).find(std::to_string(pool + 7 + need - pool)) != std::string::npos);
                    CHECK(taken.empty());
                }

                // prefer: all usable pages, the best ranks first
                const auto d = decide(m, images, prefer(page_size), demands);
                CHECK(d.ok);
                const auto got = blocks_of(d, page_size);
                if (demands.empty()) {
                    CHECK_EQ((uint64_t) got.size(), std::min(need, pool));
                }
                int worst_taken = -1;
                int best_left   = 99;
                for (const auto & [b, rank] : wanted) {
                    if (got.count(b)) {
                        worst_taken = std::max(worst_taken, rank);
                    } else {
                        best_left = std::min(best_left, rank);
                    }
                }
                CHECK(worst_taken <= best_left);
                for (const auto & b : got) {
                    CHECK_EQ(wanted.count(b), (size_t) 1);
                }
            }
        }
    }
}

// blocks of each page of a larger size
static std::vector<uint64_t> blocks_by_page(const std::map<block, int> & wanted, size_t per_page) {
    std::map<block, uint64_t> pages;
    for (const auto & [b, rank] : wanted) {
        pages[{ b.image, b.index/per_page }]++;
    }
    std::vector<uint64_t> result;
    for (const auto & [page, n] : pages) {
        result.push_back(n);
    }
    std::sort(result.rbegin(), result.rend());
    return result;
}

TEST(ranges, the_fewest_large_pages_replace_missing_small_ones) {
    random_numbers random{ 5 };
    const size_t per_page = 16;
    for (int i = 0; i < 300 && !test_has_failed(); i++) {
        const uint64_t small = random.below(60);
        const uint64_t large = random.below(12);
        machine m;
        m.pool(2*MIB, small, small).pool(per_page*2*MIB, large, large);
        for (int k = 0; k < 5 && !test_has_failed(); k++) {
            const auto images = random_images(random, 2*MIB);
            const auto wanted = blocks_of(images, 2*MIB);
            const auto d      = decide(m, images, require());
            // whole pages first, then the pages with most blocks
            uint64_t left = wanted.size();
            uint64_t n    = 0;
            for (const uint64_t blocks : blocks_by_page(wanted, per_page)) {
                if (n < large && (blocks == per_page || left > small)) {
                    left -= blocks;
                    n++;
                }
            }
            CHECK_EQ(d.ok, left <= small);
            if (d.ok) {
                CHECK_EQ(d.pages(per_page*2*MIB), n);
                CHECK(d.pages(2*MIB) <= small);
            }
        }
    }
}

TEST(ranges, mixed_sizes_cover_the_same_blocks_as_the_smallest_alone_if_they_are_enough) {
    random_numbers random{ 3 };
    const size_t smallest = 2*MIB;
    for (int i = 0; i < 150 && !test_has_failed(); i++) {
        const std::map<size_t, uint64_t> pools = {
            { smallest, 20 + random.below(400) }, { 8*MIB, random.below(10) }, { 32*MIB, random.below(4) }, { 128*MIB, random.below(3) },
        };
        machine m;
        for (const auto & [page_size, pages] : pools) {
            m.pool(page_size, pages, pages);
        }
        for (int k = 0; k < 10 && !test_has_failed(); k++) {
            auto images = random_images(random, smallest);
            if (random.below(2) == 0) {
                images.front().list.push_back({ random.below(images.front().size), images.front().size, (int) random.below(5) });
            }
            const auto wanted = blocks_of(images, smallest);
            for (const auto & params : { require(), prefer() }) {
                const auto d = decide(m, images, params);
                const bool is_short = wanted.size() > pools.at(smallest);
                if (!d.ok) {
                    // only require may fail, and only if the need exceeds the pool
                    CHECK(params.policy == GGML_HUGEPAGES_POLICY_REQUIRE);
                    CHECK(is_short);
                    CHECK(decide(m, images, prefer()).ok);
                    continue;
                }
                const auto got = blocks_of(d, smallest);
                for (const auto & [page_size, pages] : pools) {
                    CHECK(d.pages(page_size) <= pages);
                }
                for (const auto & b : got) {
                    CHECK(is_short || wanted.count(b) == 1);
                }
                if (params.policy == GGML_HUGEPAGES_POLICY_REQUIRE || !is_short) {
                    CHECK(is_short || got.size() == wanted.size());
                    for (const auto & [b, rank] : wanted) {
                        CHECK_EQ(got.count(b), (size_t) 1);
                    }
                    for (size_t n = 0; n < images.size(); n++) {
                        ranges runs;
                        for (const auto & r : d.images[n].runs) {
                            runs.emplace_back(r.first, r.last);
                        }
                        runs = ggml_hugepages_normalized(runs);
                        for (const auto & want : images[n].list) {
                            CHECK_EQ(ggml_hugepages_overlap(runs, want.first, want.last), want.last - want.first);
                        }
                    }
                }
            }
        }
    }
}

TEST(ranges, a_run_is_as_long_as_it_can_be) {
    random_numbers random{ 4 };
    machine m;
    m.pool(2*MIB, 1000, 1000);
    for (int i = 0; i < 300 && !test_has_failed(); i++) {
        const auto images = random_images(random, 2*MIB);
        const auto d = decide(m, images, require());
        CHECK(d.ok);
        for (const auto & image : d.images) {
            for (size_t k = 1; k < image.runs.size(); k++) {
                CHECK(image.runs[k - 1].last < image.runs[k].first);
            }
        }
    }
}
