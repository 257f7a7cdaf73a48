#pragma once

// threads that populate pages and read files into them

#include "direct-io.h"
#include "shortage.h"
#include "staging.h"
#include "stopwatch.h"
#include "store-file.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

// a page larger than a chunk: the first thread that needs it populates it
struct ggml_hugepages_large_page {
    std::mutex mutex;
    enum { UNTOUCHED, POPULATED, DROPPED } state = UNTOUCHED;
};

struct ggml_hugepages_job {
    ggml_hugepages_image       * image;
    ggml_hugepages_source                   * from;      // nullptr for a buffer
    const ggml_hugepages_piece * piece;     // nullptr for a chunk of a block
    size_t                       first;
    size_t                       last;      // may be behind the end of the file
    size_t                       page_size; // of the block
    ggml_hugepages_large_page                 * large;     // the page that contains the chunk, or nullptr
    size_t                       turn;      // jobs are taken in this order
    ggml_hugepages_store_file  * store = nullptr; // the file in the store that contains the chunk, or nullptr
};

struct ggml_hugepages_reader {
    std::vector<std::unique_ptr<ggml_hugepages_source>>     sources;
    std::vector<std::unique_ptr<ggml_hugepages_large_page>> large_pages;
    std::vector<ggml_hugepages_job>                         jobs;

    std::atomic<size_t>   next{0};
    std::atomic<uint64_t> done{0}; // wanted bytes
    uint64_t              total = 0;
    std::atomic<bool>     stop{false};

    // bytes of one read: small enough that a load from a slow device can be cancelled and shows progress
    std::atomic<size_t>   read_size{1024*1024};
    std::atomic<uint64_t> bytes_direct{0}, bytes_cached{0}, bytes_buffered{0};
    std::atomic<uint64_t> us_populate{0}, us_read{0}, us_place{0};
    uint64_t              bytes_attached = 0;

    std::mutex              mutex; // for the fields below, and the runs of the images
    std::condition_variable changed;
    size_t                  n_running = 0;
    size_t                  n_started = 0; // set at the end of run()
    size_t                  n_staged  = 0; // bytes of staging buffers in use
    std::vector<std::unique_ptr<ggml_hugepages_staging>> unused; // reused for later pieces
    size_t                  n_free_cpus = std::max(1u, std::thread::hardware_concurrency()); // for pieces
    bool                    failed    = false;
    ggml_hugepages_error    error     = {};
    ggml_hugepages_image *  refused   = nullptr; // the image that got no page
    ggml_hugepages_refusal  refusal   = {};

    void fail(const ggml_hugepages_error & e);

    void fail_invalid(const ggml_hugepages_job & j);

    // Reads [first, last) of the file, at most up to its end, to dst. dst has room up to the next multiple of the alignment. Returns false
    // after a failure or a stop.
    bool read(ggml_hugepages_source & from, size_t first, size_t last, uint8_t * dst, const std::function<void(size_t, size_t)> & on_read);

    // Counts the sources of the bytes of [first, last), and drops new pages from the page cache.
    void count(ggml_hugepages_source & from, size_t first, size_t last, ggml_hugepages_cached state, size_t n_before, size_t n_direct, size_t n_other);

    // lets the policy decide: ordinary memory replaces the pages, or the load ends
    bool on_shortage(const ggml_hugepages_job & j, size_t first, size_t last, int err);

    // Returns the end of the populated part of the chunk: all of it, or the part before the first refused page.
    size_t populate(const ggml_hugepages_job & j);

    void read_chunk(const ggml_hugepages_job & j);

    // A thread that copies or places pieces. There are no more of them than CPUs, and any number of threads that wait for the device.
    struct cpu {
        ggml_hugepages_reader & reader;
        explicit cpu(ggml_hugepages_reader & reader);
        cpu(const cpu &) = delete;
        ~cpu();
    };

    // memory for a piece, when the limit allows it
    std::unique_ptr<ggml_hugepages_staging> take_staging(size_t size);
    void return_staging(std::unique_ptr<ggml_hugepages_staging> buf, size_t size);

    // passes bytes [first, last) of the file, a part of the piece, to its callback
    void place(const ggml_hugepages_job & j, const uint8_t * data, size_t first, size_t last);

    void read_piece(const ggml_hugepages_job & j);

    void work();

    // the parts of [first, last) to read: of a resident image only missing segments
    static ggml_hugepages_ranges missing(const ggml_hugepages_image & image, const ggml_hugepages_run & run, size_t first, size_t last);

    // ahead: only runs that the engine cannot reserve, or whose refusal after the read would be too late
    void add_image(ggml_hugepages_image & image, ggml_hugepages_source * from, bool ahead);

    // Returns false if the callback cancels. Starts n_threads, and more up to max_threads as long as they speed up the device.
    bool run(size_t n_threads, size_t max_threads, ggml_hugepages_progress_callback callback, void * user_data);

    // starts threads until n run
    void start(std::vector<std::thread> & threads, size_t n);
};
