#pragma once

// The prompt cache of a server whose KV cache remains in a store: each saved prompt is a file of the store, so the next process has it too.
// Between a save and a load no process uses the file. A load of another model that is short of pages removes it, and then the prompt is
// computed again. The checkpoints of a slot are in ordinary memory while it is used, and in such a file between two processes.

#include "hugepages.h"

#include <list>
#include <vector>

struct ggml_hugepages_state;
struct llama_context;
struct server_prompt;
struct server_prompt_cache;
struct server_prompt_cache_state;

// The bytes of a saved prompt, in ordinary memory or in a file of the store. It has the functions of a vector that upstream calls.
struct server_hugepages_bytes {
    server_hugepages_bytes() = default;
    server_hugepages_bytes(server_hugepages_bytes && other) noexcept;
    server_hugepages_bytes & operator=(server_hugepages_bytes && other) = delete;
    ~server_hugepages_bytes() { clear(); }

    void      resize(size_t size);
    size_t    size() const { return n_bytes; }
    size_t    all_bytes() const { return n_bytes + n_more; }
    bool      empty() const { return n_bytes == 0; }
    uint8_t * data();
    void      clear(); // removes the file
    void      shrink_to_fit() { memory.shrink_to_fit(); }

    size_t                 n_bytes = 0; // of the state
    size_t                 n_more  = 0; // of the checkpoints in the file
    std::vector<uint8_t>   memory;
    uint64_t               id    = 0;       // of the file, 0: none
    ggml_hugepages_state * state = nullptr; // the open file
};

// A new cache: continues with the prompts that an earlier process saved.
void server_hugepages_prompts_begin(server_prompt_cache & cache, const llama_context * ctx);

// The cache ends, and its files remain.
void server_hugepages_prompts_end(std::list<server_prompt_cache_state> & prompts);

// Reserves a file for the next prompt. size: of its state and its checkpoints. False if it must use ordinary memory.
bool server_hugepages_prompt_prepare(size_t size, size_t n_checkpoints);

// The bytes of its state are written. Moves the checkpoints to the file too.
void server_hugepages_prompt_saved(server_prompt_cache_state & prompt);

// Forgets prompts whose files another process has removed.
void server_hugepages_prompts_look(std::list<server_prompt_cache_state> & prompts);

// Opens the file of a prompt, and reads its checkpoints. If it was removed in this moment, the prompt is removed too and becomes prompts.end().
bool server_hugepages_prompt_open(std::list<server_prompt_cache_state> & prompts, std::list<server_prompt_cache_state>::iterator & prompt);

// The process ends or sleeps: the checkpoints of a slot go into a file.
void server_hugepages_checkpoints_end(const llama_context * ctx, int id_slot, server_prompt & prompt);

// A new slot with the tokens that an earlier process left: takes the checkpoints of these tokens. Their file remains until a decode.
// Call it for slot 0 first.
void server_hugepages_checkpoints_begin(const llama_context * ctx, int id_slot, server_prompt & prompt);

// After a decode: the files of the earlier process do not match the slots any more.
void server_hugepages_checkpoints_changed();
