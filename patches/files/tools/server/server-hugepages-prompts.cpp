#include "server-hugepages-prompts.h"

#include "../../src/llama-hugepages-context.h"
#include "ggml-hugepages.h"
#include "server-hugepages.h"
#include "server-task.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

// The file of a prompt: | header | tokens | ... | bytes of the state | checkpoint | its bytes | checkpoint | its bytes | ...
struct prompt_header {
    uint64_t n_bytes;
    uint64_t n_tokens;
    uint64_t state_at;
    uint64_t n_checkpoints;
    uint64_t n_more; // bytes of the checkpoints
    uint64_t slot;   // 0: a saved prompt; else the file has only checkpoints, of the slot with this number - 1
};

struct prompt_checkpoint {
    int64_t  n_tokens;
    int32_t  pos_min;
    int32_t  pos_max;
    uint64_t n_bytes;
};

// of the model that this process serves; a server has one context in a store
static const void           * g_kv       = nullptr; // an address in its KV cache
static int32_t                g_n_vocab  = 0;
static uint64_t               g_n_tokens = 0;       // of a prompt, at most
static ggml_hugepages_state * g_prepared = nullptr;

// a file with the checkpoints of a slot
struct slot_file {
    uint64_t slot; // as in the header
    uint64_t id;
};
static std::vector<slot_file> g_slot_files; // of the earlier process, until the first decode

static void begin(const llama_context * ctx) {
    g_kv = llama_hugepages_context_base(ctx);
    if (g_kv) {
        g_n_vocab  = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
        g_n_tokens = llama_n_ctx_seq(ctx);
    }
}

static size_t state_at() {
    static const size_t ALIGNMENT = 64;
    return (sizeof(prompt_header) + g_n_tokens*sizeof(llama_token) + ALIGNMENT - 1)/ALIGNMENT*ALIGNMENT;
}

// Calls f for each file with its number and its first bytes.
template <typename F> static void each_file(size_t head_size, F && f) {
    ggml_hugepages_states(g_kv, head_size, [](uint64_t id, const void * head, void * user_data) { (*(F *) user_data)(id, (const uint8_t *) head); }, &f);
}

static uint8_t * bytes_of(ggml_hugepages_state * state) {
    size_t size;
    return (uint8_t *) ggml_hugepages_state_data(state, &size);
}

server_hugepages_bytes::server_hugepages_bytes(server_hugepages_bytes && other) noexcept :
    n_bytes(std::exchange(other.n_bytes, 0)), n_more(std::exchange(other.n_more, 0)), memory(std::move(other.memory)), id(std::exchange(other.id, 0)), state(std::exchange(other.state, nullptr)) {
}

void server_hugepages_bytes::resize(size_t size) {
    n_bytes = size;
    state   = std::exchange(g_prepared, nullptr);
    if (state) {
        id = ggml_hugepages_state_id(state);
    } else {
        memory.resize(size);
    }
}

uint8_t * server_hugepages_bytes::data() {
    return state ? bytes_of(state) + state_at() : memory.data();
}

void server_hugepages_bytes::clear() {
    if (state) {
        ggml_hugepages_state_close(state, /*.keep =*/ false);
    } else if (id != 0 && g_kv) {
        ggml_hugepages_state_drop(g_kv, id);
    }
    state   = nullptr;
    id      = 0;
    n_bytes = 0;
    n_more  = 0;
    memory.clear();
}

// A new file for this many bytes behind the tokens. nullptr with an error if there are no pages for it.
static ggml_hugepages_state * new_file(size_t size, size_t n_checkpoints, ggml_hugepages_error * error) {
    return ggml_hugepages_state_new(g_kv, state_at() + size + n_checkpoints*sizeof(prompt_checkpoint), error);
}

// Writes all but the state. Returns the bytes of the checkpoints.
static size_t write_file(uint8_t * file, const llama_tokens & tokens, size_t n_bytes, const std::list<common_prompt_checkpoint> & checkpoints, uint64_t slot) {
    uint8_t * first = file + state_at() + n_bytes;
    uint8_t * at    = first;
    for (const auto & checkpoint : checkpoints) {
        const auto & data = checkpoint.data_tgt; // without speculation, there is no other
        const prompt_checkpoint record = { checkpoint.n_tokens, checkpoint.pos_min, checkpoint.pos_max, data.size() };
        memcpy(at, &record, sizeof(record));
        memcpy(at + sizeof(record), data.data(), data.size());
        at += sizeof(record) + data.size();
    }
    const prompt_header header = { n_bytes, tokens.size(), state_at(), checkpoints.size(), (uint64_t) (at - first), slot };
    memcpy(file, &header, sizeof(header));
    memcpy(file + sizeof(header), tokens.data(), tokens.size()*sizeof(llama_token));
    return at - first;
}

bool server_hugepages_prompt_prepare(size_t size, size_t n_checkpoints) {
    if (!g_kv) {
        return false;
    }
    if (g_prepared) {
        ggml_hugepages_state_close(g_prepared, /*.keep =*/ false);
    }
    ggml_hugepages_error error = {};
    g_prepared = new_file(size, n_checkpoints, &error);
    if (!g_prepared) {
        SRV_TRC("hugepages: a prompt is saved in ordinary memory and ends with the process: %s\n", error.message);
    }
    return g_prepared != nullptr;
}

void server_hugepages_prompt_saved(server_prompt_cache_state & prompt) {
    auto & bytes = prompt.data.main;
    if (!bytes.state) {
        return;
    }
    const auto & tokens = prompt.prompt.tokens.get_tokens();
    const bool   fits   = tokens.size() <= g_n_tokens;
    if (fits) {
        bytes.n_more = write_file(bytes_of(bytes.state), tokens, bytes.n_bytes, prompt.prompt.checkpoints, /*.slot =*/ 0);
        prompt.prompt.checkpoints.clear();
    }
    ggml_hugepages_state_close(std::exchange(bytes.state, nullptr), /*.keep =*/ fits);
}

void server_hugepages_prompts_look(std::list<server_prompt_cache_state> & prompts) {
    const bool has_files = std::any_of(prompts.begin(), prompts.end(), [](const auto & prompt) { return prompt.data.main.id != 0; });
    if (!has_files) {
        return;
    }
    std::set<uint64_t> ids;
    each_file(0, [&](uint64_t id, const uint8_t *) { ids.insert(id); });
    prompts.remove_if([&](const auto & prompt) {
        const auto & bytes = prompt.data.main;
        return bytes.id != 0 && !bytes.state && ids.count(bytes.id) == 0;
    });
}

// Calls f for each checkpoint of a file with its record and its bytes. False if the file contradicts itself.
template <typename F> static bool each_checkpoint(ggml_hugepages_state * state, size_t n_bytes, F && f) {
    size_t size;
    const auto * file = (const uint8_t *) ggml_hugepages_state_data(state, &size);
    prompt_header header;
    memcpy(&header, file, sizeof(header));
    if (header.n_bytes != n_bytes || state_at() + header.n_bytes > size) {
        return false;
    }
    const uint8_t * at  = file + state_at() + header.n_bytes;
    const uint8_t * end = file + size;
    for (uint64_t i = 0; i < header.n_checkpoints; i++) {
        prompt_checkpoint record;
        if ((size_t) (end - at) < sizeof(record)) {
            return false;
        }
        memcpy(&record, at, sizeof(record));
        at += sizeof(record);
        if (record.n_bytes > (size_t) (end - at)) {
            return false;
        }
        f(record, at);
        at += record.n_bytes;
    }
    return true;
}

static void add_checkpoint(std::list<common_prompt_checkpoint> & checkpoints, const prompt_checkpoint & record, const uint8_t * bytes) {
    auto & checkpoint = checkpoints.emplace_back();
    checkpoint.update_pos(record.n_tokens, record.pos_min, record.pos_max);
    checkpoint.data_tgt.assign(bytes, bytes + record.n_bytes);
}

bool server_hugepages_prompt_open(std::list<server_prompt_cache_state> & prompts, std::list<server_prompt_cache_state>::iterator & prompt) {
    auto & bytes = prompt->data.main;
    if (bytes.id == 0 || bytes.state) {
        return true;
    }
    ggml_hugepages_error error = {};
    bytes.state = ggml_hugepages_state_open(g_kv, bytes.id, &error);
    auto & checkpoints = prompt->prompt.checkpoints;
    if (bytes.state && !each_checkpoint(bytes.state, bytes.n_bytes, [&](const auto & record, const uint8_t * at) { add_checkpoint(checkpoints, record, at); })) {
        bytes.clear(); // and remove the file
    }
    if (!bytes.state) {
        SRV_WRN("hugepages: a saved prompt of %d tokens is computed again: %s\n", prompt->prompt.n_tokens(), error.message[0] ? error.message : "its file is damaged");
        prompts.erase(prompt);
        prompt = prompts.end();
        return false;
    }
    return true;
}

// the tokens of a file, empty if it contradicts itself. head: its bytes in front of the state
static llama_tokens tokens_of(const prompt_header & header, const uint8_t * head) {
    if (header.state_at != state_at() || header.n_tokens > g_n_tokens) {
        return {};
    }
    llama_tokens tokens(header.n_tokens);
    memcpy(tokens.data(), head + sizeof(header), header.n_tokens*sizeof(llama_token));
    const bool are_known = std::all_of(tokens.begin(), tokens.end(), [](llama_token token) { return token >= 0 && token < g_n_vocab; });
    return are_known ? tokens : llama_tokens();
}

void server_hugepages_prompts_begin(server_prompt_cache & cache, const llama_context * ctx) {
    begin(ctx);
    if (!g_kv) {
        return;
    }
    each_file(state_at(), [&](uint64_t id, const uint8_t * head) {
        prompt_header header;
        memcpy(&header, head, sizeof(header));
        if (header.slot != 0) {
            return;
        }
        const auto tokens = tokens_of(header, head);
        if (tokens.empty()) {
            SRV_WRN("%s", "hugepages: a saved prompt is removed from the store, because its file is damaged\n");
            ggml_hugepages_state_drop(g_kv, id);
            return;
        }
        server_prompt_cache_state prompt;
        prompt.prompt.tokens.insert(tokens);
        prompt.data.main.n_bytes = header.n_bytes;
        prompt.data.main.n_more  = header.n_more;
        prompt.data.main.id      = id;
        cache.states.push_back(std::move(prompt));
    });
    cache.states.sort([](const auto & a, const auto & b) { return a.data.main.id < b.data.main.id; }); // the oldest first
    cache.update(); // the limit may be another one
    if (!cache.states.empty()) {
        SRV_INF("hugepages: %zu saved prompts continue from the store\n", cache.states.size());
    }
}

void server_hugepages_prompts_end(std::list<server_prompt_cache_state> & prompts) {
    for (auto & prompt : prompts) {
        prompt.data.main.id = 0;
    }
}

void server_hugepages_checkpoints_end(const llama_context * ctx, int id_slot, server_prompt & prompt) {
    if (!ctx || prompt.checkpoints.empty()) {
        return;
    }
    begin(ctx);
    if (!g_kv) {
        return;
    }
    server_hugepages_checkpoints_changed();
    const auto & tokens = prompt.tokens.get_tokens();
    if (tokens.size() > g_n_tokens) {
        return;
    }
    size_t size = ggml_hugepages_page_size(""); // a file in the store has at least a page
    for (const auto & checkpoint : prompt.checkpoints) {
        size += checkpoint.size();
    }
    ggml_hugepages_error error = {};
    auto * file = new_file(size, prompt.checkpoints.size(), &error);
    if (!file) {
        SRV_WRN("hugepages: the %zu checkpoints of slot %d end with the process: %s\n", prompt.checkpoints.size(), id_slot, error.message);
        return;
    }
    write_file(bytes_of(file), tokens, /*.n_bytes =*/ 0, prompt.checkpoints, id_slot + 1);
    prompt.checkpoints.clear();
    ggml_hugepages_state_close(file, /*.keep =*/ true);
}

// Adds the checkpoints of a file that belong to the tokens of the prompt.
static void take_checkpoints(ggml_hugepages_state * file, server_prompt & prompt) {
    prompt_header header;
    memcpy(&header, bytes_of(file), sizeof(header));
    const auto tokens = tokens_of(header, bytes_of(file));
    const auto & kept = prompt.tokens.get_tokens();
    const auto   end  = std::mismatch(tokens.begin(), tokens.end(), kept.begin(), kept.end()).first;
    each_checkpoint(file, /*.n_bytes =*/ 0, [&](const auto & record, const uint8_t * at) {
        if (record.n_tokens <= end - tokens.begin() && server_hugepages_make_room(prompt.checkpoints)) {
            add_checkpoint(prompt.checkpoints, record, at);
        }
    });
}

void server_hugepages_checkpoints_begin(const llama_context * ctx, int id_slot, server_prompt & prompt) {
    begin(ctx);
    if (!g_kv) {
        return;
    }
    if (id_slot == 0) { // one look at the store for all slots
        g_slot_files.clear();
        each_file(sizeof(prompt_header), [&](uint64_t id, const uint8_t * head) {
            prompt_header header;
            memcpy(&header, head, sizeof(header));
            if (header.slot != 0) {
                g_slot_files.push_back({ header.slot, id });
            }
        });
    }
    for (const auto & slot_file : g_slot_files) {
        if (slot_file.slot != (uint64_t) id_slot + 1) {
            continue;
        }
        ggml_hugepages_error error = {};
        if (auto * file = ggml_hugepages_state_open(g_kv, slot_file.id, &error)) {
            take_checkpoints(file, prompt);
            ggml_hugepages_state_close(file, /*.keep =*/ true);
        } else {
            SRV_WRN("hugepages: the checkpoints of slot %d are not used: %s\n", id_slot, error.message);
        }
    }
}

void server_hugepages_checkpoints_changed() {
    for (const auto & file : g_slot_files) {
        ggml_hugepages_state_drop(g_kv, file.id);
    }
    g_slot_files.clear();
}
