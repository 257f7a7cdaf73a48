#include "llama-hugepages.h"

#include "llama-impl.h"
#include "llama-model-loader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#ifdef __linux__
#include <sys/stat.h>
#endif

[[noreturn]] static void raise(const ggml_hugepages_error & error) {
    throw std::runtime_error(error.hint[0] ? format("%s\nhint: %s", error.message, error.hint) : std::string(error.message));
}

void llama_hugepages::plan(const llama_model_loader & ml) {
    if (!params.enabled || ml.no_alloc || ml.files.empty()) {
        return;
    }
    if (!ml.use_mmap) {
        if (params.policy == GGML_HUGEPAGES_POLICY_REQUIRE) {
            throw std::runtime_error("huge pages need a mapped model, and this load mode does not map it\n"
                "hint: --load-mode mmap, or --hugepage-policy prefer");
        }
        LLAMA_LOG_WARN("%s: this load mode does not map the model: no weights on huge pages\n", __func__);
        return;
    }

    for (const auto & file : ml.files) {
        images.emplace_back(ggml_hugepages_image_init(file->file_id(), file->size()), ggml_hugepages_image_free);
    }

    auto * cpu_dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    for (const auto & [key, ctx] : ml.ctx_map) {
        auto * dev = ggml_backend_buft_get_device(key.buft);
        if (key.lazy || (dev && dev != cpu_dev)) {
            continue;
        }
        const bool mapped = key.buft == ggml_backend_dev_buffer_type(cpu_dev);
        for (auto * cur = ggml_get_first_tensor(ctx.get()); cur; cur = ggml_get_next_tensor(ctx.get(), cur)) {
            const auto * weight = ml.get_weight(ggml_get_name(cur));
            if (!weight) {
                continue;
            }
            if (mapped) {
                ggml_hugepages_image_want(images.at(weight->idx).get(), weight->offs, weight->offs + ggml_nbytes(cur));
                n_bytes += ggml_nbytes(cur);
            } else {
                n_repack += ggml_nbytes(cur);
            }
        }
        if (mapped) {
            contexts.push_back(ctx.get());
        }
    }

    ggml_hugepages_error error = {};
    auto imgs = handles();
    if (!ggml_hugepages_plan(imgs.data(), imgs.size(), &params, &error)) {
        if (params.policy == GGML_HUGEPAGES_POLICY_REQUIRE) {
            raise(error);
        }
        LLAMA_LOG_WARN("%s: no weights on huge pages: %s\n", __func__, error.message);
        images.clear();
        contexts.clear();
    }
}

llama_hugepages_image llama_hugepages::image(size_t idx) const {
    return idx < images.size() ? images[idx] : nullptr;
}

void llama_hugepages::overlay() {
    ggml_hugepages_error error = {};
    auto imgs = handles();
    if (!ggml_hugepages_overlay(imgs.data(), imgs.size(), &error)) {
        raise(error);
    }
}

bool llama_hugepages::fill(const llama_model_loader & ml, llama_progress_callback progress_callback, void * progress_callback_user_data) {
    if (images.empty()) {
        return true;
    }

    struct progress {
        llama_hugepages          * self;
        const llama_model_loader * ml;
        llama_progress_callback    callback;
        void                     * user_data;
    } ud = { this, &ml, progress_callback, progress_callback_user_data };

    const auto on_progress = [](uint64_t done, uint64_t total, void * user_data) {
        auto & p = *(progress *) user_data;
        // blocks that are read again after a shortage do not take it back
        p.self->n_ahead = std::max(p.self->n_ahead, total ? (size_t) ((double) done/total*p.self->n_bytes) : 0);
        return p.callback == nullptr || p.callback((float) p.self->n_ahead/p.ml->size_data, p.user_data);
    };

    ggml_hugepages_error error = {};
    auto imgs = handles();
    if (!ggml_hugepages_fill(imgs.data(), imgs.size(), on_progress, &ud, &error)) {
        if (error.status == GGML_HUGEPAGES_STATUS_ABORTED) {
            return false;
        }
        raise(error);
    }
    n_ahead = n_bytes;

    if (n_repack > 0) {
        LLAMA_LOG_WARN("%s: %.2f MiB of weights are repacked for this CPU and stay in ordinary memory, --no-repack keeps them mapped\n",
            __func__, n_repack/1024.0/1024.0);
    }
    return true;
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

void * llama_hugepages_map(const llama_hugepages_image & image) {
    ggml_hugepages_error error = {};
    void * addr = ggml_hugepages_image_map(image.get(), &error);
    if (!addr) {
        raise(error);
    }
    return addr;
}

std::vector<std::pair<size_t, size_t>> llama_hugepages_runs(const llama_hugepages_image & image) {
    std::vector<std::pair<size_t, size_t>> result;
    size_t first, last; // NOLINT
    while (image && ggml_hugepages_image_run(image.get(), result.size(), &first, &last)) {
        result.emplace_back(first, last);
    }
    return result;
}

void llama_hugepages_hint(const llama_model_params & params, const std::string & fname, const std::exception & err) {
#ifdef __linux__
    // the pass that only measures memory fails on the same file first
    if (!params.hugepages.enabled || params.no_alloc || fname.empty()) {
        return;
    }
    struct stat st = {};
    FILE * file = ggml_fopen(fname.c_str(), "rb");
    if (!file || fstat(fileno(file), &st) != 0) {
        LLAMA_LOG_ERROR("hint: cannot open '%s': %s%s\n", fname.c_str(), strerror(errno),
            errno == EACCES ? ", give this user the right to read it" : "");
        return;
    }
    if (S_ISDIR(st.st_mode)) {
        LLAMA_LOG_ERROR("hint: '%s' is a directory, pass a .gguf file in it\n", fname.c_str());
        fclose(file);
        return;
    }
    char magic[4] = {};
    const bool is_gguf = fread(magic, 1, sizeof(magic), file) == sizeof(magic) && memcmp(magic, GGUF_MAGIC, sizeof(magic)) == 0;
    fclose(file);
    if (!is_gguf) {
        LLAMA_LOG_ERROR("hint: '%s' is not a GGUF file, convert the model or download it again\n", fname.c_str());
    } else if (strstr(err.what(), "file bounds")) {
        LLAMA_LOG_ERROR("hint: '%s' ends after %jd bytes, in the middle of a tensor: copy or download it again\n",
            fname.c_str(), (intmax_t) st.st_size);
    } else if (strstr(err.what(), "failed to load model from")) {
        LLAMA_LOG_ERROR("hint: '%s' has %jd bytes and a header that cannot be read: copy or download it again\n",
            fname.c_str(), (intmax_t) st.st_size);
    }
#else
    GGML_UNUSED(params);
    GGML_UNUSED(fname);
    GGML_UNUSED(err);
#endif
}
