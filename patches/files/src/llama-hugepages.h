#pragma once

// Chooses the tensors of a model that get huge pages: tensors that the CPU reads, in the mapped file or in buffers. ggml-hugepages.h does
// the rest.

#include "llama.h"

#include <exception>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

struct llama_model_loader;

using llama_hugepages_image    = std::shared_ptr<struct ggml_hugepages_image>;
using llama_hugepages_resident = std::shared_ptr<struct ggml_hugepages_resident>;

// sets the kind and the source of the CPU buffers that this thread allocates, until the scope ends
struct llama_hugepages_scope {
    llama_hugepages_scope(const ggml_hugepages_params & params, ggml_hugepages_kind kind, bool late = false);
    // for the weights of a context
    llama_hugepages_scope(const struct llama_hugepages & hugepages, const ggml_context * ctx, ggml_backend_buffer_type_t buft);
    // with the parameters of the load; a model that is only measured takes no page
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

    // name: the first file. shards: the names of all files, empty if there is only one
    void begin(const llama_model_params & model_params, const std::string & name, const std::vector<std::string> & shards);

    // The loader chose this buffer type for a weight and the operation that reads it.
    void chosen(const ggml_tensor * weight, ggml_op op, ggml_backend_buffer_type_t buft);

    // Before the files are mapped: opens resident images, chooses the blocks of each file, and gives each mapped file its image. Throws if
    // the policy cannot be met.
    void plan(const llama_model_loader & ml);

    // after the files are mapped: reserves the pages and maps the blocks
    void overlay();

    // Whether these tensors get a buffer although they could be mapped: they are so far apart in the file that their blocks would take many
    // more pages than a buffer.
    bool is_packed(const ggml_context * ctx) const;

    // Whether fill() writes the whole buffer of these tensors, so that its pages can be populated one after the other.
    bool is_buffered(const ggml_context * ctx) const;

    // the resident image of the buffer of these tensors, nullptr if it has none
    ggml_hugepages_resident_t resident(const ggml_context * ctx) const;

    // the matrices in the buffer of these tensors
    const std::vector<ggml_hugepages_matrices> & matrices(const ggml_context * ctx) const;

    // False for memory of a GPU, and for host memory that its driver pins.
    static bool is_of_cpu(ggml_backend_buffer_type_t buft);

    // the kind of a buffer of this type
    static ggml_hugepages_kind kind(ggml_backend_buffer_type_t buft);

    // reads the blocks and the tensors in CPU buffers, returns false if progress_callback cancels
    bool fill(const llama_model_loader & ml, llama_progress_callback progress_callback, void * progress_callback_user_data);

    // whether fill() has written this tensor
    bool loaded(const ggml_tensor * tensor) const;

    // whether fill() has checked all bytes of this mapped tensor
    bool checked(const ggml_tensor * tensor) const;

    // bytes that fill() has read and load_all_data() has not counted yet, for the progress
    size_t ahead() const;

    // load_all_data() calls this after it has counted a tensor
    void counted(const ggml_context * ctx, size_t size);

private:
    llama_progress_callback                 progress_callback           = nullptr; // for the wait for another filling process
    void                                  * progress_callback_user_data = nullptr;
    std::vector<std::string>                names;    // of the files, as the user gave them
    std::vector<llama_hugepages_image>      images;   // one for each file, or none
    bool                                    use_mmap = false;
    std::vector<const ggml_context *>       contexts; // their tensors are read by fill()
    std::vector<const ggml_context *>       packed;
    std::vector<ggml_context *>             buffered; // of these, contexts in buffers
    std::vector<const ggml_context *>       attached; // of these, contexts that are already resident
    std::map<const ggml_context *, llama_hugepages_resident> resident_buffers;
    std::vector<std::string>                identities; // of the files, see files_of()
    std::set<std::pair<ggml_backend_buffer_type_t, std::string>>               multiplied; // names of weight matrices
    std::map<const ggml_context *, std::vector<ggml_hugepages_matrices>> matrices_of; // in buffers
    std::unordered_set<const ggml_tensor *> loaded_tensors;
    std::unordered_set<const ggml_tensor *> checked_tensors;
    std::shared_ptr<void>                   turn;         // until all pages are reserved
    size_t                                  n_bytes  = 0; // read by fill()
    size_t                                  n_ahead  = 0; // of these, read but not counted yet

    std::vector<ggml_hugepages_image_t> handles() const;
    const std::vector<std::string> & files_of(const llama_model_loader & ml);
    void open_residents(const llama_model_loader & ml);
    llama_hugepages_resident open_context(const llama_model_loader & ml);
    bool is_matrix(const ggml_tensor * cur, ggml_backend_buffer_type_t buft) const;
    void find_matrices(const llama_model_loader & ml);
    void check_matrices(ggml_context * ctx) const;
    bool is_attached(const ggml_context * ctx) const;
};

// The size of a CPU buffer in the need, ggml_hugepages_buffer_size(), and whole pages for a buffer of an RPC worker. The unchanged size if the
// option is off, for other devices, or if the buffers of the model are allocated.
size_t llama_hugepages_size(const llama_model & model, ggml_backend_buffer_type_t buft, size_t size);

// The size of the compute buffer of backend i in the need: 0 for memory that the driver of a GPU pins, and for a backend that shares the
// buffer of an earlier one, as BLAS and the CPU do.
size_t llama_hugepages_compute_size(const llama_model & model, const std::vector<ggml_backend_buffer_type_t> & bufts, size_t i, size_t size);

// maps the file of an image, throws on failure
void * llama_hugepages_map(const llama_hugepages_image & image);

// The [first, last) byte ranges of a file that upstream's prefetch skips: the lazy ranges, and those that fill() reads.
std::vector<std::pair<size_t, size_t>> llama_hugepages_no_prefetch(
    const llama_hugepages_image & image, const std::vector<std::pair<size_t, size_t>> & lazy_ranges);

// after a failed load: logs a hint if the file is missing, damaged or not a model
void llama_hugepages_hint(const llama_model_params & params, const std::string & fname, const std::exception & err);
