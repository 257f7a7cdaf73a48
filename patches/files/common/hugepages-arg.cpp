#include "hugepages.h"

#include "arg.h"
#include "common.h"

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

void common_hugepages_add_options(common_params & params, const std::function<void(common_arg)> & add_opt) {
    // a router starts one model after the other, and most of them are idle
    params.hugepages.evict = std::getenv("LLAMA_SERVER_ROUTER_PORT") != nullptr;
    add_opt(common_arg(
        {"--hugepages"},
        {"--no-hugepages"},
        string_format("put weights, KV cache and buffers that the CPU reads on huge pages (default: %s)", params.hugepages.enabled ? "enabled" : "disabled"),
        [](common_params & params, bool value) {
            params.hugepages.enabled = value;
        }
    ).set_env("LLAMA_ARG_HUGEPAGES"));
    add_opt(common_arg(
        {"--hugepage-policy"}, "{require,prefer}",
        string_format("reaction to a shortage of huge pages (default: %s)\n"
        "- require: do not load the model, and print the number of missing pages\n"
        "- prefer: use the usable pages, the rest of the memory stays as without --hugepages", ggml_hugepages_policy_name(params.hugepages.policy)),
        [](common_params & params, const std::string & value) {
            if (!ggml_hugepages_policy_from_str(value.c_str(), &params.hugepages.policy)) {
                throw std::invalid_argument("invalid value");
            }
        }
    ).set_env("LLAMA_ARG_HUGEPAGE_POLICY"));
    add_opt(common_arg(
        {"--hugepage-size"}, "{auto,2M,1G,...,thp}",
        "size of the huge pages, the kernel must have a pool of this size (default: auto)\n"
        "- auto: the largest pages that fit, smaller pages for the rest\n"
        "- thp: no pool, anonymous memory that the kernel may put on transparent huge pages",
        [](common_params & params, const std::string & value) {
            if (!ggml_hugepages_size_from_str(value.c_str(), &params.hugepages.page_size)) {
                throw std::invalid_argument("expected auto, thp or a size such as 2M or 1G");
            }
        }
    ).set_env("LLAMA_ARG_HUGEPAGE_SIZE"));
    add_opt(common_arg(
        {"--hugepage-threads"}, "N",
        "number of threads that read the model (default: depends on the number of cores, grows while more threads speed up the disk)",
        [](common_params & params, int value) {
            if (value < 1 || value > 256) {
                throw std::invalid_argument("expected a number between 1 and 256");
            }
            params.hugepages.n_threads = value;
        }
    ).set_env("LLAMA_ARG_HUGEPAGE_THREADS"));
    add_opt(common_arg(
        {"--hugepage-drop-cache"},
        "drop the model from the page cache after the load (default: disabled)",
        [](common_params & params) {
            params.hugepages.drop_cache = true;
        }
    ).set_env("LLAMA_ARG_HUGEPAGE_DROP_CACHE"));
    add_opt(common_arg(
        {"--hugepage-store"}, "{auto,DIR}",
        "keep the weights in this hugetlbfs directory after the program ends, and attach to weights that are already there (default: none)\n"
        "- auto: the first store that this user may use, see 'hugepages store mount'",
        [](common_params & params, const std::string & value) {
            if (value.empty() || value.size() >= sizeof(params.hugepages.store)) {
                throw std::invalid_argument("the path is empty or too long");
            }
            snprintf(params.hugepages.store, sizeof(params.hugepages.store), "%s", value.c_str());
        }
    ).set_env("LLAMA_ARG_HUGEPAGE_STORE"));
    add_opt(common_arg(
        {"--hugepage-evict"},
        {"--no-hugepage-evict"},
        "if pages are short, remove images from the store that no process uses, the longest unused first (default: disabled; enabled for the models of a router)",
        [](common_params & params, bool value) {
            params.hugepages.evict = value;
        }
    ).set_env("LLAMA_ARG_HUGEPAGE_EVICT"));
    add_opt(common_arg(
        {"--hugepage-verify"},
        "compare the weights in the store with their checksums before use (default: disabled)",
        [](common_params & params) {
            params.hugepages.verify = true;
        }
    ).set_env("LLAMA_ARG_HUGEPAGE_VERIFY"));
    add_opt(common_arg(
        {"--hugepage-keep-context"},
        {"--no-hugepage-keep-context"},
        "keep the KV cache in the store after the server ends, so that the next server with the same arguments continues its conversations; "
        "only its user may read it (default: disabled)",
        [](common_params & params, bool value) {
            params.hugepages.keep_context = value;
        }
    ).set_examples({LLAMA_EXAMPLE_SERVER}).set_env("LLAMA_ARG_HUGEPAGE_KEEP_CONTEXT"));
    add_opt(common_arg(
        {"--hugepage-wipe-context"},
        "remove the kept KV cache when the server exits; it remains while the server sleeps, and if the server is killed by SIGKILL or a second Ctrl-C (default: disabled)",
        [](common_params & params) {
            params.hugepages.wipe_context = true;
        }
    ).set_examples({LLAMA_EXAMPLE_SERVER}).set_env("LLAMA_ARG_HUGEPAGE_WIPE_CONTEXT"));
    add_opt(common_arg(
        {"--hugepage-load"},
        "load the weights into the store, print the progress as JSON, and exit: 0 if all weights are there, 3 if pages or memory are short (default: disabled)",
        [](common_params & params) {
            params.hugepages.enabled   = true;
            params.hugepages.load_only = true;
        }
    ));
    add_opt(common_arg(
        {"--hugepage-plan"},
        "print the pages that the model needs with these arguments as JSON, and exit: 0 if they fit, 3 if not (default: disabled)",
        [](common_params & params) {
            params.hugepages.enabled   = true;
            params.hugepages.plan_only = true;
        }
    ));
    add_opt(common_arg(
        {"--hugepage-plan-grow"},
        "like --hugepage-plan, for a caller that adds the missing pages: without -c, count on the pages that this machine could add (default: disabled)",
        [](common_params & params) {
            params.hugepages.enabled   = true;
            params.hugepages.plan_only = true;
            common_hugepages_plan_grow();
        }
    ));
}
