// The words of options, reports and messages.

#include "names.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

const char * ggml_hugepages_policy_name(ggml_hugepages_policy policy) noexcept {
    switch (policy) {
        case GGML_HUGEPAGES_POLICY_REQUIRE: return "require";
        case GGML_HUGEPAGES_POLICY_PREFER:  return "prefer";
    }
    return "unknown";
}

bool ggml_hugepages_policy_from_str(const char * str, ggml_hugepages_policy * policy) noexcept {
    for (auto p : { GGML_HUGEPAGES_POLICY_REQUIRE, GGML_HUGEPAGES_POLICY_PREFER }) {
        if (strcmp(str, ggml_hugepages_policy_name(p)) == 0) {
            *policy = p;
            return true;
        }
    }
    return false;
}

const char * ggml_hugepages_kind_name(ggml_hugepages_kind kind) noexcept {
    switch (kind) {
        case GGML_HUGEPAGES_KIND_WEIGHTS:  return "weights";
        case GGML_HUGEPAGES_KIND_REPACKED: return "repacked";
        case GGML_HUGEPAGES_KIND_KV:       return "kv";
        case GGML_HUGEPAGES_KIND_COMPUTE:  return "compute";
        case GGML_HUGEPAGES_KIND_OTHER:    return "other";
        case GGML_HUGEPAGES_KIND_COUNT:    break;
    }
    return "unknown";
}

std::string ggml_hugepages_size_name(size_t page_size) {
    char buf[32];
    if (page_size >= GGML_HUGEPAGES_GIB) {
        snprintf(buf, sizeof(buf), "%zu GiB", page_size/GGML_HUGEPAGES_GIB);
    } else if (page_size >= GGML_HUGEPAGES_MIB) {
        snprintf(buf, sizeof(buf), "%zu MiB", page_size/GGML_HUGEPAGES_MIB);
    } else {
        snprintf(buf, sizeof(buf), "%zu KiB", page_size/GGML_HUGEPAGES_KIB);
    }
    return buf;
}

bool ggml_hugepages_size_from_str(const char * str, size_t * page_size) noexcept try {
    if (strcmp(str, "auto") == 0) {
        *page_size = GGML_HUGEPAGES_SIZE_AUTO;
        return true;
    }
    if (strcmp(str, "thp") == 0) {
        *page_size = GGML_HUGEPAGES_SIZE_THP;
        return true;
    }
    if (*str < '0' || *str > '9') {
        return false;
    }
    char * end = nullptr;
    const uint64_t value = strtoull(str, &end, 10);
    // page sizes are powers of two, so M and MB can only mean MiB
    uint64_t unit = 0;
    for (const auto & [name, bytes] : std::map<std::string, uint64_t>{
            { "", 1 }, { "k", GGML_HUGEPAGES_KIB }, { "kb", GGML_HUGEPAGES_KIB }, { "kib", GGML_HUGEPAGES_KIB }, { "m", GGML_HUGEPAGES_MIB }, { "mb", GGML_HUGEPAGES_MIB }, { "mib", GGML_HUGEPAGES_MIB }, { "g", GGML_HUGEPAGES_GIB }, { "gb", GGML_HUGEPAGES_GIB }, { "gib", GGML_HUGEPAGES_GIB } }) {
        std::string suffix = end;
        std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return (char) tolower(c); });
        if (suffix == name) {
            unit = bytes;
        }
    }
    if (unit == 0 || value == 0 || value > SIZE_MAX/unit) {
        return false;
    }
    const uint64_t bytes = value*unit;
    if (bytes < 64*GGML_HUGEPAGES_KIB || (bytes & (bytes - 1)) != 0) {
        return false;
    }
    *page_size = bytes;
    return true;
} catch (...) {
    return false;
}

int ggml_hugepages_backing_to_str(ggml_hugepages_backing backing, size_t page_size, char * buf, size_t size) noexcept {
    switch (backing) {
        case GGML_HUGEPAGES_BACKING_HUGE: {
            // "2 MiB" -> "2M"
            const std::string name = ggml_hugepages_size_name(page_size);
            const size_t space = name.find(' ');
            return snprintf(buf, size, "%s%c", name.substr(0, space).c_str(), name[space + 1]);
        }
        case GGML_HUGEPAGES_BACKING_THP:  return snprintf(buf, size, "thp");
        case GGML_HUGEPAGES_BACKING_BASE: return snprintf(buf, size, "base");
        case GGML_HUGEPAGES_BACKING_FILE: return snprintf(buf, size, "file");
        case GGML_HUGEPAGES_BACKING_COUNT: break;
    }
    return snprintf(buf, size, "unknown");
}
