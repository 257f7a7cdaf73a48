#include "llama-bench-hugepages.h"

#include "common.h"

#include <cstdio>
#include <stdexcept>

const char * bench_hugepages::usage() {
    return
        "  --hugepages <0|1>                                 (default: 0)\n"
        "  --hugepage-policy <require|prefer>                (default: require)\n"
        "  --hugepage-size <auto|2M|1G|...|thp>              (default: auto)\n";
}

bool bench_hugepages::parse(const std::string & arg, int argc, char ** argv, int & i, bool & invalid_param) {
    if (arg != "--hugepages" && arg != "--hugepage-policy" && arg != "--hugepage-size") {
        return false;
    }
    if (++i < argc) {
        add_values(arg, argv[i]);
    } else {
        invalid_param = true;
    }
    return true;
}

void bench_hugepages::add_values(const std::string & arg, const std::string & values) {
    for (const auto & value : string_split<std::string>(values, ',')) {
        ggml_hugepages_params p = ggml_hugepages_default_params();
        if (arg == "--hugepages" && (value == "0" || value == "1")) {
            enabled.push_back(value == "1");
        } else if (arg == "--hugepage-policy" && ggml_hugepages_policy_from_str(value.c_str(), &p.policy)) {
            policy.push_back(p.policy);
        } else if (arg == "--hugepage-size" && ggml_hugepages_size_from_str(value.c_str(), &p.page_size)) {
            page_size.push_back(p.page_size);
        } else {
            throw std::invalid_argument("invalid value: \"" + value + "\"");
        }
    }
}

template <typename T> static std::vector<T> or_default(const std::vector<T> & values, T value) {
    return values.empty() ? std::vector<T>{ value } : values;
}

std::vector<ggml_hugepages_params> bench_hugepages::combinations(ggml_numa_strategy numa) const {
    const auto defaults = ggml_hugepages_default_params();

    std::vector<ggml_hugepages_params> result;
    for (const bool on : or_default(enabled, defaults.enabled)) {
        if (!on) {
            result.push_back(defaults);
            continue;
        }
        for (const auto pol : or_default(policy, defaults.policy)) {
            for (const auto size : or_default(page_size, defaults.page_size)) {
                common_params params;
                params.numa                = numa;
                params.hugepages           = defaults;
                params.hugepages.enabled   = true;
                params.hugepages.policy    = pol;
                params.hugepages.page_size = size;
                result.push_back(common_hugepages_params(params));
            }
        }
    }
    return result;
}

void bench_hugepages::add_columns(std::vector<std::string> & fields) const {
    bool differs[3] = {};
    const auto defaults = ggml_hugepages_default_params();
    for (const auto & p : combinations(GGML_NUMA_STRATEGY_DISABLED)) {
        differs[0] |= p.enabled   != defaults.enabled;
        differs[1] |= p.policy    != defaults.policy;
        differs[2] |= p.page_size != defaults.page_size;
    }
    if (differs[0]) {
        fields.emplace_back("hugepages");
    }
    if (differs[1]) {
        fields.emplace_back("hugepage_policy");
    }
    if (differs[2]) {
        fields.emplace_back("hugepage_size");
    }
}

bool bench_hugepages::equal(const ggml_hugepages_params & a, const ggml_hugepages_params & b) {
    return a.enabled == b.enabled && a.policy == b.policy && a.page_size == b.page_size;
}

void bench_hugepages::log_errors(ggml_log_level level, const char * text, void * /*user_data*/) {
    static bool is_error = false;
    if (level != GGML_LOG_LEVEL_CONT) {
        is_error = level == GGML_LOG_LEVEL_ERROR;
    }
    if (is_error) {
        fputs(text, stderr);
    }
}

void bench_hugepages::report(const ggml_hugepages_params & params) {
    ggml_hugepages_report report;
    if (!params.enabled || params.policy == GGML_HUGEPAGES_POLICY_REQUIRE || !ggml_hugepages_get_report(0, &report)) {
        return;
    }
    char text[4096];
    ggml_hugepages_report_to_str(&report, text, sizeof(text));
    const std::string table = text;
    const std::string line  = table.substr(table.rfind('\n') + 1);

    static std::string last;
    if (line != last) {
        fprintf(stderr, "llama-bench: hugepages: %s\n", line.c_str());
        last = line;
    }
}
