#ifdef __linux__

#include "store-placement.h"
#include "manifest.h"
#include "placement.h"

static const char LINE[] = "placement ";

std::string ggml_hugepages_placement_line(const ggml_hugepages_params & params) {
    const auto nodes = ggml_hugepages_nodes_of_rows("", params.placement);
    if (nodes.size() < 2) {
        return "";
    }
    std::string text = std::string(LINE) + "rows, nodes";
    for (const int node : nodes) {
        text += " " + std::to_string(node);
    }
    return text + ", threads " + std::to_string(params.n_compute_threads);
}

std::string ggml_hugepages_identity_with(const std::string & content, const std::string & placement) {
    const std::string end  = placement.empty() ? "" : "\n" + placement;
    const size_t      room = sizeof(ggml_hugepages_store_header::identity) - 1 - end.size();
    if (content.size() <= room) {
        return content + end;
    }
    const uint64_t hash = ggml_hugepages_checksum(content.data(), content.size());
    return content.substr(0, room - 32) + "\nrest " + std::to_string(hash) + end;
}

std::string ggml_hugepages_placement_of(const std::string & identity) {
    const size_t begin = identity.rfind('\n') + 1; // 0 if there is one line
    return identity.compare(begin, sizeof(LINE) - 1, LINE) == 0 ? identity.substr(begin) : "";
}

#endif // __linux__
