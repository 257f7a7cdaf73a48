// Resident images: manifests that any user may have written, and files on a hugetlbfs mount of the test.
//
//   manifest   needs nothing
//   store      needs the right to mount, and some usable pages of 2 MiB

#include "test.h"

#include "ggml-hugepages/registry.h"
#include "ggml-hugepages/store-directory.h"
#include "ggml-hugepages/store-file.h"
#include "ggml-hugepages/store-placement.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <memory>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const size_t PAGE = 2*MIB;

//
// manifests
//

using header      = ggml_hugepages_store_header;
using header_page = std::vector<char>;

static header_page page_of(const header & h) {
    header_page page(GGML_HUGEPAGES_HEADER_SIZE);
    memcpy(page.data(), &h, sizeof(h));
    return page;
}

// A header of an image of 5 MiB in pages of 2 MiB. Everything in it is valid except the name of its file.
static header good_header() {
    header h = {};
    const char magic[8] = GGML_HUGEPAGES_STORE_MAGIC;
    memcpy(h.magic, magic, sizeof(magic));
    h.version    = GGML_HUGEPAGES_STORE_VERSION;
    h.kind       = GGML_HUGEPAGES_KIND_WEIGHTS;
    h.size       = 5*MIB;
    h.page_size  = PAGE;
    h.segment    = PAGE;
    h.n_segments = 3;
    snprintf(h.source,   sizeof(h.source),   "/models/a.gguf");
    snprintf(h.identity, sizeof(h.identity), "file 5242880 bytes, modified 3.000000004, header 0000000000000005");
    h.checksum   = ggml_hugepages_header_checksum(h);
    return h;
}

// without a name, to reach the other checks
static bool is_good(const header_page & page, uint64_t length, uint64_t page_size = PAGE) {
    auto info = std::make_unique<ggml_hugepages_resident_info>();
    ggml_hugepages_error error = {};
    const bool ok = ggml_hugepages_manifest_check(page.data(), page.size(), length, page_size, nullptr, info.get(), &error);
    CHECK(ok || error.message[0] != '\0');
    // the readers of the checksums rely on this
    CHECK(!ok || (info->size <= length && info->n_segments <= length/4096 && memchr(info->source, 0, sizeof(info->source)) &&
        memchr(info->identity, 0, sizeof(info->identity))));
    return ok;
}

TEST(manifest, a_manifest_is_believed_with_its_own_length_and_page_size_only) {
    const auto page = page_of(good_header());
    CHECK(is_good(page, 6*MIB));
    for (const uint64_t length : { uint64_t(0), uint64_t(1), uint64_t(4*MIB), uint64_t(8*MIB), uint64_t(6*MIB + 4096), UINT64_MAX, UINT64_MAX - PAGE + 1 }) {
        CHECK(!is_good(page, length));
    }
    CHECK(!is_good(page, 6*MIB, 0));
    CHECK(!is_good(page, GIB, GIB));
    CHECK(!is_good(header_page(100), 6*MIB));
}

TEST(manifest, every_bit_of_it_counts) {
    const auto page = page_of(good_header());
    for (size_t bit = 0; bit < 8*offsetof(header, filler); bit++) {
        auto changed = page;
        changed[bit/8] = (char) (changed[bit/8] ^ (1 << bit % 8));
        if (!CHECK(!is_good(changed, 6*MIB))) {
            return;
        }
    }
}

// Like a fuzzer: border values and random bytes with a valid checksum, to get past the first check.
TEST(manifest, nonsense_with_a_right_checksum_is_survived) {
    random_numbers random = { 1 };
    const uint64_t edges[] = { 0, 1, 4095, 4096, PAGE - 1, PAGE, PAGE + 1, 5*MIB, 8*MIB, GIB, UINT64_MAX/4, UINT64_MAX/2, UINT64_MAX - 4096, UINT64_MAX };
    const size_t n_edges = sizeof(edges)/sizeof(edges[0]);
    size_t n_good = 0;
    for (int i = 0; i < 200000; i++) {
        header h = good_header();
        uint64_t * const fields[] = { &h.size, &h.page_size, &h.segment, &h.n_segments };
        for (size_t n = random.below(4); n > 0; n--) {
            *fields[random.below(4)] = random.below(2) ? edges[random.below(n_edges)] : random.next() >> random.below(64);
        }
        auto * bytes = (char *) &h;
        for (size_t n = random.below(4); n > 0; n--) {
            bytes[8 + random.below(sizeof(h) - 8)] = (char) random.next();
        }
        if (random.below(16) == 0) {
            memset(h.source, 'x', sizeof(h.source));
        }
        h.checksum = ggml_hugepages_header_checksum(h);
        const uint64_t length    = random.below(2) ? 6*MIB : random.below(2) ? edges[random.below(n_edges)] : random.next() >> random.below(64);
        const uint64_t page_size = random.below(4) ? PAGE : edges[random.below(n_edges)];
        n_good += is_good(page_of(h), length, page_size);
    }
    // many of these headers differ only in name or time, so they pass all checks
    CHECK(n_good > 1000);
}

TEST(manifest, names_are_told_from_other_files) {
    CHECK(ggml_hugepages_resident_is_name("a.weights-0123456789abcdef.resident"));
    for (const char * name : { "", ".resident", "a.resident", ".a-0123456789abcdef.resident", "a-0123456789abcdeg.resident", "a-0123456789abcdef.resident2",
            "x/a-0123456789abcdef.resident", "a_0123456789abcdef.resident" }) {
        CHECK(!ggml_hugepages_resident_is_name(name));
    }
}

//
// a store
//

struct mounted {
    std::string dir;
    bool        ok = false;

    mounted() {
        dir = scratch_dir() + "/store-XXXXXX";
        ok  = mkdtemp(dir.data()) && mount("none", dir.c_str(), "hugetlbfs", 0, "pagesize=2M,mode=0755") == 0;
    }
    ~mounted() {
        umount2(dir.c_str(), MNT_DETACH);
        rmdir(dir.c_str());
    }
};

static uint64_t free_pages() {
    ggml_hugepages_pool pool = {};
    ggml_hugepages_pool_read("", PAGE, &pool);
    return pool.free - std::min(pool.free, pool.reserved);
}

// bytes that depend on their offset
struct source_file {
    int    fd;
    size_t size;

    explicit source_file(size_t size) : size(size) {
        std::string path = scratch_dir() + "/source-XXXXXX";
        fd = mkstemp(path.data());
        unlink(path.c_str());
        std::vector<uint64_t> words(size/sizeof(uint64_t));
        for (size_t i = 0; i < words.size(); i++) {
            words[i] = i*0x9e3779b97f4a7c15;
        }
        CHECK_EQ((size_t) pwrite(fd, words.data(), size, 0), size);
    }
    ~source_file() { close(fd); }
};

// One load of a whole file through a store.
struct resident_load {
    const source_file       & file;
    ggml_hugepages_params     params;
    ggml_hugepages_image_t    image;
    ggml_hugepages_resident_t resident;
    uint8_t                 * addr  = nullptr;
    ggml_hugepages_error      error = {};

    resident_load(const source_file & file, const std::string & dir, const char * identity = "file 0 bytes, modified 0.0, header 0") : file(file) {
        params = require(PAGE);
        params.n_threads = 1;
        snprintf(params.store, sizeof(params.store), "%s", dir.c_str());
        image    = ggml_hugepages_image_init(file.fd, file.size);
        resident = ggml_hugepages_resident_init(GGML_HUGEPAGES_KIND_WEIGHTS, file.fd, /*name =*/ nullptr, identity, file.size);
    }
    resident_load(const resident_load &) = delete;
    ~resident_load() {
        if (addr) {
            munmap(addr, ggml_hugepages_image_length(image));
        }
        ggml_hugepages_image_free(image);
        ggml_hugepages_resident_free(resident);
    }

    bool open(size_t first, size_t last) {
        ggml_hugepages_image_want(image, first, last, GGML_HUGEPAGES_RANK_LAYERS);
        ggml_hugepages_image_reside(image, resident);
        return ggml_hugepages_residents_open(&resident, 1, &params, nullptr, nullptr, &error);
    }
    bool fill(ggml_hugepages_progress_callback callback = nullptr, void * user_data = nullptr) {
        if (!ggml_hugepages_plan(&image, 1, nullptr, 0, &params, &error)) {
            return false;
        }
        addr = (uint8_t *) ggml_hugepages_image_map(image, &error);
        return addr && ggml_hugepages_overlay(&image, 1, &error) && ggml_hugepages_fill(&image, 1, nullptr, 0, &params, callback, user_data, &error);
    }
    bool run() { return open(0, file.size) && fill(); }

    bool is_right() const {
        for (size_t i = 0; i < file.size/sizeof(uint64_t); i++) {
            if (((const uint64_t *) addr)[i] != i*0x9e3779b97f4a7c15) {
                return false;
            }
        }
        return true;
    }
    // bytes that were read
    static uint64_t bytes_read() {
        const auto load = ggml_hugepages_last_load(0);
        return load.bytes_direct + load.bytes_cached + load.bytes_buffered;
    }
};

#define STORE_OR_SKIP(pages)                                  \
    mounted store;                                            \
    if (!store.ok)             { SKIP("no right to mount"); } \
    if (free_pages() < pages)  { SKIP("too few pages"); }     \
    const uint64_t before = free_pages()

TEST(store, the_second_load_attaches_and_reads_nothing) {
    STORE_OR_SKIP(10);
    const source_file file(9*MIB + 4096);
    {
        resident_load first(file, store.dir);
        REQUIRE(first.run());
        CHECK(first.is_right());
        CHECK_EQ(before - free_pages(), (uint64_t) 5);
        resident_load second(file, store.dir);
        REQUIRE(second.run());
        CHECK(second.is_right());
        CHECK_EQ(resident_load::bytes_read(), (uint64_t) 0);
        CHECK_EQ(before - free_pages(), (uint64_t) 5);
        // a different identity gives a different image
        resident_load other(file, store.dir, "file 1 bytes, modified 0.0, header 0");
        REQUIRE(other.run());
        CHECK_EQ(before - free_pages(), (uint64_t) 10);
    }
    CHECK_EQ(before - free_pages(), (uint64_t) 10);
}

TEST(store, what_is_missing_is_added_and_what_is_there_is_not_read_again) {
    STORE_OR_SKIP(8);
    const source_file file(9*MIB);
    {
        resident_load part(file, store.dir);
        REQUIRE(part.open(0, 3*MIB) && part.fill());
        CHECK_EQ(before - free_pages(), (uint64_t) 3); // two blocks, and one page for the manifest
    }
    resident_load whole(file, store.dir);
    REQUIRE(whole.run());
    CHECK(whole.is_right());
    CHECK_EQ(resident_load::bytes_read(), (uint64_t) 5*MIB);
}

TEST(store, who_dies_while_filling_leaves_whole_segments_and_no_lock) {
    STORE_OR_SKIP(24);
    const source_file file(40*MIB);
    for (int moment = 0; moment < 6; moment++) {
        const pid_t pid = fork();
        if (pid == 0) {
            resident_load dies(file, store.dir);
            int n = moment;
            dies.open(0, file.size);
            dies.fill([](uint64_t, uint64_t, void * left) { return --*(int *) left >= 0 ? true : (kill(getpid(), SIGKILL), true); }, &n);
            _exit(0);
        }
        int status = 0;
        REQUIRE_EQ(waitpid(pid, &status, 0), pid);
        {
            resident_load next(file, store.dir);
            REQUIRE(next.run());
            CHECK(next.is_right());
            CHECK_EQ(before - free_pages(), (uint64_t) 21);
        }
        const int dir = open(store.dir.c_str(), O_RDONLY | O_DIRECTORY);
        resident_load again(file, store.dir);
        REQUIRE(again.run());
        const std::string name = again.resident->file->name;
        CHECK(ggml_hugepages_resident_verify(dir, name.c_str(), nullptr, nullptr, &again.error));
        CHECK(!ggml_hugepages_resident_drop(dir, name.c_str(), false, &again.error));
        CHECK(ggml_hugepages_resident_drop(dir, name.c_str(), true, &again.error));
        close(dir);
        CHECK(again.is_right());
    }
    CHECK_EQ(before, free_pages());
}

TEST(store, a_cancelled_load_leaves_nothing) {
    STORE_OR_SKIP(24);
    const source_file file(40*MIB);
    // cancels at the first and at the second call; a later call may come after the end of the load
    for (int calls = 0; calls < 2; calls++) {
        resident_load load(file, store.dir);
        int left = calls;
        REQUIRE(load.open(0, file.size));
        const bool ok = load.fill([](uint64_t, uint64_t, void * n) { return --*(int *) n >= 0; }, &left);
        CHECK_EQ(ok, false);
        CHECK_EQ(load.error.status, GGML_HUGEPAGES_STATUS_ABORTED);
    }
    CHECK_EQ(before, free_pages());
}

TEST(store, an_image_at_any_stage_of_being_cut_or_changed_is_refused_or_right) {
    STORE_OR_SKIP(12);
    const source_file file(9*MIB);
    random_numbers random = { 7 };
    for (int i = 0; i < 40; i++) {
        std::string path;
        {
            resident_load first(file, store.dir);
            REQUIRE(first.run());
            path = first.resident->file->path;
        }
        const int fd = open(path.c_str(), O_RDWR);
        struct stat st = {};
        REQUIRE_EQ(fstat(fd, &st), 0);
        if (i % 4 == 0) {
            CHECK_EQ(ftruncate(fd, random.below(st.st_size/PAGE)*PAGE), 0);
        } else {
            auto * bytes = (uint8_t *) mmap(nullptr, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, st.st_size - PAGE);
            bytes[PAGE - 1 - random.below(offsetof(header, filler) + 4096 - sizeof(header))] ^= (uint8_t) (1 << random.below(8));
            munmap(bytes, PAGE);
        }
        close(fd);
        {
            resident_load next(file, store.dir);
            if (next.run()) {
                CHECK(next.is_right());
            } else {
                CHECK_EQ(next.error.status, GGML_HUGEPAGES_STATUS_INVALID);
                CHECK(next.error.hint[0] != '\0');
            }
        }
        unlink(path.c_str());
        CHECK_EQ(before, free_pages());
    }
}

// a load of a process whose threads are on other nodes than this machine has
static void place(const resident_load & load, const char * placement) {
    load.resident->file->placement = placement;
}

TEST(manifest, the_placement_is_the_last_line_of_an_identity) {
    const std::string rows = "placement rows, nodes 0 1, threads 64";
    CHECK_EQ(ggml_hugepages_placement_of(ggml_hugepages_identity_with("file a\nggml 1", rows)), rows);
    CHECK_EQ(ggml_hugepages_placement_of(ggml_hugepages_identity_with("file a\nggml 1", "")), std::string());
    CHECK_EQ(ggml_hugepages_placement_of("placement of a file\nggml 1"), std::string());
    // a long content keeps its hash, and the placement
    const std::string content(3000, 'x');
    const auto identity = ggml_hugepages_identity_with(content, rows);
    CHECK(identity.size() < sizeof(header::identity));
    CHECK_EQ(ggml_hugepages_placement_of(identity), rows);
    CHECK(ggml_hugepages_identity_with(content + "y", rows) != identity);
}

TEST(store, an_image_with_another_placement_is_used_and_its_own_is_preferred) {
    STORE_OR_SKIP(12);
    const source_file file(9*MIB + 4096);
    {
        resident_load two(file, store.dir);
        place(two, "placement rows, nodes 0 1, threads 4");
        REQUIRE(two.run());
        // used, also by a process without a placement, and by a plan
        resident_load four(file, store.dir);
        place(four, "placement rows, nodes 0 1 2 3, threads 4");
        REQUIRE(four.run());
        CHECK(four.is_right());
        CHECK_EQ(four.resident->file->name, two.resident->file->name);
        CHECK_EQ(resident_load::bytes_read(), (uint64_t) 0);
        resident_load anywhere(file, store.dir);
        REQUIRE(anywhere.run());
        CHECK_EQ(anywhere.resident->file->name, two.resident->file->name);
        resident_load planned(file, store.dir);
        place(planned, "placement rows, nodes 0 1 2 3, threads 4");
        planned.params.plan_only = true;
        CHECK(planned.open(0, file.size));
        CHECK(ggml_hugepages_resident_is_complete(planned.resident));
        CHECK_EQ(before - free_pages(), (uint64_t) 5);
        // other content is not
        resident_load other(file, store.dir, "file 1 bytes, modified 0.0, header 0");
        place(other, "placement rows, nodes 0 1, threads 4");
        REQUIRE(other.run());
        CHECK(other.resident->file->name != two.resident->file->name);
    }
    CHECK_EQ(before - free_pages(), (uint64_t) 10);
}

TEST(store, an_incomplete_image_with_another_placement_is_not_used) {
    STORE_OR_SKIP(12);
    const source_file file(9*MIB + 4096);
    {
        resident_load part(file, store.dir);
        place(part, "placement rows, nodes 0 1, threads 4");
        REQUIRE(part.open(0, 3*MIB) && part.fill());
    }
    std::string own;
    {
        resident_load whole(file, store.dir);
        place(whole, "placement rows, nodes 0 1, threads 6");
        REQUIRE(whole.run());
        CHECK(whole.is_right());
        own = whole.resident->file->name;
    }
    // both exist, and each load takes its own
    resident_load again(file, store.dir);
    place(again, "placement rows, nodes 0 1, threads 6");
    REQUIRE(again.run());
    CHECK_EQ(again.resident->file->name, own);
    CHECK_EQ(resident_load::bytes_read(), (uint64_t) 0);
}

//
// contexts
//

// A KV cache of 3 MiB and a journal of 1 MiB.
struct context_load {
    ggml_hugepages_params     params;
    ggml_hugepages_resident_t resident;
    uint8_t                 * kv    = nullptr;
    ggml_hugepages_error      error = {};

    context_load(const source_file & file, const std::string & dir, const char * identity = "file 0 bytes, modified 0.0, header 0\ncontext") {
        params = require(PAGE);
        params.keep_context  = true;
        params.kv_bytes      = 4*MIB;
        params.context_bytes = 1*MIB;
        params.model_id      = 7;
        snprintf(params.store, sizeof(params.store), "%s", dir.c_str());
        resident = ggml_hugepages_context_init(file.fd, nullptr, identity, params.kv_bytes + params.context_bytes);
    }
    context_load(const context_load &) = delete;
    ~context_load() { end(); }

    void end() {
        if (kv) {
            ggml_hugepages_buffer_free(kv, 3*MIB);
        }
        kv = nullptr;
        ggml_hugepages_resident_free(resident);
        resident = nullptr;
        ggml_hugepages_hold_end(params.model_id);
    }
    bool hold() { return ggml_hugepages_context_open(resident, &params, &error) && ggml_hugepages_context_hold(resident, &params, &error); }
    bool run() {
        if (!hold()) {
            return false;
        }
        ggml_hugepages_scope scope = {};
        scope.params = params;
        scope.kind   = GGML_HUGEPAGES_KIND_KV;
        const auto * before = ggml_hugepages_scope_set(&scope);
        kv = (uint8_t *) ggml_hugepages_buffer_alloc(3*MIB);
        ggml_hugepages_scope_set(before);
        return kv != nullptr;
    }
    uint8_t * journal(bool * is_old) const {
        size_t size = 0;
        auto * result = (uint8_t *) ggml_hugepages_context_journal(kv, &size, is_old);
        CHECK(!result || size >= MIB);
        return result;
    }
};

static std::vector<std::string> names_in(const std::string & dir) {
    std::vector<std::string> names;
    const int fd = open(dir.c_str(), O_RDONLY | O_DIRECTORY);
    ggml_hugepages_each_image(fd, [&](const char * name) { names.emplace_back(name); });
    close(fd);
    return names;
}

TEST(store, a_context_remains_after_any_end_and_belongs_to_one_process) {
    const mounted store;
    REQUIRE(store.ok);
    const source_file file(5*MIB);
    const uint64_t before = free_pages();
    bool is_old = true;
    {
        context_load first(file, store.dir);
        REQUIRE(first.run());
        uint8_t * journal = first.journal(&is_old);
        REQUIRE(journal);
        CHECK(!is_old);
        CHECK_EQ((size_t) (journal - first.kv), 4*MIB);
        CHECK_EQ(std::count(first.kv, first.kv + 5*MIB, 0), (ptrdiff_t) (5*MIB));
        first.kv[0] = 1;
        journal[0]  = 2;
        CHECK_EQ(before - free_pages(), 3u);

        context_load second(file, store.dir);
        CHECK(!second.run());
        CHECK_SAYS(second.error.message, "process " + std::to_string(getpid()), "uses");
        struct stat st = {};
        REQUIRE(names_in(store.dir).size() == 1);
        CHECK_EQ(stat((store.dir + "/" + names_in(store.dir)[0]).c_str(), &st), 0);
        CHECK_EQ(st.st_mode & 0777, 0600u);
    }
    // a killed process
    const pid_t pid = fork();
    if (pid == 0) {
        context_load child(file, store.dir);
        if (child.run()) {
            child.kv[1] = 3;
            raise(SIGKILL);
        }
        _exit(1);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    CHECK(WIFSIGNALED(status));
    context_load next(file, store.dir);
    REQUIRE(next.run());
    CHECK_EQ(*next.journal(&is_old), 2);
    CHECK(is_old);
    CHECK(next.kv[0] == 1 && next.kv[1] == 3);
    CHECK_EQ(before - free_pages(), 3u);

    const int dir_fd = open(store.dir.c_str(), O_RDONLY | O_DIRECTORY);
    ggml_hugepages_error error = {};
    CHECK(!ggml_hugepages_resident_drop(dir_fd, names_in(store.dir)[0].c_str(), false, &error));
    CHECK(ggml_hugepages_resident_verify(dir_fd, names_in(store.dir)[0].c_str(), nullptr, nullptr, &error));
    next.end();
    CHECK(ggml_hugepages_resident_drop(dir_fd, names_in(store.dir)[0].c_str(), false, &error));
    close(dir_fd);
    CHECK_EQ(free_pages(), before);
}

TEST(store, a_context_of_a_failed_load_leaves_nothing_unless_it_is_old) {
    const mounted store;
    REQUIRE(store.ok);
    const source_file file(5*MIB);
    const uint64_t before = free_pages();
    {
        context_load failed(file, store.dir);
        REQUIRE(failed.hold());
    }
    CHECK(names_in(store.dir).empty());
    CHECK_EQ(free_pages(), before);
    {
        context_load first(file, store.dir);
        REQUIRE(first.run());
    }
    {
        context_load failed(file, store.dir);
        REQUIRE(failed.hold());
    }
    CHECK_EQ(names_in(store.dir).size(), 1u);
    {
        // another identity is another context, and nobody may read it
        context_load other(file, store.dir, "file 0 bytes, modified 0.0, header 0\nanother context");
        REQUIRE(other.run());
        bool is_old = true;
        CHECK(other.journal(&is_old) && !is_old);
    }
    CHECK_EQ(names_in(store.dir).size(), 2u);
    for (const auto & name : names_in(store.dir)) {
        CHECK_EQ(chmod((store.dir + "/" + name).c_str(), 0644), 0);
    }
    context_load readable(file, store.dir);
    CHECK(!readable.run());
    CHECK_SAYS(readable.error.message, "other users may read it");
}
