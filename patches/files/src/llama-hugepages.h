#pragma once

// Which bytes of a model file shall lie on huge pages: the tensors that the CPU reads from the mapped file.
// How they get there is ggml-hugepages.h.

#include "llama.h"

#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

struct llama_model_loader;

using llama_hugepages_image = std::shared_ptr<struct ggml_hugepages_image>;

struct llama_hugepages {
    ggml_hugepages_params params = ggml_hugepages_default_params();

    // before the files are mapped: decides which blocks of which file, and throws if the policy cannot be kept
    void plan(const llama_model_loader & ml);

    // the image of a file, nullptr if nothing of it shall lie on huge pages
    llama_hugepages_image image(size_t idx) const;

    // after the files are mapped: reserves the pages and puts the blocks in place
    void overlay();

    // reads the blocks, returns false if cancelled by progress_callback
    bool fill(const llama_model_loader & ml, llama_progress_callback progress_callback, void * progress_callback_user_data);

    // fill() reads tensors before load_all_data() counts them: the bytes it is ahead, for the progress
    size_t ahead() const;

    // load_all_data() has counted a tensor
    void counted(const ggml_context * ctx, size_t size);

private:
    std::vector<llama_hugepages_image>  images;   // one for each file, or none
    std::vector<const ggml_context *>   contexts; // with the wanted tensors
    size_t                              n_bytes  = 0; // in the wanted tensors
    size_t                              n_ahead  = 0; // of these, read and not yet counted
    size_t                              n_repack = 0; // in CPU buffers that are not mapped

    std::vector<ggml_hugepages_image_t> handles() const;
};

// maps the file of an image, throws on failure
void * llama_hugepages_map(const llama_hugepages_image & image);

// the blocks of an image as [first, last) byte ranges of the file, in order
std::vector<std::pair<size_t, size_t>> llama_hugepages_runs(const llama_hugepages_image & image);

// after a failed load: logs what the user can do about a file that is not what it should be
void llama_hugepages_hint(const llama_model_params & params, const std::string & fname, const std::exception & err);
