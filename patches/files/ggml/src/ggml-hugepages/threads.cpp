#ifdef __linux__

#include "threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <system_error>
#include <thread>
#include <vector>

size_t ggml_hugepages_n_threads(const ggml_hugepages_params & params) {
    // can be more than the cores, because the threads wait for the disk
    return params.n_threads > 0 ? params.n_threads : std::min<size_t>(8, std::max<size_t>(4, std::thread::hardware_concurrency()));
}

static thread_local bool t_is_own = false;

void ggml_hugepages_own_thread_begin() {
    t_is_own = true;
}

bool ggml_hugepages_is_own_thread() noexcept {
    return t_is_own;
}

void ggml_hugepages_on_threads(size_t n, const std::function<void()> & work, const std::function<void()> & idle) {
    std::atomic<size_t> running{0};
    std::vector<std::thread> threads;
    try {
        while (threads.size() < n) {
            running++;
            threads.emplace_back([&] {
                ggml_hugepages_own_thread_begin();
                work();
                running--;
            });
        }
    } catch (const std::system_error &) {
        running--; // the thread that did not start; the others do all the work
    }
    if (threads.empty()) {
        work();
    }
    while (idle && running > 0) {
        idle();
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    for (auto & thread : threads) {
        thread.join();
    }
}

#endif // __linux__
