#pragma once

// The huge page options of llama-bench: lists of values, as all of its options are.

#include "llama.h"

#include <string>
#include <vector>

struct bench_hugepages {
    std::vector<bool>                  enabled;
    std::vector<ggml_hugepages_policy> policy;
    std::vector<size_t>                page_size;

    static const char * usage();
    static bool is_option(const std::string & arg);

    // Appends the values to the list of the option. Throws std::invalid_argument.
    void parse(const std::string & arg, const std::string & values);

    // Everything to run. Without huge pages policy and size say nothing, so that is one combination.
    std::vector<ggml_hugepages_params> combinations(ggml_numa_strategy numa) const;

    // the fields that are worth a column
    std::vector<std::string> columns() const;

    // does a run need another model in memory?
    static bool equal(const ggml_hugepages_params & a, const ggml_hugepages_params & b);

    // Errors only: without --verbose nothing else would say how many pages are missing.
    static void log(ggml_log_level level, const char * text, void * user_data);

    // With "prefer" the values of a row do not say how much there was: a line for each change of it.
    static void report(const ggml_hugepages_params & params);
};
