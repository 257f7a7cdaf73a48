// Other systems: no huge pages. Each function reports this, or does what plain memory does.

#ifndef __linux__

#include "error.h"

#include "ggml-impl.h"

#include <cerrno>

#ifndef _WIN32
#include <sys/mman.h>
#endif

static bool unsupported(ggml_hugepages_error * error) {
    return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "huge pages are available only on Linux");
}

//
// pools
//

size_t ggml_hugepages_page_sizes(const char *, size_t *, size_t) noexcept {
    return 0;
}

size_t ggml_hugepages_page_size(const char *) noexcept {
    return 0;
}

bool ggml_hugepages_pool_read(const char *, size_t, ggml_hugepages_pool * pool) noexcept {
    *pool = {};
    return false;
}

uint64_t ggml_hugepages_memory_available() noexcept {
    return 0;
}

uint64_t ggml_hugepages_pool_usable(const ggml_hugepages_pool *) noexcept {
    return 0;
}

bool ggml_hugepages_probe(size_t, ggml_hugepages_error * error) noexcept {
    return unsupported(error);
}

//
// images: the caller gets no image, and all functions accept none
//

ggml_hugepages_image_t ggml_hugepages_image_init(int, size_t) {
    return nullptr;
}

void ggml_hugepages_image_free(ggml_hugepages_image_t) {
}

void ggml_hugepages_image_want(ggml_hugepages_image_t, size_t, size_t, ggml_hugepages_rank) {
}

void ggml_hugepages_image_share(ggml_hugepages_image_t, const ggml_hugepages_matrices *) {
}

void ggml_hugepages_order_by_node(const ggml_hugepages_params *, size_t, ggml_hugepages_matrices *) {
}

bool ggml_hugepages_is_by_node(const void *, ggml_hugepages_matrices *) {
    return false;
}

size_t ggml_hugepages_offset_by_node(const ggml_hugepages_matrices *, size_t offset, size_t * n) {
    *n = SIZE_MAX;
    return offset;
}

bool ggml_hugepages_image_is_wanted(ggml_hugepages_image_t) {
    return false;
}

bool ggml_hugepages_image_is_huge(ggml_hugepages_image_t) {
    return false;
}

size_t ggml_hugepages_image_granularity(ggml_hugepages_image_t) {
    return 1;
}

size_t ggml_hugepages_image_length(ggml_hugepages_image_t) {
    return 0;
}

void ggml_hugepages_image_expect(ggml_hugepages_image_t, size_t, size_t) {
}

void ggml_hugepages_image_on_arrival(ggml_hugepages_image_t, ggml_hugepages_arrived_callback, void *) {
}

bool ggml_hugepages_image_read(ggml_hugepages_image_t, size_t, size_t *, size_t *) {
    return false;
}

uint64_t ggml_hugepages_buffer_size(const ggml_hugepages_params *, uint64_t size) noexcept {
    return size;
}

bool ggml_hugepages_plan(ggml_hugepages_image_t *, size_t, const ggml_hugepages_demand *, size_t, const ggml_hugepages_params *, ggml_hugepages_error * error) {
    return unsupported(error);
}

int ggml_hugepages_turn_begin() noexcept {
    return -1;
}

void ggml_hugepages_turn_end(int) noexcept {
}

ggml_hugepages_memory ggml_hugepages_planned_memory() noexcept {
    return {};
}

size_t ggml_hugepages_get_needs(ggml_hugepages_need *, size_t) {
    return 0;
}

void ggml_hugepages_plan_together(bool, bool) {
}

void * ggml_hugepages_image_map(ggml_hugepages_image_t, ggml_hugepages_error * error) {
    unsupported(error);
    return nullptr;
}

bool ggml_hugepages_overlay(ggml_hugepages_image_t *, size_t, ggml_hugepages_error * error) {
    return unsupported(error);
}

bool ggml_hugepages_fill(ggml_hugepages_image_t *, size_t, const ggml_hugepages_piece *, size_t, const ggml_hugepages_params *,
        ggml_hugepages_progress_callback, void *, ggml_hugepages_error * error) {
    return unsupported(error);
}

void ggml_hugepages_hold_end(uint32_t) noexcept {
}

//
// buffers
//

void * ggml_hugepages_buffer_alloc(size_t size) {
    return ggml_aligned_malloc(size);
}

void ggml_hugepages_buffer_free(void * ptr, size_t size) {
    ggml_aligned_free(ptr, size);
}

bool ggml_hugepages_is_buffer(const void *) {
    return false;
}

bool ggml_hugepages_buffer_populate(void *, size_t) {
    return true;
}

bool ggml_hugepages_buffer_settle(void *, ggml_hugepages_error *) {
    return true;
}

//
// resident images
//

bool ggml_hugepages_file_identity(int, size_t, const uint64_t *, size_t, const ggml_hugepages_params *, char *, size_t) noexcept {
    return false;
}

ggml_hugepages_resident_t ggml_hugepages_resident_init(ggml_hugepages_kind, int, const char *, const char *, size_t) {
    return nullptr;
}

void ggml_hugepages_resident_free(ggml_hugepages_resident_t) {
}

void ggml_hugepages_image_reside(ggml_hugepages_image_t, ggml_hugepages_resident_t) {
}

bool ggml_hugepages_residents_open(ggml_hugepages_resident_t *, size_t, const ggml_hugepages_params *, ggml_hugepages_progress_callback, void *, ggml_hugepages_error * error) {
    return unsupported(error);
}

bool ggml_hugepages_resident_is_complete(ggml_hugepages_resident_t) {
    return false;
}

bool ggml_hugepages_resident_read(int, const char *, ggml_hugepages_resident_info *, ggml_hugepages_error * error) noexcept {
    return unsupported(error);
}

bool ggml_hugepages_resident_verify(int, const char *, ggml_hugepages_progress_callback, void *, ggml_hugepages_error * error) noexcept {
    return unsupported(error);
}

bool ggml_hugepages_resident_drop(int, const char *, bool, ggml_hugepages_error * error) noexcept {
    return unsupported(error);
}

ggml_hugepages_resident_t ggml_hugepages_context_init(int, const char *, const char *, size_t) {
    return nullptr;
}

bool ggml_hugepages_context_open(ggml_hugepages_resident_t, const ggml_hugepages_params *, ggml_hugepages_error * error) {
    return unsupported(error);
}

bool ggml_hugepages_context_hold(ggml_hugepages_resident_t, const ggml_hugepages_params *, ggml_hugepages_error * error) {
    return unsupported(error);
}

void * ggml_hugepages_context_journal(const void *, size_t *, bool *) {
    return nullptr;
}

ggml_hugepages_state_t ggml_hugepages_state_new(const void *, size_t, ggml_hugepages_error * error) noexcept {
    unsupported(error);
    return nullptr;
}

ggml_hugepages_state_t ggml_hugepages_state_open(const void *, uint64_t, ggml_hugepages_error * error) noexcept {
    unsupported(error);
    return nullptr;
}

uint64_t ggml_hugepages_state_id(ggml_hugepages_state_t) {
    return 0;
}

void * ggml_hugepages_state_data(ggml_hugepages_state_t, size_t *) {
    return nullptr;
}

void ggml_hugepages_state_close(ggml_hugepages_state_t, bool) noexcept {
}

void ggml_hugepages_states(const void *, size_t, ggml_hugepages_state_callback, void *) noexcept {
}

void ggml_hugepages_state_drop(const void *, uint64_t) noexcept {
}

bool ggml_hugepages_store_find(const char *, size_t, char *, size_t, size_t *, ggml_hugepages_error * error) noexcept {
    return unsupported(error);
}

int ggml_hugepages_node_of_thread(int, int, int other) noexcept {
    return other;
}

int ggml_hugepages_mlock(const void * addr, size_t size) noexcept {
#ifdef _WIN32
    GGML_UNUSED(addr);
    GGML_UNUSED(size);
    return -1;
#else
    return mlock(addr, size);
#endif
}

bool ggml_hugepages_is_own_thread() noexcept {
    return false;
}

bool ggml_hugepages_file_punch(int, size_t, size_t) noexcept {
    errno = ENOSYS;
    return false;
}

//
// report
//

bool ggml_hugepages_get_report(uint32_t, ggml_hugepages_report * report) noexcept {
    *report = {};
    return false;
}

#endif // !__linux__
