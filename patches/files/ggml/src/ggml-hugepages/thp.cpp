#ifdef __linux__

#include "thp.h"
#include "error.h"
#include "read.h"
#include "shortage.h"
#include "vmas.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cerrno>

bool ggml_hugepages_populate_thp(ggml_hugepages_image_t * images, size_t n, ggml_hugepages_error * error) {
    size_t wanted = 0;
    for (size_t i = 0; i < n; i++) {
        if (images[i]->is_thp()) {
            ggml_hugepages_refusal refusal = {};
            ggml_hugepages_image * refused = nullptr;
            if (!ggml_hugepages_populate_all(*images[i], &refused, &refusal, error)) {
                if (refused) {
                    errno = refusal.err;
                    ggml_hugepages_fail_ordinary(error, *refused, images[i]->size);
                    error->status = GGML_HUGEPAGES_STATUS_SHORT;
                }
                return false;
            }
            for (const auto & r : images[i]->runs) {
                wanted += r.last - r.first;
            }
        }
    }
    if (wanted == 0) {
        return true;
    }
    const auto vmas = ggml_hugepages_vmas(nullptr);
    if (vmas.empty()) {
        return ggml_hugepages_fail_errno(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "cannot count transparent huge pages", "/proc/self/smaps");
    }
    size_t huge = 0;
    for (const auto & vma : vmas) {
        const bool is_ours = std::any_of(images, images + n, [&](const auto * image) {
            return image->is_thp() && vma.first < (size_t) image->addr + image->length && vma.last > (size_t) image->addr;
        });
        huge += is_ours ? vma.anon_huge : 0;
    }
    if (huge >= wanted) {
        return true;
    }
    if (!ggml_hugepages_accepts_less(&images[0]->params)) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "only %.2f of %.2f MiB got transparent huge pages",
            huge/1024.0/1024.0, wanted/1024.0/1024.0);
        ggml_hugepages_hint(error, "as root: echo 1 > /proc/sys/vm/compact_memory, then try again");
        ggml_hugepages_hint_prefer(images[0]->params, error);
        return false;
    }
    GGML_LOG_WARN("%s: only %.2f of %.2f MiB got transparent huge pages\n", __func__, huge/1024.0/1024.0, wanted/1024.0/1024.0);
    return true;
}

#endif // __linux__
