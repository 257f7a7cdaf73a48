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
    return false;
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
