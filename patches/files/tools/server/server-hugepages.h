#pragma once

// Huge pages in /props and /metrics, runs that only plan or load, and models that cannot be loaded now. Only requests of these two endpoints
// read the kernel's report.

#include "hugepages.h"
#include "server-common.h"

#include <list>
#include <stdexcept>

struct common_prompt_checkpoint;
struct mtmd_context_params;
struct server_child;
struct server_context;
struct server_prompt;
struct server_prompt_cache_state;
struct server_response;

// For --hugepage-plan and --hugepage-load: prints the result and returns the exit code. A router plans each of its models in a child, and
// has no model to load.
int server_hugepages_run(server_context & ctx_server, common_params & params, bool is_router, int argc, char ** argv);

// Announces the projector of the parameters to the plan of the model that loads before it.
void server_hugepages_plan_projector(const common_params & params, const mtmd_context_params & projector_params);

// llama.cpp aborts if it loses the connection to an RPC worker. With the option, all waiting clients get 503 first, and the process exits with 1.
void server_hugepages_watch_workers(const common_params & params, server_response & results);

// A model cannot be loaded for lack of pages or memory. The client gets 503, and the next request tries again.
struct server_hugepages_unavailable : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Throws server_hugepages_unavailable with the cause of the failed load. Returns if the option is off.
void server_hugepages_stay_asleep(const common_params & params);

// Tells the router of this process why the model cannot be loaded, if more pages or memory would help.
void server_hugepages_tell_router(server_child & child);

// The router: adds what the child told to an entry of /models, or throws it as server_hugepages_unavailable. Both do nothing for a child
// that told nothing.
void server_hugepages_add_failure(json & status, const json & progress);
void server_hugepages_throw_failure(const json & progress);

// Removes the oldest prompts until the machine has ordinary memory for a new one of this size, or takes pages for it in the store. False if
// both have too little: the new one is not kept. size: with its checkpoints
bool server_hugepages_make_room(
        std::list<server_prompt_cache_state> & prompts, size_t size, const std::list<common_prompt_checkpoint> & checkpoints);

// The same for a checkpoint of a slot. A new one is about as large as the last one.
bool server_hugepages_make_room(std::list<common_prompt_checkpoint> & checkpoints);

// Whether the KV cache remains in the store, and its sliding window holds all tokens of the sequence. pos_min: the first one.
bool server_hugepages_has_window(const llama_context * ctx, int n_swa, llama_pos pos_min);

// With a KV cache that remains in the store: gives a new slot the tokens that an earlier process left in it, and the last
// n_checkpoints of its checkpoints.
void server_hugepages_continue(const llama_context * ctx, int id_slot, server_prompt & prompt, int n_checkpoints);

// The same: the cache holds these tokens now, so the next process may continue with them.
void server_hugepages_keep(llama_context * ctx, int id_slot, const server_tokens & tokens);

// for /props; null if the option is off
json server_hugepages_props(const common_params & params);

// for /metrics, in the text format of Prometheus; empty if the option is off
std::string server_hugepages_metrics(const common_params & params);
