// A C interface for the C++ parts of llama.cpp. No function throws.
#pragma once

#include "llama.h"
#include "gguf.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
#define LH_NOEXCEPT noexcept
extern "C" {
#else
#define LH_NOEXCEPT
#endif

// Runs llama-server: takes the command line and returns the exit code.
// `argv` ends with a null pointer and must outlive the call.
int lh_server_main(int argc, char ** argv) LH_NOEXCEPT;

struct lh_error {
    char                        message[512]; // of a caught exception, cut if it is too long; empty if the call threw nothing
    struct ggml_hugepages_error hugepages;    // the refusal of the engine; GGML_HUGEPAGES_STATUS_OK if the engine refused nothing
};

// Measures the buffers that a context needs, with a load of the model without its weights, and sets their sizes in params: the load then
// counts them and keeps pages for them. If the model cannot be loaded, it changes nothing. Returns false if the context cannot be created.
bool lh_measure(const char * path, struct llama_model_params * params, struct llama_context_params context, struct lh_error * error) LH_NOEXCEPT;

// llama_model_load_from_file, NULL on failure
struct llama_model * lh_model_load(const char * path, struct llama_model_params params, struct lh_error * error) LH_NOEXCEPT;

// llama_init_from_model, NULL on failure
struct llama_context * lh_context_init(struct llama_model * model, struct llama_context_params params, struct lh_error * error) LH_NOEXCEPT;

// llama_decode, INT32_MIN if it threw
int32_t lh_decode(struct llama_context * ctx, struct llama_batch batch, struct lh_error * error) LH_NOEXCEPT;

// llama_tokenize, INT32_MIN if it threw
int32_t lh_tokenize(
        const struct llama_vocab * vocab,
        const char               * text,
        int32_t                    text_len,
        llama_token              * tokens,
        int32_t                    n_tokens_max,
        bool                       add_special,
        bool                       parse_special,
        struct lh_error          * error) LH_NOEXCEPT;

// llama_token_to_piece without special tokens, INT32_MIN if it threw
int32_t lh_token_to_piece(
        const struct llama_vocab * vocab,
        llama_token                token,
        char                     * buf,
        int32_t                    length,
        struct lh_error          * error) LH_NOEXCEPT;

// The parameters from the LLAMA_ARG_* environment variables, read by the parser of upstream's programs.
struct lh_env;

// The refused variable and the reason. `variable` is empty if no variable caused the failure.
struct lh_env_error {
    char variable[64];
    char reason[512];
};

// NULL on failure
struct lh_env * lh_env_init(struct lh_env_error * error) LH_NOEXCEPT;
void            lh_env_free(struct lh_env * env) LH_NOEXCEPT;

// points into env
struct llama_model_params   lh_env_model_params  (struct lh_env * env) LH_NOEXCEPT;
struct llama_context_params lh_env_context_params(const struct lh_env * env) LH_NOEXCEPT;

#ifdef __cplusplus
}
#endif
