#include "error.h"

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>

// Cuts at a word border.
static void copy_text(char * to, size_t size, const std::string & text) {
    static const char MORE[] = " ...";
    if (text.size() < size) {
        memcpy(to, text.c_str(), text.size() + 1);
        return;
    }
    size_t end = text.rfind(' ', size - sizeof(MORE));
    end = end == std::string::npos ? size - sizeof(MORE) : end;
    memcpy(to, text.data(), end);
    memcpy(to + end, MORE, sizeof(MORE));
}

static std::string to_text(const char * fmt, va_list args) {
    va_list again;
    va_copy(again, args);
    const int n = vsnprintf(nullptr, 0, fmt, again);
    va_end(again);
    std::string text(n > 0 ? n : 0, '\0');
    vsnprintf(&text[0], text.size() + 1, fmt, args);
    return text;
}

bool ggml_hugepages_fail(ggml_hugepages_error * error, ggml_hugepages_status status, const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    error->status = status;
    copy_text(error->message, sizeof(error->message), to_text(fmt, args));
    va_end(args);
    error->hint[0] = '\0';
    ggml_hugepages_set_shortage(error, 0, 0, 0);
    return false;
}

void ggml_hugepages_set_shortage(ggml_hugepages_error * error, size_t page_size, uint64_t needed, uint64_t usable) {
    error->page_size = page_size;
    error->needed    = needed;
    error->usable    = usable;
}

bool ggml_hugepages_fail_errno(ggml_hugepages_error * error, ggml_hugepages_status status, const char * what, const std::string & path) {
    return ggml_hugepages_fail(error, status, "%s for %s: %s", what, path.c_str(), strerror(errno));
}

void ggml_hugepages_hint(ggml_hugepages_error * error, const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    copy_text(error->hint, sizeof(error->hint), to_text(fmt, args));
    va_end(args);
}

void ggml_hugepages_hint_errno(ggml_hugepages_error * error, int err, const char * call, const char * otherwise) {
    if (err == EMFILE || err == ENFILE) {
        ggml_hugepages_hint(error, "raise the limit of open files (ulimit -n; systemd: LimitNOFILE=)");
    } else if (err == EFBIG) {
        ggml_hugepages_hint(error, "run ulimit -f unlimited (systemd: LimitFSIZE=infinity)");
    } else if (err == ENOSYS || err == EPERM) {
        ggml_hugepages_hint(error, "allow %s in the system call filter of the service or container, or %s", call, otherwise);
    } else {
        ggml_hugepages_hint(error, "%s", otherwise);
    }
}
