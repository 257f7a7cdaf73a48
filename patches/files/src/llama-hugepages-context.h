#pragma once

// A KV cache that remains in a store: which cells hold the tokens of each sequence, in a journal behind the cache.
//
//   journal   | header | lengths | heads | tokens of sequence 0 | of sequence 1 | ... | cells of sequence 0 | of sequence 1 | ... |
//
// The first `length` tokens of a sequence are at positions 0, 1, 2, ... in their cells. A process may be killed at any instruction, so:
//
// - The journal gains tokens only after their decode is complete. It writes tokens and cells behind the length, then the length.
// - Before the cache frees, moves or changes a cell, the journal forgets the tokens from that cell on, in all sequences that use it. So the
//   cells of the journal are never written.

#include "llama.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

class llama_kv_cache;

struct llama_hugepages_context {
    // The journal of this cache, nullptr if the cache is not in a store. Continues with the tokens of an earlier process, or begins anew.
    static std::unique_ptr<llama_hugepages_context> of(llama_kv_cache & kv);

    // whether an earlier process has written this buffer
    static bool is_old(ggml_backend_buffer_t buffer);

    ~llama_hugepages_context();
    llama_hugepages_context(const llama_hugepages_context &) = delete;
    llama_hugepages_context & operator=(const llama_hugepages_context &) = delete;

    // what the cache is about to do, with its arguments
    void clear();
    void seq_rm  (llama_seq_id seq_id, llama_pos p0);
    void seq_keep(llama_seq_id seq_id);
    void seq_move(llama_seq_id seq_id, llama_pos p0, llama_pos p1); // changes positions

    uint32_t                 length(llama_seq_id seq_id) const;
    std::vector<llama_token> tokens(llama_seq_id seq_id) const;

    static struct llama_hugepages_layout layout(const llama_kv_cache & kv);

    // adds the tokens behind the length that are in the cache
    void append(llama_seq_id seq_id, const std::vector<llama_token> & tokens);

private:
    explicit llama_hugepages_context(llama_kv_cache & kv);

    llama_kv_cache & kv;
    uint8_t        * data    = nullptr;
    uint32_t         n_seqs  = 0;
    uint32_t         n_cells = 0; // of a stream

    struct header;
    uint32_t    * lengths() const;
    uint32_t    * heads() const;
    llama_token * tokens_of(llama_seq_id seq_id) const;
    uint32_t    * cells_of (llama_seq_id seq_id) const;

    void set_length(llama_seq_id seq_id, uint32_t length);
    void cut(llama_seq_id seq_id, llama_pos p0);
    bool restore();
};

struct llama_hugepages_layout {
    std::string text;              // everything that determines the bytes of the cache, except the model
    uint64_t    journal_bytes = 0;
    std::string why_not;           // why the cache cannot remain in a store, or empty
};

// The layout of a context, which may have no memory yet.
LLAMA_API llama_hugepages_layout llama_hugepages_layout_of(const llama_context * ctx);

// whether a KV cache of this process will remain in a store
LLAMA_API bool llama_hugepages_context_exists();

// The tokens of a sequence that an earlier process left, empty if the KV cache is not in a store.
LLAMA_API std::vector<llama_token> llama_hugepages_context_tokens(const llama_context * ctx, llama_seq_id seq_id);

// Number of tokens of this sequence that the next process can continue with; -1 if the KV cache is not in a store.
LLAMA_API int64_t llama_hugepages_context_length(const llama_context * ctx, llama_seq_id seq_id);

// Tells which tokens follow. Tokens whose cells are not complete are ignored.
LLAMA_API void llama_hugepages_context_append(llama_context * ctx, llama_seq_id seq_id, const std::vector<llama_token> & tokens);
