#include "shim.h"

#include "arg.h"
#include "common.h"
#include "../src/llama-ext.h"

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

// Runs call(). If it throws, sets the text of error and returns on_throw.
template <typename T, typename F>
static T lh_try(lh_error * error, T on_throw, F && call) noexcept {
    *error = {};
    ggml_hugepages_set_failure(nullptr);
    try {
        const T result = call();
        ggml_hugepages_get_failure(&error->hugepages);
        return result;
    } catch (const std::exception & e) {
        snprintf(error->message, sizeof(error->message), "%s", e.what());
    } catch (...) {
        snprintf(error->message, sizeof(error->message), "unknown error");
    }
    return on_throw;
}

// Unlike common_get_device_memory_data, it keeps the log callback, because other threads may log meanwhile.
bool lh_measure(const char * path, llama_model_params * params, llama_context_params context, lh_error * error) noexcept {
    return lh_try(error, false, [&] {
        auto without_weights = *params;
        without_weights.no_alloc          = true;
        without_weights.load_mode         = LLAMA_LOAD_MODE_NONE;
        without_weights.progress_callback = nullptr;
        const llama_model_ptr model(llama_model_load_from_file(path, without_weights));
        if (!model) {
            return true;
        }
        const llama_context_ptr ctx(llama_init_from_model(model.get(), context));
        if (!ctx) {
            return false;
        }
        params->hugepages.kv_bytes      = 0;
        params->hugepages.compute_bytes = 0;
        for (const auto & [buft, bytes] : llama_get_memory_breakdown(ctx.get())) {
            if (ggml_backend_buft_is_host(buft)) {
                params->hugepages.kv_bytes      += bytes.context;
                params->hugepages.compute_bytes += bytes.compute;
            }
        }
        return true;
    });
}

llama_model * lh_model_load(const char * path, llama_model_params params, lh_error * error) noexcept {
    return lh_try<llama_model *>(error, nullptr, [&] { return llama_model_load_from_file(path, params); });
}

llama_context * lh_context_init(llama_model * model, llama_context_params params, lh_error * error) noexcept {
    return lh_try<llama_context *>(error, nullptr, [&] { return llama_init_from_model(model, params); });
}

int32_t lh_decode(llama_context * ctx, llama_batch batch, lh_error * error) noexcept {
    return lh_try<int32_t>(error, INT32_MIN, [&] { return llama_decode(ctx, batch); });
}

int32_t lh_tokenize(
        const llama_vocab * vocab,
        const char        * text,
        int32_t             text_len,
        llama_token       * tokens,
        int32_t             n_tokens_max,
        bool                add_special,
        bool                parse_special,
        lh_error          * error) noexcept {
    return lh_try<int32_t>(error, INT32_MIN, [&] {
        return llama_tokenize(vocab, text, text_len, tokens, n_tokens_max, add_special, parse_special);
    });
}

int32_t lh_token_to_piece(const llama_vocab * vocab, llama_token token, char * buf, int32_t length, lh_error * error) noexcept {
    return lh_try<int32_t>(error, INT32_MIN, [&] {
        return llama_token_to_piece(vocab, token, buf, length, /*lstrip =*/ 0, /*special =*/ false);
    });
}

struct lh_env {
    common_params params;
};

// same as parse_bool_value in common/arg.cpp
static bool lh_parse_bool(const std::string & value) {
    if (common_arg_utils::is_truthy(value)) {
        return true;
    }
    if (common_arg_utils::is_falsey(value)) {
        return false;
    }
    throw std::invalid_argument("invalid boolean value");
}

// same as common_params_parse_ex in common/arg.cpp
static void lh_handle_env(common_params & params, const common_arg & opt, const std::string & value) {
    if (opt.handler_void && common_arg_utils::is_truthy(value)) {
        opt.handler_void(params);
    }
    if (opt.handler_int) {
        opt.handler_int(params, std::stoi(value));
    }
    if (opt.handler_bool) {
        opt.handler_bool(params, lh_parse_bool(value));
    }
    if (opt.handler_string) {
        opt.handler_string(params, value);
    }
}

lh_env * lh_env_init(lh_env_error * error) noexcept {
    *error = {};
    try {
        auto env = std::make_unique<lh_env>();
        auto & params = env->params;
        for (const auto & opt : common_params_parser_init(params, LLAMA_EXAMPLE_COMMON).options) {
            std::string value;
            if (opt.get_value_from_env(value)) {
                snprintf(error->variable, sizeof(error->variable), "%s", opt.env);
                lh_handle_env(params, opt, value);
                error->variable[0] = '\0';
            }
        }
        postprocess_cpu_params(params.cpuparams,       nullptr);
        postprocess_cpu_params(params.cpuparams_batch, &params.cpuparams);
        // both lists end with an empty entry
        if (!params.kv_overrides.empty()) {
            params.kv_overrides.emplace_back();
            params.kv_overrides.back().key[0] = 0;
        }
        if (!params.tensor_buft_overrides.empty()) {
            params.tensor_buft_overrides.push_back({ nullptr, nullptr });
        }
        return env.release();
    } catch (const std::exception & e) {
        snprintf(error->reason, sizeof(error->reason), "%s", e.what());
    } catch (...) {
        snprintf(error->reason, sizeof(error->reason), "unknown error");
    }
    return nullptr;
}

void lh_env_free(lh_env * env) noexcept {
    delete env;
}

llama_model_params lh_env_model_params(lh_env * env) noexcept {
    return common_model_params_to_llama(env->params);
}

llama_context_params lh_env_context_params(const lh_env * env) noexcept {
    return common_context_params_to_llama(env->params);
}
