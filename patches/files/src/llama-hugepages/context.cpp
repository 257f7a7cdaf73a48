// The journal of a KV cache that remains in a store.

#include "llama-hugepages-context.h"
#include "llama-context.h"
#include "llama-hugepages.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
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
    uint32_t n_tokens;
    uint32_t n_caches;
    uint32_t unused;
};

static const uint64_t MAGIC = 0x32747874636c6c68; // raise it if the meaning of the journal changes

static std::atomic<int> g_n_contexts{0};

bool llama_hugepages_context_exists() {
    return g_n_contexts > 0;
}

// The caches of a context whose layout is known here, empty if there are others.
static std::vector<llama_kv_cache *> caches_of(const llama_context * ctx) {
    auto * memory = llama_get_memory(ctx);
    if (auto * kv = dynamic_cast<llama_kv_cache *>(memory)) {
        return { kv };
    }
    if (auto * kv = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
        return { kv->get_base(), kv->get_swa() };
    }
    return {};
}

// The compiler and the CPU keep the order of the writes before and after it.
static void set_in_order(uint32_t & word, uint32_t value) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    ((std::atomic<uint32_t> &) word).store(value, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);
}

llama_hugepages_context::llama_hugepages_context(uint8_t * data, const std::vector<llama_kv_cache *> & caches) :
    data(data), n_seqs(caches[0]->n_seq_max), n_tokens(caches[0]->get_size()) {
    lengths    = (uint32_t *) (data + sizeof(header));
    all_tokens = (llama_token *) (lengths + n_seqs);
    auto * at  = (uint32_t *) tokens_of(n_seqs);
    for (auto * kv : caches) {
        const uint32_t n_cells = kv->get_size();
        parts.push_back({ kv, kv->swa_type != LLAMA_SWA_TYPE_NONE, n_cells, at, at + n_seqs, at + n_seqs*2 });
        at += n_seqs*(2 + (size_t) n_cells);
    }
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
// while the caches change
//

void llama_hugepages_context::cut(llama_seq_id seq_id, llama_pos p0) {
    const uint32_t length = std::max<llama_pos>(0, p0);
    if (length < lengths[seq_id]) {
        set_in_order(lengths[seq_id], length);
    }
}

void llama_hugepages_context::clear() {
    for (uint32_t s = 0; s < n_seqs; s++) {
        cut(s, 0);
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

void llama_hugepages_context::append(llama_seq_id seq_id, const std::vector<llama_token> & tokens) {
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
            if (known != LLAMA_TOKEN_NULL && known != tokens[pos - old]) {
                break; // the caller is mistaken
            }
            part.cell(seq_id, pos) = it->second;
        }
        n = std::min(n, pos);
        const auto stream = part.kv->seq_to_stream[seq_id];
        part.heads[stream] = part.kv->v_heads[stream];
    }
    if (n > old) {
        std::copy(tokens.begin(), tokens.begin() + (n - old), tokens_of(seq_id) + old);
        set_in_order(lengths[seq_id], n);
    }
}

//
// at the start
//

// Whether each window reaches back to all tokens that the next one needs.
bool llama_hugepages_context::has_windows(llama_seq_id seq_id) const {
    const uint32_t n = length(seq_id);
    return std::all_of(parts.begin(), parts.end(), [&](const auto & part) {
        const uint32_t start = part.is_window ? part.starts[seq_id] : 0;
        return start == 0 || (start < n && llama_hparams::is_masked_swa(part.kv->n_swa, part.kv->swa_type, start - 1, n));
    });
}

// Puts the tokens of an earlier process into the cells. False if the journal contradicts itself.
bool llama_hugepages_context::restore(llama_seq_id seq_id) {
    const int32_t  n_vocab = parts[0].kv->model.vocab.n_tokens();
    const uint32_t n       = length(seq_id);
    for (const auto & part : parts) {
        auto & cells = part.kv->v_cells[part.kv->seq_to_stream[seq_id]];
        const uint32_t start = part.is_window ? part.starts[seq_id] : 0;
        if (n - start > part.n_cells) {
            return false;
        }
        for (uint32_t pos = start; pos < n; pos++) {
            const uint32_t    cell  = part.cell(seq_id, pos);
            const llama_token token = tokens_of(seq_id)[pos];
            if (cell >= part.n_cells || token < 0 || token >= n_vocab) {
                return false;
            }
            if (cells.is_empty(cell)) {
                llama_kv_cell_ext ext;
                ext.tok = token;
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

bool llama_hugepages_context::restore() {
    for (uint32_t s = 0; s < n_seqs; s++) {
        if (lengths[s] > n_tokens) {
            return false;
        }
        if (lengths[s] == 0) {
            continue;
        }
        if (!has_windows(s)) {
            LLAMA_LOG_INFO("%s: a conversation of %" PRIu32 " tokens is computed again, because its server ended in the middle of a long decode\n", __func__, lengths[s]);
            cut(s, 0);
        } else if (!restore(s)) {
            return false;
        }
    }
    for (const auto & part : parts) {
        for (uint32_t s = 0; s < part.kv->n_stream; s++) {
            part.kv->v_heads[s] = part.heads[s] <= part.n_cells ? part.heads[s] : 0;
        }
    }
    return true;
}

void llama_hugepages_context::begin_anew(bool is_old, const header & expected) {
    auto * head = (header *) data;
    clear();
    head->magic = 0;
    std::atomic_thread_fence(std::memory_order_seq_cst);
    for (const auto & part : parts) {
        for (auto & cells : part.kv->v_cells) {
            cells.reset();
        }
        std::fill(part.kv->v_heads.begin(), part.kv->v_heads.end(), 0);
        memset(part.starts, 0, n_seqs*sizeof(uint32_t)*2); // and the heads
        if (is_old) {
            ggml_backend_buffer_clear(part.kv->ctxs_bufs[0].second.get(), 0);
        }
    }
    *head = { 0, expected.key, expected.n_seqs, expected.n_tokens, expected.n_caches, 0 };
    std::atomic_thread_fence(std::memory_order_seq_cst);
    head->magic = MAGIC;
}

bool llama_hugepages_context::is_old(ggml_backend_buffer_t buffer) {
    size_t size   = 0;
    bool   is_old = false;
    const void * base = ggml_backend_buffer_get_base(buffer);
    return base && ggml_hugepages_context_journal(base, &size, &is_old) && is_old;
}

void llama_hugepages_context::begin(llama_context & ctx) {
    const auto caches = caches_of(&ctx);
    uint8_t * data   = nullptr;
    size_t    size   = 0;
    bool      is_old = false;
    for (const auto * kv : caches) {
        auto * buffer = kv->ctxs_bufs.size() == 1 ? kv->ctxs_bufs[0].second.get() : nullptr;
        const void * base = buffer ? ggml_backend_buffer_get_base(buffer) : nullptr;
        auto * behind = base ? (uint8_t *) ggml_hugepages_context_journal(base, &size, &is_old) : nullptr;
        if (!behind || (data && behind != data)) {
            return;
        }
        data = behind;
    }
    if (!data) {
        return;
    }
    // the plan may have been for another context of this model
    const auto layout = llama_hugepages_layout_of(&ctx);
    if (!layout.why_not.empty() || layout.key != caches[0]->model.hugepages().context_key || size < layout.journal_bytes) {
        ((header *) data)->magic = 0;
        for (const auto * kv : caches) {
            ggml_backend_buffer_clear(kv->ctxs_bufs[0].second.get(), 0);
        }
        LLAMA_LOG_WARN("%s: no conversation will remain in memory after this process ends: the context is not the planned one\n", __func__);
        return;
    }
    std::shared_ptr<llama_hugepages_context> context(new llama_hugepages_context(data, caches));
    const header expected = { MAGIC, layout.key, context->n_seqs, context->n_tokens, (uint32_t) caches.size(), 0 };
    if (!is_old || memcmp(data, &expected, sizeof(expected)) != 0 || !context->restore()) {
        // without a magic number, the earlier process ended before it wrote anything
        if (is_old && ((header *) data)->magic != 0) {
            LLAMA_LOG_WARN("%s: the conversations in the store are not used, because their journal is damaged\n", __func__);
        }
        context->begin_anew(is_old, expected);
    }
    for (auto * kv : caches) {
        kv->hugepages = context;
    }
}

llama_hugepages_context * llama_hugepages_context::of(const std::vector<llama_kv_cache *> & caches) {
    return caches.empty() ? nullptr : caches[0]->hugepages.get();
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

llama_hugepages_layout llama_hugepages_context::layout(const std::vector<llama_kv_cache *> & caches) {
    llama_hugepages_layout result;
    const uint64_t n_seqs = caches[0]->n_seq_max;
    std::string text;
    result.journal_bytes = sizeof(header) + n_seqs*(sizeof(uint32_t) + caches[0]->get_size()*sizeof(llama_token));
    for (const auto * kv : caches) {
        const bool is_of_cpu = kv->ctxs_bufs.size() == 1 && ggml_backend_buffer_get_type(kv->ctxs_bufs[0].second.get()) == ggml_backend_cpu_buffer_type();
        if (!is_of_cpu || kv->other) {
            result.why_not = "its KV cache is not one buffer of the CPU";
        } else if (kv->hparams.n_pos_per_embd() > 1) {
            result.why_not = "its positions have several dimensions";
        }
        result.journal_bytes += n_seqs*(2 + (uint64_t) kv->get_size())*sizeof(uint32_t);
        text += format("sequences %" PRIu32 " streams %" PRIu32 " transposed %d rotated %d %d window %d %" PRIu32 "\n",
            kv->n_seq_max, kv->n_stream, kv->v_trans, kv->attn_rot_k, kv->attn_rot_v, kv->swa_type, kv->n_swa);
        for (const auto & layer : kv->layers) {
            for (const auto * t : { layer.k, layer.v }) {
                if (t) {
                    text += format("%s %s %" PRId64 "x%" PRId64 "x%" PRId64 "\n", ggml_get_name(t), ggml_type_name(t->type), t->ne[0], t->ne[1], t->ne[2]);
                }
            }
        }
    }
    if (caches[0]->swa_type != LLAMA_SWA_TYPE_NONE) {
        result.why_not = "all layers of its KV cache have a sliding window";
    }
    result.key = hash_of(text);
    return result;
}

llama_hugepages_layout llama_hugepages_layout_of(const llama_context * ctx) {
    const auto caches = caches_of(ctx);
    if (caches.empty()) {
        llama_hugepages_layout result;
        result.why_not = "the memory of this model is no plain KV cache";
        return result;
    }
    auto result = llama_hugepages_context::layout(caches);
    const auto & cparams = ctx->get_cparams();
    result.key = hash_of(format("%016" PRIx64 " rope %.9g %.9g yarn %" PRIu32 " %.9g %.9g %.9g %.9g causal %d flash %d", result.key,
        cparams.rope_freq_base, cparams.rope_freq_scale, cparams.n_ctx_orig_yarn, cparams.yarn_ext_factor, cparams.yarn_attn_factor, cparams.yarn_beta_fast,
        cparams.yarn_beta_slow, cparams.causal_attn, cparams.flash_attn));
    return result;
}

//
// for the server
//

std::vector<llama_token> llama_hugepages_context_tokens(const llama_context * ctx, llama_seq_id seq_id) {
    const auto * context = llama_hugepages_context::of(caches_of(ctx));
    return context ? context->tokens(seq_id) : std::vector<llama_token>();
}

int64_t llama_hugepages_context_length(const llama_context * ctx, llama_seq_id seq_id) {
    const auto * context = llama_hugepages_context::of(caches_of(ctx));
    return context ? context->length(seq_id) : -1;
}

void llama_hugepages_context_append(llama_context * ctx, llama_seq_id seq_id, const std::vector<llama_token> & tokens) {
    if (auto * context = llama_hugepages_context::of(caches_of(ctx))) {
        llama_synchronize(ctx);
        context->append(seq_id, tokens);
    }
}
