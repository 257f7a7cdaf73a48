// Resident images of the files and buffers of a model, and their identity.

#include "llama-hugepages.h"
#include "error.h"
#include "llama-model-loader.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstring>

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

// One place in each tensor, in each expert, and in each 16 MiB, sorted, for each file.
static std::vector<std::vector<uint64_t>> places_of(const llama_model_loader & ml) {
    static const size_t STEP  = 16*1024*1024;
    static const size_t BLOCK = 4096; // small experts share one
    std::vector<std::vector<uint64_t>> places(ml.files.size());
    for (const auto & [_, weight] : ml.weights_map) {
        const size_t size  = ggml_nbytes(weight.tensor);
        if (size == 0) {
            continue;
        }
        const size_t parts = std::max<size_t>(weight.tensor->ne[2]*weight.tensor->ne[3], (size + STEP - 1)/STEP);
        for (size_t i = 0; i < parts; i++) {
            places[weight.idx].push_back(weight.offs + size/parts*i + size/parts/2);
        }
    }
    for (auto & of_file : places) {
        std::sort(of_file.begin(), of_file.end());
        const auto is_same = [](uint64_t a, uint64_t b) { return a/BLOCK == b/BLOCK; };
        of_file.erase(std::unique(of_file.begin(), of_file.end(), is_same), of_file.end());
    }
    return places;
}

// The identity of each file. Its header ends at the first tensor.
static std::vector<std::string> identities_of(const llama_model_loader & ml, const ggml_hugepages_params & params) {
    std::vector<size_t> headers(ml.files.size(), SIZE_MAX);
    for (const auto & [_, weight] : ml.weights_map) {
        headers[weight.idx] = std::min(headers[weight.idx], weight.offs);
    }
    const auto places = places_of(ml);
    std::vector<std::string> result;
    for (size_t i = 0; i < ml.files.size(); i++) {
        char text[256];
        const size_t header = headers[i] == SIZE_MAX ? ml.files[i]->size() : headers[i];
        if (!ggml_hugepages_file_identity(ml.files[i]->file_id(), header, places[i].data(), places[i].size(), &params, text, sizeof(text))) {
            throw std::runtime_error(format("cannot read file %zu: %s", i, strerror(errno)));
        }
        result.emplace_back(text);
    }
    return result;
}

// everything that determines the bytes of a buffer
static std::string identity_of(
        const std::vector<std::string> & files, ggml_context * ctx, ggml_backend_buffer_type_t buft, const std::vector<ggml_hugepages_matrices> & matrices) {
    std::string text;
    for (const auto & file : files) {
        text += file + "\n";
    }
    text += format("buffer %s\ncpu%s\n", ggml_backend_buft_name(buft), cpu_features().c_str());
    for (auto * cur = ggml_get_first_tensor(ctx); cur; cur = ggml_get_next_tensor(ctx, cur)) {
        text += format("tensor %s %s %" PRId64 "x%" PRId64 "x%" PRId64 "x%" PRId64 " %zu\n", ggml_get_name(cur), ggml_type_name(cur->type),
            cur->ne[0], cur->ne[1], cur->ne[2], cur->ne[3], ggml_backend_buft_get_alloc_size(buft, cur));
    }
    for (const auto & m : matrices) {
        if (m.node_rows[0] > 0) {
            text += format("by node at %zu", m.first);
            for (const uint32_t rows : m.node_rows) {
                text += format(" %u", rows);
            }
            text += "\n";
        }
    }
    return text;
}

const std::vector<std::string> & llama_hugepages::files_of(const llama_model_loader & ml) {
    if (identities.empty()) {
        identities = identities_of(ml, params);
    }
    return identities;
}

// Opens the context of the KV cache that the plan counts. nullptr if it is not kept, after a warning.
llama_hugepages_resident llama_hugepages::open_context(const llama_model_loader & ml) {
    if (!params.store[0] || params.context_bytes == 0 || params.kv_bytes == 0) {
        return nullptr;
    }
    std::string text;
    for (const auto & file : files_of(ml)) {
        text += file + "\n";
    }
    text += format("context %016" PRIx64 "\ncpu%s\n", params.context_key, cpu_features().c_str());
    const char * name = names.empty() ? nullptr : names[0].c_str();
    const llama_hugepages_resident context(
        ggml_hugepages_context_init(ml.files[0]->file_id(), name, text.c_str(), params.kv_bytes + params.context_bytes), ggml_hugepages_resident_free);
    ggml_hugepages_error error = {};
    if (ggml_hugepages_context_open(context.get(), &params, &error)) {
        return context;
    }
    if (!params.plan_only) {
        LLAMA_LOG_WARN("%s: no conversation will remain in memory after this process ends: %s\n", __func__, error.message);
        if (error.hint[0]) {
            LLAMA_LOG_WARN("hint: %s\n", error.hint);
        }
    }
    return nullptr;
}

void llama_hugepages::open_residents(const llama_model_loader & ml) {
    const auto is_resident = [](const auto & image) {
        // a file on hugetlbfs stays in memory without a resident image
        return ggml_hugepages_image_is_wanted(image.get()) && !ggml_hugepages_image_is_huge(image.get());
    };
    const auto is_resident_buffer = [&](const auto & entry) { return is_buffered(entry.second.get()) && is_plain(entry.first.buft); };
    if (std::none_of(images.begin(), images.end(), is_resident) && std::none_of(ml.ctx_map.begin(), ml.ctx_map.end(), is_resident_buffer)) {
        return;
    }
    const auto & files = files_of(ml);
    std::vector<llama_hugepages_resident> all; // images keep a pointer to theirs
    const auto add = [&](ggml_hugepages_kind kind, size_t i, const std::string & identity, size_t size) {
        const char * name = i < names.size() ? names[i].c_str() : nullptr;
        all.emplace_back(ggml_hugepages_resident_init(kind, ml.files[i]->file_id(), name, identity.c_str(), size), ggml_hugepages_resident_free);
        return all.back();
    };
    for (size_t i = 0; i < images.size(); i++) {
        if (is_resident(images[i])) {
            const auto resident = add(GGML_HUGEPAGES_KIND_WEIGHTS, i, files[i], ml.files[i]->size());
            ggml_hugepages_image_reside(images[i].get(), resident.get());
        }
    }
    for (const auto & entry : ml.ctx_map) {
        const auto & [key, ctx] = entry;
        if (is_resident_buffer(entry)) {
            const size_t size = ggml_backend_alloc_ctx_tensors_from_buft_size(ctx.get(), key.buft);
            resident_buffers[ctx.get()] = add(kind(key.buft), 0, identity_of(files, ctx.get(), key.buft, matrices(ctx.get())), size);
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
            llama_hugepages_raise(error);
        }
        LLAMA_LOG_WARN("%s: no weights will remain in memory after this process ends: %s\n", __func__, error.message);
        for (const auto & image : images) {
            ggml_hugepages_image_reside(image.get(), nullptr);
        }
        resident_buffers.clear();
    }
}
