#include "llama-hugepages.h"

#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstring>
#include <deque>
#include <mutex>
#include <set>
#include <stdexcept>

#ifdef __linux__
#include <sys/stat.h>
#endif

[[noreturn]] static void raise(const ggml_hugepages_error & error) {
    ggml_hugepages_set_failure(error.status);
    throw std::runtime_error(error.hint[0] ? format("%s\nhint: %s", error.message, error.hint) : std::string(error.message));
}

llama_hugepages_scope::llama_hugepages_scope(const ggml_hugepages_params & params, ggml_hugepages_kind kind, bool late) :
    scope{ params, kind, late, /*.lazy =*/ false, /*.resident =*/ nullptr } {
    if (params.enabled) {
        before = ggml_hugepages_scope_set(&scope);
    }
}

llama_hugepages_scope::llama_hugepages_scope(const llama_model & model, ggml_hugepages_kind kind, bool late) :
    llama_hugepages_scope(model.hparams.no_alloc ? ggml_hugepages_default_params() : model.hugepages(), kind, late) {}

llama_hugepages_scope::llama_hugepages_scope(const llama_hugepages & hugepages, const ggml_context * ctx, ggml_backend_buffer_type_t buft) :
    llama_hugepages_scope(hugepages.params, llama_hugepages::kind(buft)) {
    scope.lazy     = hugepages.is_buffered(ctx);
    scope.resident = hugepages.resident(ctx);
}

llama_hugepages_scope::~llama_hugepages_scope() {
    if (scope.params.enabled) {
        ggml_hugepages_scope_set(before);
    }
}

// How much of a tensor each token reads. Embeddings rank last, because a token reads only a few rows, unless they are also the output.
static ggml_hugepages_rank rank_of(const llama_model_loader & ml, const char * name) {
    const bool is_tied = ml.get_weight("output.weight") == nullptr;
    if (strcmp(name, "output.weight") == 0 || (is_tied && strcmp(name, "token_embd.weight") == 0)) {
        return GGML_HUGEPAGES_RANK_OUTPUT;
    }
    return strstr(name, "token_embd") ? GGML_HUGEPAGES_RANK_EMBEDDINGS : GGML_HUGEPAGES_RANK_LAYERS;
}

// calls f for each tensor of a context that is in a file
template <typename F> static void for_each_weight(const llama_model_loader & ml, ggml_context * ctx, F f) {
    for (auto * cur = ggml_get_first_tensor(ctx); cur; cur = ggml_get_next_tensor(ctx, cur)) {
        if (const auto * weight = ml.get_weight(ggml_get_name(cur))) {
            f(cur, *weight);
        }
    }
}

// the smallest page of a plan, 0 if the kernel has no pool
static size_t smallest_page(const ggml_hugepages_params & params) {
    const bool is_any = params.page_size == GGML_HUGEPAGES_SIZE_AUTO || params.page_size == GGML_HUGEPAGES_SIZE_THP;
    return is_any ? ggml_hugepages_page_size("") : params.page_size;
}

// Whether a mapping would take a tenth more pages than a buffer. Of a repacked model only norms and embeddings are mapped, and each norm
// would take a block of its own.
static bool is_sparse(const llama_model_loader & ml, ggml_context * ctx, const ggml_hugepages_params & params) {
    const size_t page_size = smallest_page(params);
    if (page_size == 0) {
        return false;
    }
    size_t bytes = 0;
    std::set<std::pair<size_t, size_t>> blocks; // file, block
    for_each_weight(ml, ctx, [&](const ggml_tensor * cur, const auto & weight) {
        bytes += ggml_nbytes(cur);
        for (size_t block = weight.offs/page_size; block*page_size < weight.offs + ggml_nbytes(cur); block++) {
            blocks.emplace(weight.idx, block);
        }
    });
    const size_t needed = (bytes + page_size - 1)/page_size;
    return blocks.size() > needed + needed/10 + 2*ml.files.size();
}

ggml_hugepages_kind llama_hugepages::kind(ggml_backend_buffer_type_t buft) {
    auto * cpu_dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return buft == ggml_backend_dev_buffer_type(cpu_dev) ? GGML_HUGEPAGES_KIND_WEIGHTS : GGML_HUGEPAGES_KIND_REPACKED;
}

void llama_hugepages::begin(const llama_model_params & model_params) {
    params                      = model_params.hugepages;
    progress_callback           = model_params.progress_callback;
    progress_callback_user_data = model_params.progress_callback_user_data;
}

// Buffers of other types may contain data that is valid only in this process.
static bool is_plain(ggml_backend_buffer_type_t buft) {
    const std::string name = ggml_backend_buft_name(buft);
    return name == "CPU" || name == "CPU_REPACK";
}

// the features of the CPU, which decide the layout of its buffers
static std::string cpu_features() {
    auto * reg = ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    auto * get = (ggml_backend_get_features_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features");
    std::string text;
    for (auto * feature = get ? get(reg) : nullptr; feature && feature->name; feature++) {
        text += std::string(" ") + feature->name + "=" + feature->value;
    }
    return text;
}

// The identity of each file. Its header ends at the first tensor.
static std::vector<std::string> identities_of(const llama_model_loader & ml) {
    std::vector<size_t> headers(ml.files.size(), SIZE_MAX);
    for (const auto & [_, weight] : ml.weights_map) {
        headers[weight.idx] = std::min(headers[weight.idx], weight.offs);
    }
    std::vector<std::string> result;
    for (size_t i = 0; i < ml.files.size(); i++) {
        char text[256];
        const size_t header = headers[i] == SIZE_MAX ? ml.files[i]->size() : headers[i];
        if (!ggml_hugepages_file_identity(ml.files[i]->file_id(), header, text, sizeof(text))) {
            throw std::runtime_error(format("cannot read the header of file %zu: %s", i, strerror(errno)));
        }
        result.emplace_back(text);
    }
    return result;
}

// everything that determines the bytes of a buffer
static std::string identity_of(const std::vector<std::string> & files, ggml_context * ctx, ggml_backend_buffer_type_t buft) {
    std::string text;
    for (const auto & file : files) {
        text += file + "\n";
    }
    text += format("buffer %s\ncpu%s\n", ggml_backend_buft_name(buft), cpu_features().c_str());
    for (auto * cur = ggml_get_first_tensor(ctx); cur; cur = ggml_get_next_tensor(ctx, cur)) {
        text += format("tensor %s %s %" PRId64 "x%" PRId64 "x%" PRId64 "x%" PRId64 " %zu\n", ggml_get_name(cur), ggml_type_name(cur->type),
            cur->ne[0], cur->ne[1], cur->ne[2], cur->ne[3], ggml_backend_buft_get_alloc_size(buft, cur));
    }
    return text;
}

void llama_hugepages::open_residents(const llama_model_loader & ml) {
    const auto files = identities_of(ml);
    std::vector<llama_hugepages_resident> all; // images keep a pointer to theirs
    const auto add = [&](ggml_hugepages_kind kind, int fd, const std::string & identity, size_t size) {
        all.emplace_back(ggml_hugepages_resident_init(kind, fd, identity.c_str(), size), ggml_hugepages_resident_free);
        return all.back();
    };
    for (size_t i = 0; i < images.size(); i++) {
        // a file on hugetlbfs stays in memory without a resident image
        if (ggml_hugepages_image_is_wanted(images[i].get()) && !ggml_hugepages_image_is_huge(images[i].get())) {
            const auto resident = add(GGML_HUGEPAGES_KIND_WEIGHTS, ml.files[i]->file_id(), files[i], ml.files[i]->size());
            ggml_hugepages_image_reside(images[i].get(), resident.get());
        }
    }
    for (const auto & [key, ctx] : ml.ctx_map) {
        if (is_buffered(ctx.get()) && is_plain(key.buft)) {
            const size_t size = ggml_backend_alloc_ctx_tensors_from_buft_size(ctx.get(), key.buft);
            resident_buffers[ctx.get()] = add(kind(key.buft), ml.files[0]->file_id(), identity_of(files, ctx.get(), key.buft), size);
        }
    }

    struct progress {
        llama_progress_callback callback;
        void                  * user_data;
    } ud = { progress_callback, progress_callback_user_data };
    const auto on_progress = [](uint64_t done, uint64_t total, void * user_data) {
        const auto & p = *(const progress *) user_data;
        return p.callback == nullptr || p.callback((float) ((double) done/total), p.user_data);
    };
    std::vector<ggml_hugepages_resident_t> residents;
    for (const auto & resident : all) {
        residents.push_back(resident.get());
    }
    ggml_hugepages_error error = {};
    if (!residents.empty() && !ggml_hugepages_residents_open(residents.data(), residents.size(), &params, on_progress, &ud, &error)) {
        if (!ggml_hugepages_accepts_less(&params) || error.status == GGML_HUGEPAGES_STATUS_ABORTED) {
            raise(error);
        }
        LLAMA_LOG_WARN("%s: no weights will remain in memory after this process ends: %s\n", __func__, error.message);
        for (const auto & image : images) {
            ggml_hugepages_image_reside(image.get(), nullptr);
        }
        resident_buffers.clear();
    }
}

ggml_hugepages_resident_t llama_hugepages::resident(const ggml_context * ctx) const {
    const auto it = resident_buffers.find(ctx);
    return it == resident_buffers.end() ? nullptr : it->second.get();
}

void llama_hugepages::plan(const llama_model_loader & ml) {
    if (!params.enabled || ml.no_alloc || ml.files.empty()) {
        return;
    }
    use_mmap = ml.use_mmap;
    for (const auto & file : ml.files) {
        images.emplace_back(ggml_hugepages_image_init(file->file_id(), file->size()), ggml_hugepages_image_free);
    }

    std::vector<ggml_hugepages_demand> demands = {
        { GGML_HUGEPAGES_KIND_KV,      GGML_HUGEPAGES_RANK_KV,      params.kv_bytes,      nullptr },
        { GGML_HUGEPAGES_KIND_COMPUTE, GGML_HUGEPAGES_RANK_COMPUTE, params.compute_bytes, nullptr },
    };
    auto * cpu_dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    std::vector<std::pair<ggml_context *, ggml_backend_buffer_type_t>> in_buffers;
    for (const auto & [key, ctx] : ml.ctx_map) {
        auto * dev = ggml_backend_buft_get_device(key.buft);
        if (key.lazy || (dev && dev != cpu_dev) || !ggml_get_first_tensor(ctx.get())) {
            continue;
        }
        const bool could_map = use_mmap && kind(key.buft) == GGML_HUGEPAGES_KIND_WEIGHTS;
        contexts.push_back(ctx.get());
        for_each_weight(ml, ctx.get(), [&](const ggml_tensor * cur, const auto &) { n_bytes += ggml_nbytes(cur); });
        if (could_map && is_sparse(ml, ctx.get(), params)) {
            packed.push_back(ctx.get());
        }
        if (could_map && !is_packed(ctx.get())) {
            for_each_weight(ml, ctx.get(), [&](const ggml_tensor * cur, const auto & weight) {
                ggml_hugepages_image_want(images.at(weight.idx).get(), weight.offs, weight.offs + ggml_nbytes(cur),
                    rank_of(ml, ggml_get_name(cur)));
            });
        } else {
            buffered.push_back(ctx.get());
            in_buffers.emplace_back(ctx.get(), key.buft);
        }
    }
    if (params.store[0]) {
        open_residents(ml);
    }
    for (const auto & [ctx, buft] : in_buffers) {
        auto * there = resident(ctx);
        demands.push_back({ kind(buft), GGML_HUGEPAGES_RANK_LAYERS, ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, buft), there });
        if (there && ggml_hugepages_resident_is_complete(there)) {
            attached.push_back(ctx);
        }
        // includes attached buffers, because upstream's prefetch would bring their tensors into the page cache
        for_each_weight(ml, ctx, [&](const ggml_tensor * cur, const auto & weight) {
            ggml_hugepages_image_expect(images.at(weight.idx).get(), weight.offs, weight.offs + ggml_nbytes(cur));
        });
    }

    ggml_hugepages_error error = {};
    auto imgs = handles();
    if (!ggml_hugepages_plan(imgs.data(), imgs.size(), demands.data(), demands.size(), &params, &error)) {
        if (!ggml_hugepages_accepts_less(&params)) {
            raise(error);
        }
        LLAMA_LOG_WARN("%s: no huge pages: %s\n", __func__, error.message);
        *this = llama_hugepages();
    }
    for (size_t i = 0; use_mmap && i < images.size(); i++) {
        ml.files[i]->hugepages = images[i];
    }
}

void llama_hugepages::overlay() {
    ggml_hugepages_error error = {};
    auto imgs = handles();
    if (!imgs.empty() && !ggml_hugepages_overlay(imgs.data(), imgs.size(), &error)) {
        raise(error);
    }
}

bool llama_hugepages::is_packed(const ggml_context * ctx) const {
    return std::find(packed.begin(), packed.end(), ctx) != packed.end();
}

bool llama_hugepages::is_attached(const ggml_context * ctx) const {
    return std::find(attached.begin(), attached.end(), ctx) != attached.end();
}

bool llama_hugepages::is_buffered(const ggml_context * ctx) const {
    return std::find(buffered.begin(), buffered.end(), ctx) != buffered.end();
}

namespace {

// the destination of a piece: rows of a tensor in a CPU buffer
struct rows_target {
    ggml_tensor          * tensor;
    std::mutex           * mutex; // nullptr if several threads can place rows at the same time
    bool                   check;
    std::atomic<bool>    * refused; // set when the buffer gets no page
};

bool place_rows(const void * data, size_t size, const ggml_hugepages_piece * piece) {
    const auto & target = *(const rows_target *) piece->user_data;
    if (target.check && !ggml_validate_row_data(target.tensor->type, data, size)) {
        LLAMA_LOG_ERROR("%s: tensor '%s' has invalid data\n", __func__, ggml_get_name(target.tensor));
        return false;
    }
    // a tensor with only these rows, because repacking needs whole tensors
    ggml_tensor rows = *target.tensor;
    const size_t row_size = ggml_row_size(rows.type, rows.ne[0]);
    rows.data  = (char *) rows.data + piece->offset;
    if (size < ggml_nbytes(target.tensor)) {
        rows.ne[1] = size/row_size;
        rows.ne[2] = 1;
        rows.ne[3] = 1;
        rows.nb[2] = rows.nb[3] = size;
    }
    // a tensor that is not split by rows may need more memory than its bytes
    const size_t n_populate = target.mutex ? ggml_backend_buffer_get_alloc_size(target.tensor->buffer, target.tensor) : size;
    if (!ggml_hugepages_buffer_populate(rows.data, n_populate)) {
        *target.refused = true;
        return false;
    }
    std::unique_lock<std::mutex> lock;
    if (target.mutex) {
        lock = std::unique_lock<std::mutex>(*target.mutex);
    }
    ggml_backend_tensor_set(&rows, data, 0, size);
    return true;
}

// A mapped tensor. The thread that reads its last bytes checks its data, while the other threads continue to read.
struct arriving {
    const ggml_tensor * tensor;
    size_t              first; // bytes [first, last) of the file
    size_t              last;
    std::atomic<size_t> missing;

    arriving(const ggml_tensor * tensor, size_t first) : tensor(tensor), first(first), last(first + ggml_nbytes(tensor)), missing(last - first) {}
};

using arrivals = std::deque<arriving>; // of one file, by offset

bool check_arrivals(const void * data, size_t first, size_t last, void * user_data) {
    auto & tensors = *(arrivals *) user_data;
    auto it = std::lower_bound(tensors.begin(), tensors.end(), first, [](const arriving & a, size_t x) { return a.last <= x; });
    for (; it != tensors.end() && it->first < last; ++it) {
        const size_t n = std::min(last, it->last) - std::max(first, it->first);
        if (it->missing.fetch_sub(n) != n) {
            continue;
        }
        const auto * begin = (const uint8_t *) data - first + it->first;
        if (!ggml_validate_row_data(it->tensor->type, begin, it->last - it->first)) {
            LLAMA_LOG_ERROR("%s: tensor '%s' has invalid data\n", __func__, ggml_get_name(it->tensor));
            return false;
        }
    }
    return true;
}

// the mapped tensors of each file
std::vector<arrivals> arrivals_of(const llama_model_loader & ml, const std::vector<const ggml_context *> & contexts, const std::vector<ggml_context *> & buffered) {
    std::vector<std::vector<std::pair<size_t, const ggml_tensor *>>> sorted(ml.files.size());
    for (const auto & [_, ctx] : ml.ctx_map) {
        const bool is_mapped = std::find(contexts.begin(), contexts.end(), ctx.get()) != contexts.end() &&
            std::find(buffered.begin(), buffered.end(), ctx.get()) == buffered.end();
        if (is_mapped) {
            for_each_weight(ml, ctx.get(), [&](const ggml_tensor * cur, const auto & weight) { sorted[weight.idx].emplace_back(weight.offs, cur); });
        }
    }
    std::vector<arrivals> result(ml.files.size());
    for (size_t i = 0; i < sorted.size(); i++) {
        std::sort(sorted[i].begin(), sorted[i].end());
        for (const auto & [offs, tensor] : sorted[i]) {
            result[i].emplace_back(tensor, offs);
        }
    }
    return result;
}

} // namespace

bool llama_hugepages::fill(const llama_model_loader & ml, llama_progress_callback progress_callback, void * progress_callback_user_data) {
    if (images.empty()) {
        return true;
    }

    std::mutex                        mutex;
    std::atomic<bool>                 refused{false};
    std::deque<rows_target>           targets; // pieces point to them
    std::vector<ggml_hugepages_piece> pieces;
    for (auto * ctx : buffered) {
        for_each_weight(ml, ctx, [&](ggml_tensor * cur, const auto & weight) {
            // CPU_REPACK interleaves up to 64 rows, and keeps each group of rows at its offset
            const std::string buft     = ggml_backend_buft_name(ggml_backend_buffer_get_type(cur->buffer));
            const bool        by_rows  = buft == "CPU" || buft == "CPU_REPACK";
            const size_t      row_size = ggml_row_size(cur->type, cur->ne[0]);
            const size_t      group    = 64*row_size;
            const size_t      step     = by_rows ? std::max<size_t>(1, 8*1024*1024/group)*group : ggml_nbytes(cur);
            loaded_tensors.insert(cur);
            if (is_attached(ctx)) {
                return;
            }
            targets.push_back({ cur, by_rows ? nullptr : &mutex, ml.check_tensors, &refused });
            for (size_t at = 0; at < ggml_nbytes(cur); at += step) {
                pieces.push_back({ images.at(weight.idx).get(), weight.offs + at, weight.offs + std::min(at + step, ggml_nbytes(cur)),
                    place_rows, &targets.back(), at });
            }
        });
    }

    struct progress {
        llama_hugepages          * self;
        const llama_model_loader * ml;
        llama_progress_callback    callback;
        void                     * user_data;
    } ud = { this, &ml, progress_callback, progress_callback_user_data };

    const auto on_progress = [](uint64_t done, uint64_t total, void * user_data) {
        auto & p = *(progress *) user_data;
        p.self->n_ahead = total ? (size_t) ((double) done/total*p.self->n_bytes) : 0;
        return p.callback == nullptr || p.callback((float) p.self->n_ahead/p.ml->size_data, p.user_data);
    };

    const auto settle = [&] {
        for (auto * ctx : buffered) {
            ggml_hugepages_error error = {};
            auto * buffer = ggml_get_first_tensor(ctx)->buffer;
            if (buffer && !ggml_hugepages_buffer_settle(ggml_backend_buffer_get_base(buffer), &error)) {
                raise(error);
            }
        }
    };

    std::vector<arrivals> arriving;
    if (ml.check_tensors && use_mmap) {
        arriving = arrivals_of(ml, contexts, buffered);
        for (size_t i = 0; i < images.size(); i++) {
            ggml_hugepages_image_on_arrival(images[i].get(), check_arrivals, &arriving[i]);
        }
    }

    ggml_hugepages_error error = {};
    auto imgs = handles();
    if (!ggml_hugepages_fill(imgs.data(), imgs.size(), pieces.data(), pieces.size(), &params, on_progress, &ud, &error)) {
        if (error.status == GGML_HUGEPAGES_STATUS_ABORTED) {
            return false;
        }
        if (refused) {
            settle();
        }
        if (error.status == GGML_HUGEPAGES_STATUS_INVALID) {
            throw std::runtime_error("found tensors with invalid data");
        }
        raise(error);
    }
    settle();
    for (const auto & tensors : arriving) {
        for (const auto & t : tensors) {
            // tensors in the file mapping, and resident tensors, were not read
            if (t.missing == 0) {
                checked_tensors.insert(t.tensor);
            }
        }
    }
    n_ahead = n_bytes;
    return true;
}

bool llama_hugepages::loaded(const ggml_tensor * tensor) const {
    return loaded_tensors.count(tensor) > 0;
}

bool llama_hugepages::checked(const ggml_tensor * tensor) const {
    return checked_tensors.count(tensor) > 0;
}

size_t llama_hugepages::ahead() const {
    return n_ahead;
}

void llama_hugepages::counted(const ggml_context * ctx, size_t size) {
    if (std::find(contexts.begin(), contexts.end(), ctx) != contexts.end()) {
        n_ahead -= std::min(n_ahead, size);
    }
}

std::vector<ggml_hugepages_image_t> llama_hugepages::handles() const {
    std::vector<ggml_hugepages_image_t> result;
    for (const auto & image : images) {
        result.push_back(image.get());
    }
    return result;
}

size_t llama_hugepages_size(const llama_model & model, ggml_backend_buffer_type_t buft, size_t size) {
    const auto & params = model.hugepages();
    if (!params.enabled || !model.hparams.no_alloc || !ggml_backend_buft_is_host(buft)) {
        return size;
    }
    const size_t page_size = smallest_page(params);
    return page_size == 0 ? size : size < page_size ? 0 : (size + page_size - 1)/page_size*page_size;
}

void * llama_hugepages_map(const llama_hugepages_image & image) {
    ggml_hugepages_error error = {};
    void * addr = ggml_hugepages_image_map(image.get(), &error);
    if (!addr) {
        raise(error);
    }
    return addr;
}

std::vector<std::pair<size_t, size_t>> llama_hugepages_no_prefetch(
        const llama_hugepages_image & image, const std::vector<std::pair<size_t, size_t>> & lazy_ranges) {
    std::vector<std::pair<size_t, size_t>> result;
    size_t first, last; // NOLINT
    while (image && ggml_hugepages_image_read(image.get(), result.size(), &first, &last)) {
        result.emplace_back(first, last);
    }
    result.insert(result.end(), lazy_ranges.begin(), lazy_ranges.end());
    return result;
}

void llama_hugepages_hint(const llama_model_params & params, const std::string & fname, const std::exception & err) {
#ifdef __linux__
    // the pass that only measures memory fails on the same file before
    if (!params.hugepages.enabled || params.no_alloc || fname.empty()) {
        return;
    }
    struct stat st = {};
    FILE * file = ggml_fopen(fname.c_str(), "rb");
    if (!file || fstat(fileno(file), &st) != 0) {
        LLAMA_LOG_ERROR("hint: cannot open '%s': %s%s\n", fname.c_str(), strerror(errno),
            errno == EACCES ? "; give this user the right to read the file" : "");
        return;
    }
    if (S_ISDIR(st.st_mode)) {
        LLAMA_LOG_ERROR("hint: '%s' is a directory: name a .gguf file in this directory\n", fname.c_str());
        fclose(file);
        return;
    }
    char magic[4] = {};
    const bool is_gguf = fread(magic, 1, sizeof(magic), file) == sizeof(magic) && memcmp(magic, GGUF_MAGIC, sizeof(magic)) == 0;
    fclose(file);
    if (!is_gguf) {
        LLAMA_LOG_ERROR("hint: '%s' is not a GGUF file: convert the model, or download it again\n", fname.c_str());
    } else if (strstr(err.what(), "file bounds")) {
        LLAMA_LOG_ERROR("hint: '%s' ends after %jd bytes, in the middle of a tensor: copy or download the file again\n",
            fname.c_str(), (intmax_t) st.st_size);
    } else if (strstr(err.what(), "failed to load model from")) {
        LLAMA_LOG_ERROR("hint: '%s' has %jd bytes, but its header cannot be read: copy or download the file again\n",
            fname.c_str(), (intmax_t) st.st_size);
    }
#else
    GGML_UNUSED(params);
    GGML_UNUSED(fname);
    GGML_UNUSED(err);
#endif
}
