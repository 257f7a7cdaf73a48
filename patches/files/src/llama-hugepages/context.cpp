// The journal of a KV cache that remains in a store.

#include "llama-hugepages-context.h"
#include "llama-context.h"
#include "llama-hugepages.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cstring>
#include <typeinfo>

struct llama_hugepages_context::header {
    uint64_t magic; // written last
    uint64_t key;
    uint32_t n_seqs;
    uint32_t n_tokens;
    uint32_t n_caches;
    uint32_t has_states;
};

static const uint64_t MAGIC = 0x32747874636c6c68; // raise it if the meaning of the journal changes

static std::atomic<int> g_n_contexts{0};

bool llama_hugepages_context_exists() {
    return g_n_contexts > 0;
}

// The memory as a T, nullptr if it is of another class. A class derived from T may have further caches.
template <class T> static T * exactly(llama_memory_i * memory) {
    return memory && typeid(*memory) == typeid(T) ? static_cast<T *>(memory) : nullptr;
}

// Empty if the context has a memory of another kind.
static llama_hugepages_memory memory_of(const llama_context * ctx) {
    llama_memory_i * memory = llama_get_memory(ctx);
    llama_hugepages_memory result;
    if (auto * hybrid = exactly<llama_memory_hybrid>(memory)) {
        result.states = hybrid->get_mem_recr();
        memory        = hybrid->get_mem_attn();
    } else if (auto * hybrid = exactly<llama_memory_hybrid_iswa>(memory)) {
        result.states = hybrid->get_mem_recr();
        memory        = hybrid->get_mem_attn();
    }
    if (auto * kv = exactly<llama_kv_cache>(memory)) {
        result.caches = { kv };
    } else if (auto * kv = exactly<llama_kv_cache_iswa>(memory)) {
        result.caches = { kv->get_base(), kv->get_swa() };
    } else if (auto * states = exactly<llama_memory_recurrent>(memory)) {
        result.states = states;
    }
    return result;
}

// The compiler and the CPU keep the order of the writes before and after it.
static void set_in_order(uint32_t & word, uint32_t value) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    ((std::atomic<uint32_t> &) word).store(value, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);
}

llama_hugepages_context::llama_hugepages_context(uint8_t * data, const llama_context & ctx, const llama_hugepages_memory & memory) :
    data(data), n_seqs(ctx.n_seq_max()), n_tokens(ctx.n_ctx_seq()), n_vocab(ctx.get_model().vocab.n_tokens()), states(memory.states) {
    lengths    = (uint32_t *) (data + sizeof(header));
    all_tokens = (llama_token *) (lengths + n_seqs);
    auto * at  = (uint32_t *) tokens_of(n_seqs);
    for (auto * kv : memory.caches) {
        const uint32_t n_cells = kv->get_size();
        parts.push_back({ kv, kv->swa_type != LLAMA_SWA_TYPE_NONE, n_cells, at, at + n_seqs, at + n_seqs*2 });
        at += n_seqs*(2 + (size_t) n_cells);
    }
    states_head   = at;
    state_lengths = at + 1;
    state_cells   = at + 1 + n_seqs;
    g_n_contexts++;
}

llama_hugepages_context::~llama_hugepages_context() {
    g_n_contexts--;
}

const llama_hugepages_context::part & llama_hugepages_context::part_of(const llama_kv_cache & kv) const {
    return *std::find_if(parts.begin(), parts.end(), [&](const auto & part) { return part.kv == &kv; });
}

llama_token * llama_hugepages_context::tokens_of(llama_seq_id seq_id) const {
    return all_tokens + (size_t) seq_id*n_tokens;
}

uint32_t llama_hugepages_context::length(llama_seq_id seq_id) const {
    return lengths[seq_id];
}

std::vector<llama_token> llama_hugepages_context::tokens(llama_seq_id seq_id) const {
    return { tokens_of(seq_id), tokens_of(seq_id) + length(seq_id) };
}

//
// while the memory changes
//

void llama_hugepages_context::cut(llama_seq_id seq_id, llama_pos p0) {
    const uint32_t length = std::max<llama_pos>(0, p0);
    if (length < lengths[seq_id]) {
        lower_heads(seq_id, length);
        set_in_order(lengths[seq_id], length);
    }
}

// As in the cache: the next tokens take the first cell that is free now. In other cells, the same tokens have slightly different results.
void llama_hugepages_context::lower_heads(llama_seq_id seq_id, uint32_t length) {
    const uint32_t end = std::min(lengths[seq_id], n_tokens); // the journal may be damaged
    for (const auto & part : parts) {
        uint32_t & head = part.heads[part.kv->seq_to_stream[seq_id]];
        for (uint32_t pos = std::max(length, part.is_window ? part.starts[seq_id] : 0); pos < end; pos++) {
            head = std::min(head, part.cell(seq_id, pos));
        }
    }
}

void llama_hugepages_context::clear() {
    for (uint32_t s = 0; s < n_seqs; s++) {
        cut(s, 0);
    }
    for (const auto & part : parts) {
        std::fill_n(part.heads, part.kv->n_stream, 0);
    }
}

void llama_hugepages_context::seq_rm(const llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    const auto & part = part_of(kv);
    for (uint32_t s = 0; s < n_seqs; s++) {
        if (seq_id >= 0 && s != (uint32_t) seq_id) {
            continue;
        }
        const bool is_front = part.is_window && p0 <= (llama_pos) part.starts[s] && p1 < (llama_pos) lengths[s];
        if (is_front) {
            reuse(kv, s, p1 - 1);
        } else {
            cut(s, p0);
        }
    }
}

void llama_hugepages_context::seq_keep(llama_seq_id seq_id) {
    for (uint32_t s = 0; s < n_seqs; s++) {
        if (s != (uint32_t) seq_id) {
            cut(s, 0);
        }
    }
}

void llama_hugepages_context::seq_move(const llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    const auto & cells = kv.get_cells(seq_id);
    cut(seq_id, p0);
    for (const auto & [pos, cell] : cells.seq_pos_get(seq_id)) {
        const bool is_moved = pos >= p0 && (p1 < 0 || pos < p1);
        for (uint32_t s = 0; is_moved && cells.seq_count(cell) > 1 && s < n_seqs; s++) {
            if (cells.seq_has(cell, s)) {
                cut(s, pos);
            }
        }
    }
}

void llama_hugepages_context::reuse(const llama_kv_cache & kv, llama_seq_id seq_id, llama_pos pos) {
    uint32_t & start = part_of(kv).starts[seq_id];
    if (pos >= (llama_pos) start) {
        set_in_order(start, pos + 1);
    }
}

void llama_hugepages_context::state_change(llama_seq_id seq_id) {
    for (uint32_t s = 0; s < n_seqs; s++) {
        if ((seq_id < 0 || s == (uint32_t) seq_id) && state_lengths[s] != 0) {
            set_in_order(state_lengths[s], 0);
        }
    }
}

void llama_hugepages_context::append(llama_seq_id seq_id, const std::vector<llama_token> & tokens) {
    if (tokens.empty() && !states) {
        return; // only the length of a state changes without new tokens
    }
    const uint32_t old = length(seq_id);
    uint32_t n = std::min<size_t>(n_tokens, old + tokens.size());
    for (const auto & part : parts) {
        const auto & cells = part.kv->get_cells(seq_id);
        const auto & all   = cells.seq_pos_get(seq_id);
        if (cells.get_has_shift() || all.empty()) {
            return; // the next decode moves the keys
        }
        uint32_t pos = old;
        if (part.is_window) {
            // a sequence without tokens is not offered, so its window may begin anywhere
            uint32_t & start = part.starts[seq_id];
            const uint32_t first = all.begin()->first;
            if (old == 0 || first > start) {
                set_in_order(start, first);
            }
            pos = std::max(old, start);
        }
        for (auto it = all.lower_bound({ (llama_pos) pos, 0 }); pos < n && it != all.end() && it->first == (llama_pos) pos; it++, pos++) {
            const llama_token known = cells.ext_get(it->second).tok;
            // a restored state gives its cells the token 0 if no graph reads their tokens
            const bool is_known = known != LLAMA_TOKEN_NULL && (known != 0 || part.kv->has_cell_ext());
            if (is_known && known != tokens[pos - old]) {
                break; // the caller is mistaken
            }
            part.cell(seq_id, pos) = it->second;
        }
        n = std::min(n, pos);
        const auto stream = part.kv->seq_to_stream[seq_id];
        part.heads[stream] = part.kv->v_heads[stream];
    }
    const int32_t state = states ? states->cells[seq_id].tail : -1;
    if (states && (state < 0 || states->cells[state].pos + 1 != (llama_pos) n)) {
        return; // it has seen other tokens than these
    }
    if (n > old) {
        std::copy(tokens.begin(), tokens.begin() + (n - old), tokens_of(seq_id) + old);
        set_in_order(lengths[seq_id], n);
    }
    if (states) {
        *states_head        = states->head;
        state_cells[seq_id] = state;
        set_in_order(state_lengths[seq_id], n);
    }
}

//
// at the start
//

// Whether the windows and the state of this sequence are those of its last token.
bool llama_hugepages_context::is_whole(llama_seq_id seq_id) const {
    const uint32_t n = length(seq_id);
    return (!states || state_lengths[seq_id] == n) && std::all_of(parts.begin(), parts.end(), [&](const auto & part) {
        const uint32_t start = part.is_window ? part.starts[seq_id] : 0;
        return start == 0 || (start < n && llama_hparams::is_masked_swa(part.kv->n_swa, part.kv->swa_type, start - 1, n));
    });
}

// Puts the tokens of an earlier process into the cells. False if the journal contradicts itself.
bool llama_hugepages_context::restore_cells(llama_seq_id seq_id) {
    const uint32_t n = length(seq_id);
    for (const auto & part : parts) {
        auto & cells = part.kv->v_cells[part.kv->seq_to_stream[seq_id]];
        const uint32_t start = part.is_window ? part.starts[seq_id] : 0;
        if (n - start > part.n_cells) {
            return false;
        }
        for (uint32_t pos = start; pos < n; pos++) {
            const uint32_t    cell  = part.cell(seq_id, pos);
            const llama_token token = tokens_of(seq_id)[pos];
            if (cell >= part.n_cells) {
                return false;
            }
            if (cells.is_empty(cell)) {
                llama_kv_cell_ext ext;
                ext.tok = token;
                if (part.kv->hparams.n_pos_per_embd() > 1) {
                    ext.x = pos; // all positions of a text token are the same
                    ext.y = pos;
                }
                cells.pos_set(cell, pos);
                cells.ext_set(cell, ext);
            } else if (cells.seq_has(cell, seq_id) || cells.pos_get(cell) != (llama_pos) pos || cells.ext_get(cell).tok != token) {
                return false;
            }
            cells.seq_add(cell, seq_id);
        }
    }
    return true;
}

bool llama_hugepages_context::restore_state(llama_seq_id seq_id) {
    const uint32_t  at  = state_cells[seq_id];
    const llama_pos pos = length(seq_id) - 1;
    if (at >= states->size) {
        return false;
    }
    auto & cell = states->cells[at];
    if (!cell.is_empty() && cell.pos != pos) {
        return false;
    }
    states->used += cell.is_empty();
    cell.pos = pos;
    cell.src = at;
    cell.seq_id.insert(seq_id);
    states->cells[seq_id].tail = at;
    return true;
}

bool llama_hugepages_context::restore() {
    for (uint32_t s = 0; s < n_seqs; s++) {
        if (lengths[s] > n_tokens) {
            return false;
        }
        if (lengths[s] > 0 && !is_whole(s)) {
            LLAMA_LOG_INFO("%s: a conversation of %" PRIu32 " tokens is computed again, because its server ended in the middle of a decode\n", __func__, lengths[s]);
            cut(s, 0);
        }
        const auto * tokens  = tokens_of(s);
        const bool  is_known = std::all_of(tokens, tokens + lengths[s], [&](llama_token token) { return token >= 0 && token < n_vocab; });
        if (!is_known || (lengths[s] > 0 && (!restore_cells(s) || (states && !restore_state(s))))) {
            return false;
        }
    }
    for (const auto & part : parts) {
        for (uint32_t s = 0; s < part.kv->n_stream; s++) {
            part.kv->v_heads[s] = part.heads[s] <= part.n_cells ? part.heads[s] : 0;
        }
    }
    if (states) {
        states->head = *states_head < states->size ? *states_head : 0;
    }
    return true;
}

void llama_hugepages_context::begin_anew(bool is_old, const header & expected) {
    auto * head = (header *) data;
    clear();
    state_change(-1);
    head->magic = 0;
    std::atomic_thread_fence(std::memory_order_seq_cst);
    for (const auto & part : parts) {
        part.kv->clear(is_old);
        memset(part.starts, 0, n_seqs*sizeof(uint32_t)*2); // and the heads
    }
    if (states) {
        states->clear(is_old);
    }
    *head = { 0, expected.key, expected.n_seqs, expected.n_tokens, expected.n_caches, expected.has_states };
    std::atomic_thread_fence(std::memory_order_seq_cst);
    head->magic = MAGIC;
}

bool llama_hugepages_context::is_old(ggml_backend_buffer_t buffer) {
    size_t size   = 0;
    bool   is_old = false;
    const void * base = ggml_backend_buffer_get_base(buffer);
    return base && ggml_hugepages_context_journal(base, &size, &is_old) && is_old;
}

std::vector<ggml_backend_buffer_t> llama_hugepages_context::buffers_of(const llama_hugepages_memory & memory) {
    std::vector<ggml_backend_buffer_t> result;
    const auto add = [&](const auto & part) {
        for (const auto & [ctx, buffer] : part.ctxs_bufs) {
            result.push_back(buffer.get());
        }
    };
    for (const auto * kv : memory.caches) {
        add(*kv);
    }
    if (memory.states) {
        add(*memory.states);
    }
    return result;
}

void llama_hugepages_context::begin(llama_context & ctx) {
    const auto memory = memory_of(&ctx);
    uint8_t * data      = nullptr;
    size_t    size      = 0;
    bool      is_old    = false;
    bool      is_inside = true;
    for (auto * buffer : buffers_of(memory)) {
        const void * base = ggml_backend_buffer_get_base(buffer);
        auto * behind = base ? (uint8_t *) ggml_hugepages_context_journal(base, &size, &is_old) : nullptr;
        is_inside = is_inside && behind;
        data      = behind ? behind : data;
    }
    if (!data) {
        return;
    }
    // the plan may have been for another context of this model
    const auto layout = llama_hugepages_layout_of(&ctx);
    if (!is_inside || !layout.why_not.empty() || layout.key != ctx.get_model().hugepages().context_key || size < layout.journal_bytes) {
        ((header *) data)->magic = 0;
        llama_memory_clear(llama_get_memory(&ctx), true);
        LLAMA_LOG_WARN("%s: no conversation will remain in memory after this process ends: the context is not the planned one\n", __func__);
        return;
    }
    std::shared_ptr<llama_hugepages_context> context(new llama_hugepages_context(data, ctx, memory));
    const header expected = { MAGIC, layout.key, context->n_seqs, context->n_tokens, (uint32_t) memory.caches.size(), memory.states != nullptr };
    if (!is_old || memcmp(data, &expected, sizeof(expected)) != 0 || !context->restore()) {
        // without a magic number, the earlier process ended before it wrote anything
        if (is_old && ((header *) data)->magic != 0) {
            LLAMA_LOG_WARN("%s: the conversations in the store are not used, because their journal is damaged\n", __func__);
        }
        context->begin_anew(is_old, expected);
    }
    for (auto * kv : memory.caches) {
        kv->hugepages = context;
    }
    if (memory.states) {
        memory.states->hugepages = context;
    }
}

llama_hugepages_context * llama_hugepages_context::of(const llama_context * ctx) {
    if (!llama_hugepages_context_exists()) {
        return nullptr; // the server asks for each slot after each decode
    }
    const auto memory = memory_of(ctx);
    return memory.states ? memory.states->hugepages.get() : memory.caches.empty() ? nullptr : memory.caches[0]->hugepages.get();
}

//
// identity
//

static uint64_t hash_of(const std::string & text) {
    uint64_t hash = 0xcbf29ce484222325; // FNV-1a
    for (const char c : text) {
        hash = (hash ^ (uint8_t) c)*0x100000001b3;
    }
    return hash;
}

llama_hugepages_layout llama_hugepages_context::layout(const llama_context & ctx, const llama_hugepages_memory & memory) {
    llama_hugepages_layout result;
    const uint64_t n_seqs   = ctx.n_seq_max();
    const uint64_t n_tokens = ctx.n_ctx_seq();
    const auto & cparams = ctx.get_cparams();
    std::string text = format("sequences %" PRIu64 " tokens %" PRIu64 " rope %.9g %.9g yarn %" PRIu32 " %.9g %.9g %.9g %.9g causal %d\n", n_seqs, n_tokens,
        cparams.rope_freq_base, cparams.rope_freq_scale, cparams.n_ctx_orig_yarn, cparams.yarn_ext_factor, cparams.yarn_attn_factor, cparams.yarn_beta_fast,
        cparams.yarn_beta_slow, cparams.causal_attn);
    // without the tensor's name: graphs change it
    const auto add = [&](const char * kind, size_t layer, const ggml_tensor * t) {
        if (t) {
            text += format("%s %zu %s %" PRId64 "x%" PRId64 "x%" PRId64 "\n", kind, layer, ggml_type_name(t->type), t->ne[0], t->ne[1], t->ne[2]);
        }
    };
    result.journal_bytes = sizeof(header) + n_seqs*(sizeof(uint32_t) + n_tokens*sizeof(llama_token));
    for (const auto * kv : memory.caches) {
        if (kv->other) {
            result.why_not = "its KV cache belongs to another context";
        } else if (kv->get_size() < n_tokens && kv->swa_type == LLAMA_SWA_TYPE_NONE) {
            result.why_not = "its KV cache has fewer cells than the context has tokens";
        }
        result.journal_bytes += n_seqs*(2 + (uint64_t) kv->get_size())*sizeof(uint32_t);
        const auto rotations = rotations_of(*kv, 0);
        text += format("streams %" PRIu32 " cells %" PRIu32 " transposed %d rotated %d %d window %d %" PRIu32 "\n",
            kv->n_stream, kv->get_size(), kv->v_trans, rotations.first, rotations.second, kv->swa_type, kv->n_swa);
        for (const auto & layer : kv->layers) {
            add("k", layer.il, layer.k);
            add("v", layer.il, layer.v);
        }
    }
    if (const auto * states = memory.states) {
        if (states->n_rs_seq > 0) {
            result.why_not = "it keeps several recurrent states of each sequence";
        }
        result.journal_bytes += (1 + n_seqs*2)*sizeof(uint32_t);
        text += format("states %" PRIu32 "\n", states->size);
        for (size_t layer = 0; layer < states->r_l.size(); layer++) {
            add("r", layer, states->r_l[layer]);
            add("s", layer, states->s_l[layer]);
            add("p", layer, states->p_l[layer]);
        }
    }
    for (auto * buffer : buffers_of(memory)) {
        if (ggml_backend_buffer_get_type(buffer) != ggml_backend_cpu_buffer_type()) {
            result.why_not = "its KV cache is not in memory of the CPU";
        }
    }
    result.key = hash_of(text);
    return result;
}

llama_hugepages_layout llama_hugepages_layout_of(const llama_context * ctx) {
    const auto memory = memory_of(ctx);
    if (memory.caches.empty() && !memory.states) {
        llama_hugepages_layout result;
        result.why_not = "the memory of this model is of a kind that no process can continue with";
        return result;
    }
    return llama_hugepages_context::layout(*ctx, memory);
}

//
// for the server
//

const void * llama_hugepages_context_base(const llama_context * ctx) {
    const auto * context = llama_hugepages_context::of(ctx);
    return context ? context->base() : nullptr;
}

std::vector<llama_token> llama_hugepages_context_tokens(const llama_context * ctx, llama_seq_id seq_id) {
    const auto * context = llama_hugepages_context::of(ctx);
    return context ? context->tokens(seq_id) : std::vector<llama_token>();
}

int64_t llama_hugepages_context_length(const llama_context * ctx, llama_seq_id seq_id) {
    const auto * context = llama_hugepages_context::of(ctx);
    return context ? (int64_t) context->length(seq_id) : -1;
}

void llama_hugepages_context_append(llama_context * ctx, llama_seq_id seq_id, const std::vector<llama_token> & tokens) {
    if (auto * context = llama_hugepages_context::of(ctx)) {
        llama_synchronize(ctx);
        context->append(seq_id, tokens);
    }
}
