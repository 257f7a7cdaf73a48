#pragma once

// Which tensors of a model shall lie on huge pages: those that the CPU reads, in the mapped file or in buffers.
// How they get there is ggml-hugepages.h.

#include "llama.h"

#include <exception>
#include <map>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

struct llama_model_loader;

using llama_hugepages_image    = std::shared_ptr<struct ggml_hugepages_image>;
using llama_hugepages_resident = std::shared_ptr<struct ggml_hugepages_resident>;

// what CPU buffers that this thread allocates are for, and where they come from, until its end
struct llama_hugepages_scope {
    llama_hugepages_scope(const ggml_hugepages_params & params, ggml_hugepages_kind kind, bool late = false);
    // for the weights of a context
    llama_hugepages_scope(const struct llama_hugepages & hugepages, const ggml_context * ctx, ggml_backend_buffer_type_t buft);
    // as the model was loaded; what a model that is only measured allocates is not worth a page
    llama_hugepages_scope(const llama_model & model, ggml_hugepages_kind kind, bool late = false);
    ~llama_hugepages_scope();

    llama_hugepages_scope(const llama_hugepages_scope &) = delete;
    llama_hugepages_scope & operator=(const llama_hugepages_scope &) = delete;

private:
    ggml_hugepages_scope         scope;
    const ggml_hugepages_scope * before = nullptr;
};

struct llama_hugepages {
    ggml_hugepages_params params = ggml_hugepages_default_params();

    void begin(const llama_model_params & model_params);

    // before the files are mapped: opens resident images, decides which blocks of which file, and throws if the policy cannot be kept
    void plan(const llama_model_loader & ml);

    // the image of a file that is mapped, nullptr if it has nothing to do with huge pages
    llama_hugepages_image image(size_t idx) const;

    // after the files are mapped: reserves the pages and puts the blocks in place
    void overlay();

    // Whether these tensors shall have a buffer though they could be mapped: they lie so far apart in the file that their
    // blocks would take many more pages than the tensors have bytes.
    bool is_packed(const ggml_context * ctx) const;

    // Whether fill() writes the buffer of these tensors, all of it: its pages are then populated one after the other.
    bool is_buffered(const ggml_context * ctx) const;

    // where the buffer of these tensors stays when the process ends, nullptr: nowhere
    ggml_hugepages_resident_t resident(const ggml_context * ctx) const;

    // what a buffer of this type is for
    static ggml_hugepages_kind kind(ggml_backend_buffer_type_t buft);

    // reads the blocks, and the tensors in CPU buffers, returns false if cancelled by progress_callback
    bool fill(const llama_model_loader & ml, llama_progress_callback progress_callback, void * progress_callback_user_data);

    // fill() has put this tensor where it belongs
    bool loaded(const ggml_tensor * tensor) const;

    // fill() has looked at all bytes of this tensor, which is mapped
    bool checked(const ggml_tensor * tensor) const;

    // fill() reads tensors before load_all_data() counts them: the bytes it is ahead, for the progress
    size_t ahead() const;

    // load_all_data() has counted a tensor
    void counted(const ggml_context * ctx, size_t size);

private:
    llama_progress_callback                 progress_callback           = nullptr; // while another process fills what is waited for
    void                                  * progress_callback_user_data = nullptr;
    std::vector<llama_hugepages_image>      images;   // one for each file, or none
    bool                                    use_mmap = false;
    std::vector<const ggml_context *>       contexts; // whose tensors fill() reads
    std::vector<const ggml_context *>       packed;
    std::vector<ggml_context *>             buffered; // of these, the ones in buffers
    std::vector<const ggml_context *>       attached; // of these, the ones that are resident already
    std::map<const ggml_context *, llama_hugepages_resident> resident_buffers;
    std::unordered_set<const ggml_tensor *> loaded_tensors;
    std::unordered_set<const ggml_tensor *> checked_tensors;
    size_t                                  n_bytes  = 0; // that fill() reads
    size_t                                  n_ahead  = 0; // of these, read and not yet counted

    std::vector<ggml_hugepages_image_t> handles() const;
    void open_residents(const llama_model_loader & ml);
    bool is_attached(const ggml_context * ctx) const;
};

// What a CPU buffer counts in the need: whole pages, and nothing when it is smaller than one. The size itself when the option
// is off, or for other devices.
size_t llama_hugepages_size(const ggml_hugepages_params & params, ggml_backend_buffer_type_t buft, size_t size);

// maps the file of an image, throws on failure
void * llama_hugepages_map(const llama_hugepages_image & image);

// what fill() reads of a file as [first, last) byte ranges: upstream's prefetch leaves it out
std::vector<std::pair<size_t, size_t>> llama_hugepages_reads(const llama_hugepages_image & image);

// after a failed load: logs what the user can do about a file that is not what it should be
void llama_hugepages_hint(const llama_model_params & params, const std::string & fname, const std::exception & err);
