#include "llama-hugepages.h"
#include "llama-impl.h"

#include <cerrno>
#include <cstdint>
#include <cstring>

#ifdef __linux__
#include <sys/stat.h>
#endif

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
