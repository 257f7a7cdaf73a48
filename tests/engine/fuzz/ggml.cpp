// The parts of ggml that the engine uses, for programs that link only the engine.

#include "ggml-impl.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

void ggml_log_internal(ggml_log_level, const char * format, ...) {
    // formats the line without printing it, to find wrong arguments
    char line[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
}

void ggml_abort(const char * file, int line, const char * fmt, ...) {
    fprintf(stderr, "%s:%d: ", file, line);
    va_list args;
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}

const char * ggml_version(void) { return "test"; }
const char * ggml_commit (void) { return "test"; }

void * ggml_aligned_malloc(size_t size) { return size > 0 ? malloc(size) : nullptr; }
void   ggml_aligned_free(void * ptr, size_t) { free(ptr); }
