// The reaction to the kernel's refusal of a page.
//
//   require   the load ends with the need and the cause
//   prefer    ordinary memory replaces the blocks, and the load continues

#ifdef __linux__

#include "policy.h"
#include "map.h"
#include "names.h"
#include "ggml-impl.h"

#include <cerrno>
#include <cstring>

bool ggml_hugepages_policy_refused(
        ggml_hugepages_image         & image,
        const ggml_hugepages_refusal & refusal,
        size_t                         first,
        size_t                         last,
        ggml_hugepages_error         * error) {
    if (!ggml_hugepages_accepts_less(&image.params)) {
        error->status = GGML_HUGEPAGES_STATUS_SHORT; // fail_refused sets the message, after the load has returned its pages
        return false;
    }
    if (!image.is_told) {
        image.is_told = true;
        GGML_LOG_WARN("%s: no huge page of %s is left for offset %zu of %s (%s: %s), the rest uses ordinary memory\n", __func__,
            ggml_hugepages_size_name(refusal.page_size).c_str(), first, image.path.c_str(), refusal.call,
            refusal.err == EFAULT ? "refused at the page fault" : strerror(refusal.err));
    }
    return ggml_hugepages_drop(image, refusal.page_size, first, last, error);
}

#endif // __linux__
