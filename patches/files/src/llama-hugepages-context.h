#pragma once

// A KV cache that remains in a store: which cells hold the tokens of each sequence, in a journal behind the cache.
//
//   journal   | header | lengths | tokens of sequence 0 | of sequence 1 | ... | cells of cache 0 | of cache 1 | states |
//   cells     | starts | heads | of sequence 0 | of sequence 1 | ... |
//   states    | head | lengths | cells |
//
// The first `length` tokens of a sequence are at positions 0, 1, 2, ... A cache has their cells from position `start` on: 0, except for a
// sliding window. Position p is entry p % n_cells. A recurrent state is one cell for all tokens of a sequence. A process may be killed at
// any instruction, so:
//
// - The journal gains tokens only after their decode is complete. It writes tokens and cells behind the length, then the length.
// - Before a cache frees, moves or changes a cell, the journal forgets the tokens from that cell on, in all sequences that use it. Before
//   a cache moves a window, `start` leaves the cell. So the cells of the journal are never written.
// - While a decode may write a state, the length of the state is 0.
//
// A sequence is forgotten if a window lacks a token that the next one needs, or if the length of its state is another one: its process
// ended in the middle of a decode.

#include "llama.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

class llama_kv_cache;
class llama_memory_recurrent;

// what the memory of a context consists of
struct llama_hugepages_memory {
    std::vector<llama_kv_cache *> caches;
    llama_memory_recurrent      * states = nullptr;
};

struct llama_hugepages_context {
    // After the caches of this context have their buffers: continues with the tokens of an earlier process, or begins anew.
    static void begin(llama_context & ctx);

    // whether an earlier process has written this buffer
    static bool is_old(ggml_backend_buffer_t buffer);

    ~llama_hugepages_context();
    llama_hugepages_context(const llama_hugepages_context &) = delete;
    llama_hugepages_context & operator=(const llama_hugepages_context &) = delete;

    // what a cache is about to do, with its arguments
    void clear();
    void seq_rm  (const llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
    void seq_keep(llama_seq_id seq_id);
    void seq_move(const llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1); // changes positions
    void reuse   (const llama_kv_cache & kv, llama_seq_id seq_id, llama_pos pos);              // writes another token to this cell

    // The recurrent memory is about to change the state of this sequence, or of all if it is -1.
    void state_change(llama_seq_id seq_id);

    const void             * base() const { return data; }
    uint32_t                 length(llama_seq_id seq_id) const;
    std::vector<llama_token> tokens(llama_seq_id seq_id) const;

    static struct llama_hugepages_layout layout(const llama_context & ctx, const llama_hugepages_memory & memory);

    // adds the tokens behind the length that are in the caches
    void append(llama_seq_id seq_id, const std::vector<llama_token> & tokens);

    // the journal of this context, nullptr if its caches are not in a store
    static llama_hugepages_context * of(const llama_context * ctx);

private:
    struct header;

    // the cells of one cache
    struct part {
        llama_kv_cache * kv;
        bool             is_window;
        uint32_t         n_cells;  // of a stream
        uint32_t       * starts;
        uint32_t       * heads;
        uint32_t       * cells;

        uint32_t & cell(llama_seq_id seq_id, uint32_t pos) const { return cells[(size_t) seq_id*n_cells + pos%n_cells]; }
    };

    uint8_t         * data;
    uint32_t          n_seqs;
    uint32_t          n_tokens; // of a sequence, at most
    int32_t           n_vocab;
    uint32_t        * lengths;
    llama_token     * all_tokens;
    std::vector<part> parts;

    llama_memory_recurrent * states; // nullptr: none
    uint32_t               * states_head;
    uint32_t               * state_lengths;
    uint32_t               * state_cells;

    llama_hugepages_context(uint8_t * data, const llama_context & ctx, const llama_hugepages_memory & memory);

    static std::vector<ggml_backend_buffer_t> buffers_of(const llama_hugepages_memory & memory);

    // Whether a cache rotates its keys and its values. Older versions of llama.cpp, which bindings contain, never do.
    template <class Cache> static auto rotations_of(const Cache & kv, int) -> decltype(std::make_pair(kv.attn_rot_k, kv.attn_rot_v)) {
        return { kv.attn_rot_k, kv.attn_rot_v };
    }
    template <class Cache> static std::pair<bool, bool> rotations_of(const Cache &, long) { return { false, false }; }

    const part  & part_of(const llama_kv_cache & kv) const;
    llama_token * tokens_of(llama_seq_id seq_id) const;
    void cut(llama_seq_id seq_id, llama_pos p0);
    void lower_heads(llama_seq_id seq_id, uint32_t length);
    bool is_whole(llama_seq_id seq_id) const;
    bool restore();
    bool restore_cells(llama_seq_id seq_id);
    bool restore_state(llama_seq_id seq_id);
    void begin_anew(bool is_old, const header & expected);
};

struct llama_hugepages_layout {
    uint64_t    key           = 0; // a hash of everything that determines the bytes of the cache, except the model
    uint64_t    journal_bytes = 0;
    std::string why_not;           // why the cache cannot remain in a store, or empty
};

// The layout of a context, which may have no memory yet.
LLAMA_API llama_hugepages_layout llama_hugepages_layout_of(const llama_context * ctx);

// whether a KV cache of this process will remain in a store
LLAMA_API bool llama_hugepages_context_exists();

// An address in the KV cache, for ggml_hugepages_state_new(); NULL if the cache is not in a store.
LLAMA_API const void * llama_hugepages_context_base(const llama_context * ctx);

// The tokens of a sequence that an earlier process left, empty if the KV cache is not in a store.
LLAMA_API std::vector<llama_token> llama_hugepages_context_tokens(const llama_context * ctx, llama_seq_id seq_id);

// Number of tokens of this sequence that the next process can continue with; -1 if the KV cache is not in a store.
LLAMA_API int64_t llama_hugepages_context_length(const llama_context * ctx, llama_seq_id seq_id);

// Tells which tokens follow. Tokens whose cells are not complete are ignored.
LLAMA_API void llama_hugepages_context_append(llama_context * ctx, llama_seq_id seq_id, const std::vector<llama_token> & tokens);
