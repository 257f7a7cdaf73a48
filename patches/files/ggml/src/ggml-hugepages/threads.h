#pragma once

#include "ggml-hugepages.h"

#include <functional>

// number of threads that populate and read
size_t ggml_hugepages_n_threads(const ggml_hugepages_params & params);

// every thread that the engine starts calls it first: see ggml_hugepages_is_own_thread
void ggml_hugepages_own_thread_begin();

// Runs the work on up to n threads, or on this thread if none starts. Calls idle repeatedly until all threads are done.
void ggml_hugepages_on_threads(size_t n, const std::function<void()> & work, const std::function<void()> & idle = nullptr);
