#include "rpc-hugepages.h"

#include "ggml-hugepages.h"

#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

static bool set_enabled(const std::string & value, ggml_hugepages_params & params) {
    // NOTE: same as common_arg for environment variables
    for (const char * yes : { "on", "enabled", "true", "1" }) {
        if (value == yes) {
            params.enabled = true;
            return true;
        }
    }
    for (const char * no : { "off", "disabled", "false", "0" }) {
        if (value == no) {
            params.enabled = false;
            return true;
        }
    }
    return false;
}

static bool set_policy(const std::string & value, ggml_hugepages_params & params) {
    return ggml_hugepages_policy_from_str(value.c_str(), &params.policy);
}

static bool set_size(const std::string & value, ggml_hugepages_params & params) {
    return ggml_hugepages_size_from_str(value.c_str(), &params.page_size);
}

struct option {
    const char * arg;
    const char * env;
    bool (* set)(const std::string & value, ggml_hugepages_params & params);
};

static const option options[] = {
    { "--hugepages",       "LLAMA_ARG_HUGEPAGES",       set_enabled },
    { "--hugepage-policy", "LLAMA_ARG_HUGEPAGE_POLICY", set_policy  },
    { "--hugepage-size",   "LLAMA_ARG_HUGEPAGE_SIZE",   set_size    },
};

// what the command line sets, in order; begin() checks the values
struct setting {
    const option * opt;
    std::string    value;
};

static std::vector<setting> from_args;
static bool is_value_missing = false;

// The environment, then the command line. Without on_error, skips invalid values.
static bool read_settings(ggml_hugepages_params & params, void (* on_error)(const char * name, const std::string & value)) {
    for (const auto & opt : options) {
        const char * value = std::getenv(opt.env);
        if (value && !opt.set(value, params) && on_error) {
            on_error(opt.env, value);
            return false;
        }
    }
    for (const auto & [opt, value] : from_args) {
        if (!opt->set(value, params) && on_error) {
            on_error(opt->arg, value);
            return false;
        }
    }
    return !is_value_missing;
}

bool rpc_hugepages_take_arg(int argc, char ** argv, int & i) {
    const std::string arg = argv[i];
    if (arg == "--hugepages" || arg == "--no-hugepages") {
        from_args.push_back({ &options[0], arg == "--hugepages" ? "on" : "off" });
        return true;
    }
    for (const auto & opt : options) {
        if (arg == opt.arg) {
            if (++i < argc) {
                from_args.push_back({ &opt, argv[i] });
            } else {
                is_value_missing = true;
            }
            return true;
        }
    }
    return false;
}

static std::string size_name(ggml_hugepages_backing backing, size_t page_size) {
    char buf[32];
    ggml_hugepages_backing_to_str(backing, page_size, buf, sizeof(buf));
    return buf;
}

void rpc_hugepages_print_usage() {
    ggml_hugepages_params params = ggml_hugepages_default_params();
    read_settings(params, nullptr);
    fprintf(stderr, "  --hugepages, --no-hugepages      whether to allocate the CPU device's memory on huge pages (default: %s)\n", params.enabled ? "enabled" : "disabled");
    fprintf(stderr, "  --hugepage-policy POLICY         require: refuse a client that needs more huge pages than are usable\n");
    fprintf(stderr, "                                   prefer: use the usable huge pages, then ordinary memory (default: %s)\n", ggml_hugepages_policy_name(params.policy));
    fprintf(stderr, "  --hugepage-size SIZE             page size: auto, thp, or the size of a pool of this kernel, such as 2M or 1G (default: auto)\n");
}

bool rpc_hugepages_begin() {
    // The reply to a client that gave up must not end the worker.
    signal(SIGPIPE, SIG_IGN);
    ggml_hugepages_params params = ggml_hugepages_default_params();
    const auto print = [](const char * name, const std::string & value) {
        fprintf(stderr, "error: invalid value of %s: %s\n", name, value.c_str());
    };
    if (!read_settings(params, print)) {
        fprintf(stderr, "Invalid parameters\n");
        return false;
    }
    if (!params.enabled) {
        return true;
    }
    if (params.page_size == GGML_HUGEPAGES_SIZE_THP) {
        printf("hugepages: %s, thp\n", ggml_hugepages_policy_name(params.policy));
    } else {
        std::vector<size_t> sizes(16);
        sizes.resize(ggml_hugepages_page_sizes("", sizes.data(), sizes.size()));
        bool has_pool = false;
        for (const size_t page_size : sizes) {
            ggml_hugepages_pool pool;
            if ((params.page_size != GGML_HUGEPAGES_SIZE_AUTO && params.page_size != page_size) || !ggml_hugepages_pool_read("", page_size, &pool)) {
                continue;
            }
            has_pool = true;
            const uint64_t usable = ggml_hugepages_pool_usable(&pool);
            printf("hugepages: %s, pool of %s: %" PRIu64 " usable pages (%.2f MiB)\n", ggml_hugepages_policy_name(params.policy),
                size_name(GGML_HUGEPAGES_BACKING_HUGE, page_size).c_str(), usable, usable*(page_size/1024.0/1024.0));
        }
        if (!has_pool && params.policy == GGML_HUGEPAGES_POLICY_REQUIRE) {
            fprintf(stderr, "error: this kernel has no pool of huge pages%s\n",
                params.page_size == GGML_HUGEPAGES_SIZE_AUTO ? "" : (" of " + size_name(GGML_HUGEPAGES_BACKING_HUGE, params.page_size)).c_str());
            return false;
        }
    }
    fflush(stdout);

    const ggml_hugepages_scope scope = { params, GGML_HUGEPAGES_KIND_OTHER, /*.late =*/ false, /*.lazy =*/ false, /*.resident =*/ nullptr, /*.matrices =*/ nullptr, /*.n_matrices =*/ 0 };
    ggml_hugepages_scope_set_default(&scope);
    return true;
}
