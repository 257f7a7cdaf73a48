#pragma once

// The huge page options of llama-bench: lists of values, like its other options.

#include "hugepages.h"
#include "llama.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

struct bench_hugepages {
    std::vector<bool>                  enabled;
    std::vector<ggml_hugepages_policy> policy;
    std::vector<size_t>                page_size;

    static const char * usage();

    // Takes the option argv[i] and its list of values. Returns false for other options. Throws std::invalid_argument for an invalid value,
    // and sets invalid_param if the list is missing.
    bool parse(const std::string & arg, int argc, char ** argv, int & i, bool & invalid_param);

    // Repeats the runs of each model for each combination of the values, so that the model is loaded once for a combination. Without
    // verbose, prints errors if the option is on, because only they contain the number of missing pages.
    template <typename Run> void begin(std::vector<Run> & runs, ggml_numa_strategy numa, bool verbose) const {
        if (enabled.empty()) {
            return;
        }
        if (!verbose) {
            llama_log_set(log_errors, nullptr);
        }
        std::vector<Run> result;
        for (auto first = runs.begin(), last = first; first != runs.end(); first = last) {
            last = std::find_if(first, runs.end(), [&](const Run & run) { return run.model != first->model; });
            for (const auto & params : combinations(numa)) {
                for (auto run = first; run != last; ++run) {
                    result.push_back(*run);
                    result.back().hugepages = params;
                }
            }
        }
        runs = std::move(result);
    }

    // adds the fields that get a column
    void add_columns(std::vector<std::string> & fields) const;

    // whether both runs can use the same loaded model
    static bool equal(const ggml_hugepages_params & a, const ggml_hugepages_params & b);

    // With "prefer", a row does not show how much memory is on huge pages, so this prints a line for each change.
    static void report(const ggml_hugepages_params & params);

private:
    void add_values(const std::string & arg, const std::string & values);

    // All combinations to run. Without huge pages, policy and size have no effect, so this is one combination.
    std::vector<ggml_hugepages_params> combinations(ggml_numa_strategy numa) const;

    static void log_errors(ggml_log_level level, const char * text, void * user_data);
};
