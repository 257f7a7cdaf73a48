// The options from the environment, for programs that know nothing of huge pages: bindings and their users change no code.

#include "ggml-hugepages.h"

#include "ggml-impl.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// the words of common_arg
static bool is_one_of(const char * value, const char * const (&words)[4]) {
    for (const char * word : words) {
        if (strcmp(value, word) == 0) {
            return true;
        }
    }
    return false;
}

static bool parse_bool(const char * value, ggml_hugepages_params & params) {
    params.enabled = is_one_of(value, { "1", "on", "true", "enabled" });
    return params.enabled || is_one_of(value, { "0", "off", "false", "disabled" });
}

static bool parse_policy(const char * value, ggml_hugepages_params & params) {
    return ggml_hugepages_policy_from_str(value, &params.policy);
}

static bool parse_size(const char * value, ggml_hugepages_params & params) {
    return ggml_hugepages_size_from_str(value, &params.page_size);
}

static bool parse_store(const char * value, ggml_hugepages_params & params) {
    const int n = snprintf(params.store, sizeof(params.store), "%s", value);
    return n > 0 && (size_t) n < sizeof(params.store);
}

static bool parse_threads(const char * value, ggml_hugepages_params & params) {
    char * end = nullptr;
    const long n = strtol(value, &end, 10);
    params.n_threads = (uint32_t) n;
    return end != value && *end == '\0' && n >= 1 && n <= 256;
}

// set_mempolicy(2), and the placement of --numa distribute
static bool parse_placement(const char * value, ggml_hugepages_params & params) {
    static constexpr struct {
        const char *             name;
        ggml_hugepages_placement placement;
    } placements[] = {
        { "default",    GGML_HUGEPAGES_PLACEMENT_DEFAULT    },
        { "interleave", GGML_HUGEPAGES_PLACEMENT_INTERLEAVE },
        { "local",      GGML_HUGEPAGES_PLACEMENT_LOCAL      },
        { "bind",       GGML_HUGEPAGES_PLACEMENT_BIND       },
        { "rows",       GGML_HUGEPAGES_PLACEMENT_ROWS       },
    };
    for (const auto & p : placements) {
        if (strcmp(value, p.name) == 0) {
            params.placement = p.placement;
            return true;
        }
    }
    return false;
}

ggml_hugepages_params ggml_hugepages_env_params(void) noexcept {
    static constexpr struct {
        const char * name;
        bool (*parse)(const char * value, ggml_hugepages_params & params);
    } variables[] = {
        { "LLAMA_ARG_HUGEPAGES",          parse_bool      },
        { "LLAMA_ARG_HUGEPAGE_POLICY",    parse_policy    },
        { "LLAMA_ARG_HUGEPAGE_SIZE",      parse_size      },
        { "LLAMA_ARG_HUGEPAGE_STORE",     parse_store     },
        { "LLAMA_ARG_HUGEPAGE_THREADS",   parse_threads   },
        { "LLAMA_ARG_HUGEPAGE_PLACEMENT", parse_placement },
    };
    auto result = ggml_hugepages_default_params();
    if (getenv("LLAMA_ARG_NO_HUGEPAGES")) {
        return result;
    }
    for (const auto & variable : variables) {
        const char * value = getenv(variable.name);
        if (value && !variable.parse(value, result)) {
            // a library must not end its program, and a program asks for the defaults again and again
            static std::atomic<bool> is_told{false};
            if (!is_told.exchange(true)) {
                GGML_LOG_WARN("%s: huge pages stay off, because %s has the invalid value '%s'\n", __func__, variable.name, value);
            }
            return ggml_hugepages_default_params();
        }
    }
    return result;
}
