#pragma once

// The huge page options of llama-bench: lists of values, like its other options.

#include "llama.h"

#include <string>
#include <vector>

struct bench_hugepages {
    std::vector<bool>                  enabled;
    std::vector<ggml_hugepages_policy> policy;
    std::vector<size_t>                page_size;

    static const char * usage();
    static bool is_option(const std::string & arg);

    // Adds the values to the list of the option. Throws std::invalid_argument.
    void parse(const std::string & arg, const std::string & values);

    // All combinations to run. Without huge pages, policy and size have no effect, so this is one combination.
    std::vector<ggml_hugepages_params> combinations(ggml_numa_strategy numa) const;

    // the fields that get a column
    std::vector<std::string> columns() const;

    // whether both runs can use the same loaded model
    static bool equal(const ggml_hugepages_params & a, const ggml_hugepages_params & b);

    // Prints only errors: without --verbose nothing else would print the number of missing pages.
    static void log(ggml_log_level level, const char * text, void * user_data);

    // With "prefer", a row does not show how much memory is on huge pages, so this prints a line for each change.
    static void report(const ggml_hugepages_params & params);
};
