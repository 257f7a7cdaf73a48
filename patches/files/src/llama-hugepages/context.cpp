// The journal of a KV cache that remains in a store.

#include "llama-hugepages-context.h"
#include "llama-context.h"
#include "llama-hugepages.h"
#include "llama-impl.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cstring>

struct llama_hugepages_context::header {
    uint64_t magic; // written last
    uint64_t key;
    uint32_t n_seqs;
    uint32_t n_cells;
    uint32_t n_streams;
    uint32_t unused;
};

static const uint64_t MAGIC = 0x31747874636c6c68; // raise it if the meaning of the journal changes

static std::atomic<int> g_n_contexts{0};

llama_hugepages_context::llama_hugepages_context(llama_kv_cache & kv) : kv(kv) {
    g_n_contexts++;
}

llama_hugepages_context::~llama_hugepages_context() {
    g_n_contexts--;
}

bool llama_hugepages_context_exists() {
    return g_n_contexts > 0;
}

static uint64_t journal_bytes(uint64_t n_seqs, uint64_t n_cells) {
    return sizeof(uint64_t)*4 + n_seqs*(sizeof(uint32_t)*2 + n_cells*(sizeof(llama_token) + sizeof(uint32_t)));
}

uint32_t * llama_hugepages_context::lengths() const {
    static_assert(sizeof(header) == sizeof(uint64_t)*4, "journal_bytes() counts it");
    return (uint32_t *) (data + sizeof(header));
}

uint32_t * llama_hugepages_context::heads() const {
    return lengths() + n_seqs;
}

llama_token * llama_hugepages_context::tokens_of(llama_seq_id seq_id) const {
    return (llama_token *) (heads() + n_seqs) + (size_t) seq_id*n_cells;
}

uint32_t * llama_hugepages_context::cells_of(llama_seq_id seq_id) const {
    return (uint32_t *) tokens_of(n_seqs) + (size_t) seq_id*n_cells;
}

// The compiler and the CPU keep the order of the writes before and after it.
void llama_hugepages_context::set_length(llama_seq_id seq_id, uint32_t length) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    ((std::atomic<uint32_t> *) lengths())[seq_id].store(length, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);
}

uint32_t llama_hugepages_context::length(llama_seq_id seq_id) const {
    return lengths()[seq_id];
}

void llama_hugepages_context::cut(llama_seq_id seq_id, llama_pos p0) {
    const uint32_t length = std::max<llama_pos>(0, p0);
    if (length < lengths()[seq_id]) {
        set_length(seq_id, length);
    }
}

void llama_hugepages_context::clear() {
    seq_rm(-1, 0);
}

void llama_hugepages_context::seq_rm(llama_seq_id seq_id, llama_pos p0) {
    for (uint32_t s = 0; s < n_seqs; s++) {
        if (seq_id < 0 || s == (uint32_t) seq_id) {
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

void llama_hugepages_context::seq_move(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
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

std::vector<llama_token> llama_hugepages_context::tokens(llama_seq_id seq_id) const {
    return { tokens_of(seq_id), tokens_of(seq_id) + length(seq_id) };
}

void llama_hugepages_context::append(llama_seq_id seq_id, const std::vector<llama_token> & tokens) {
    const auto & cells = kv.get_cells(seq_id);
    const auto & all   = cells.seq_pos_get(seq_id);
    if (cells.get_has_shift()) {
        return; // the next decode moves the keys
    }
    uint32_t n  = length(seq_id);
    auto     it = all.lower_bound({ (llama_pos) n, 0 });
    for (size_t i = 0; i < tokens.size() && n < n_cells && it != all.end() && it->first == (llama_pos) n; i++, it++, n++) {
        const llama_token known = cells.ext_get(it->second).tok;
        if (known != LLAMA_TOKEN_NULL && known != tokens[i]) {
            break; // the caller is mistaken
        }
        tokens_of(seq_id)[n] = tokens[i];
        cells_of (seq_id)[n] = it->second;
    }
    heads()[kv.seq_to_stream[seq_id]] = kv.v_heads[kv.seq_to_stream[seq_id]];
    if (n > length(seq_id)) {
        set_length(seq_id, n);
    }
}

// Puts the tokens of an earlier process into the cells. False if the journal contradicts itself.
bool llama_hugepages_context::restore() {
    const int32_t n_tokens = kv.model.vocab.n_tokens();
    for (uint32_t s = 0; s < n_seqs; s++) {
        auto & cells = kv.v_cells[kv.seq_to_stream[s]];
        if (length(s) > n_cells) {
            return false;
        }
        for (uint32_t pos = 0; pos < length(s); pos++) {
            const uint32_t    cell  = cells_of(s)[pos];
            const llama_token token = tokens_of(s)[pos];
            if (cell >= n_cells || token < 0 || token >= n_tokens) {
                return false;
            }
            if (cells.is_empty(cell)) {
                llama_kv_cell_ext ext;
                ext.tok = token;
                cells.pos_set(cell, pos);
                cells.ext_set(cell, ext);
            } else if (cells.seq_has(cell, s) || cells.pos_get(cell) != (llama_pos) pos || cells.ext_get(cell).tok != token) {
                return false;
            }
            cells.seq_add(cell, s);
        }
    }
    for (uint32_t s = 0; s < kv.n_stream; s++) {
        kv.v_heads[s] = heads()[s] <= n_cells ? heads()[s] : 0;
    }
    return true;
}

bool llama_hugepages_context::is_old(ggml_backend_buffer_t buffer) {
    size_t size   = 0;
    bool   is_old = false;
    const void * base = ggml_backend_buffer_get_base(buffer);
    return base && ggml_hugepages_context_journal(base, &size, &is_old) && is_old;
}

std::unique_ptr<llama_hugepages_context> llama_hugepages_context::of(llama_kv_cache & kv) {
    std::unique_ptr<llama_hugepages_context> result(new llama_hugepages_context(kv));
    size_t size   = 0;
    bool   is_old = false;
    auto * buffer = kv.ctxs_bufs.size() == 1 ? kv.ctxs_bufs[0].second.get() : nullptr;
    const void * base = buffer ? ggml_backend_buffer_get_base(buffer) : nullptr;
    result->data    = base ? (uint8_t *) ggml_hugepages_context_journal(base, &size, &is_old) : nullptr;
    result->n_seqs  = kv.n_seq_max;
    result->n_cells = kv.v_cells[0].size();
    if (!result->data || size < journal_bytes(result->n_seqs, result->n_cells)) {
        return nullptr;
    }
    auto * head = (header *) result->data;
    const header expected = { MAGIC, kv.model.hugepages().context_key, result->n_seqs, result->n_cells, kv.n_stream, 0 };
    if (is_old && memcmp(head, &expected, sizeof(expected)) == 0 && result->restore()) {
        return result;
    }
    // without a magic number, the earlier process ended before it wrote anything
    if (is_old && head->magic != 0) {
        LLAMA_LOG_WARN("%s: the conversations in the store are not used, because their journal is damaged\n", __func__);
    }
    result->clear();
    for (auto & cells : kv.v_cells) {
        cells.reset();
    }
    std::fill(kv.v_heads.begin(), kv.v_heads.end(), 0);
    head->magic = 0;
    std::atomic_thread_fence(std::memory_order_seq_cst);
    memset(result->lengths(), 0, result->n_seqs*sizeof(uint32_t)*2);
    if (is_old) {
        ggml_backend_buffer_clear(buffer, 0);
    }
    *head = { 0, expected.key, expected.n_seqs, expected.n_cells, expected.n_streams, 0 };
    std::atomic_thread_fence(std::memory_order_seq_cst);
    head->magic = MAGIC;
    return result;
}

llama_hugepages_layout llama_hugepages_context::layout(const llama_kv_cache & kv) {
    llama_hugepages_layout result;
    const bool is_of_cpu = kv.ctxs_bufs.size() == 1 && ggml_backend_buffer_get_type(kv.ctxs_bufs[0].second.get()) == ggml_backend_cpu_buffer_type();
    if (!is_of_cpu || kv.other) {
        result.why_not = "its KV cache is not one buffer of the CPU";
    } else if (kv.swa_type != LLAMA_SWA_TYPE_NONE) {
        result.why_not = "its KV cache holds a sliding window";
    } else if (kv.hparams.n_pos_per_embd() > 1) {
        result.why_not = "its positions have several dimensions";
    }
    result.journal_bytes = ::journal_bytes(kv.n_seq_max, kv.v_cells[0].size());
    result.text = format("sequences %" PRIu32 " streams %" PRIu32 " transposed %d rotated %d %d\n", kv.n_seq_max, kv.n_stream, kv.v_trans, kv.attn_rot_k, kv.attn_rot_v);
    for (const auto & layer : kv.layers) {
        for (const auto * t : { layer.k, layer.v }) {
            if (t) {
                result.text += format("%s %s %" PRId64 "x%" PRId64 "x%" PRId64 "\n", ggml_get_name(t), ggml_type_name(t->type), t->ne[0], t->ne[1], t->ne[2]);
            }
        }
    }
    return result;
}

static llama_kv_cache * cache_of(const llama_context * ctx) {
    return dynamic_cast<llama_kv_cache *>(llama_get_memory(ctx));
}

static llama_hugepages_context * context_of(const llama_context * ctx) {
    auto * kv = cache_of(ctx);
    return kv ? kv->hugepages.get() : nullptr;
}

llama_hugepages_layout llama_hugepages_layout_of(const llama_context * ctx) {
    llama_hugepages_layout result;
    const auto * kv = cache_of(ctx);
    if (!kv) {
        result.why_not = "the memory of this model is not one plain KV cache";
        return result;
    }
    result = llama_hugepages_context::layout(*kv);
    const auto & cparams = ctx->get_cparams();
    result.text += format("rope %.9g %.9g yarn %" PRIu32 " %.9g %.9g %.9g %.9g causal %d flash %d\n", cparams.rope_freq_base, cparams.rope_freq_scale,
        cparams.n_ctx_orig_yarn, cparams.yarn_ext_factor, cparams.yarn_attn_factor, cparams.yarn_beta_fast, cparams.yarn_beta_slow, cparams.causal_attn, cparams.flash_attn);
    return result;
}

std::vector<llama_token> llama_hugepages_context_tokens(const llama_context * ctx, llama_seq_id seq_id) {
    const auto * context = context_of(ctx);
    return context ? context->tokens(seq_id) : std::vector<llama_token>();
}

int64_t llama_hugepages_context_length(const llama_context * ctx, llama_seq_id seq_id) {
    const auto * context = context_of(ctx);
    return context ? context->length(seq_id) : -1;
}

void llama_hugepages_context_append(llama_context * ctx, llama_seq_id seq_id, const std::vector<llama_token> & tokens) {
    if (auto * context = context_of(ctx)) {
        llama_synchronize(ctx);
        context->append(seq_id, tokens);
    }
}
