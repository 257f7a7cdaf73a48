// The report as a table for people.

#include "names.h"
#include "params.h"
#include "ggml-impl.h"

#include <cinttypes>
#include <cstdio>
#include <sstream>

int ggml_hugepages_report_to_str(const ggml_hugepages_report * report, char * buf, size_t size) noexcept try {
    std::string text;
    char line[256];
    snprintf(line, sizeof(line), "%-10s %-6s %14s %8s", "kind", "on", "MiB", "pages");
    text += line;
    for (uint32_t node = 0; node < report->n_nodes; node++) {
        snprintf(line, sizeof(line), "     node %u MiB", node);
        text += line;
    }
    double huge  = 0.0;
    double total = 0.0;
    for (uint32_t i = 0; i < report->n_usages; i++) {
        const auto & u = report->usages[i];
        char backing[16];
        ggml_hugepages_backing_to_str(u.backing, u.page_size, backing, sizeof(backing));
        snprintf(line, sizeof(line), "\n%-10s %-6s %14.2f %8" PRIu64, ggml_hugepages_kind_name(u.kind), backing, u.bytes/1024.0/1024.0, u.pages);
        text += line;
        for (uint32_t node = 0; node < report->n_nodes; node++) {
            snprintf(line, sizeof(line), " %14.2f", u.node_bytes[node]/1024.0/1024.0);
            text += line;
        }
        total += u.bytes;
        if (u.backing == GGML_HUGEPAGES_BACKING_HUGE || u.backing == GGML_HUGEPAGES_BACKING_THP) {
            huge += u.bytes;
        }
    }
    for (uint32_t i = 0; i < report->n_usages; i++) {
        const auto & u = report->usages[i];
        char backing[16];
        ggml_hugepages_backing_to_str(u.backing, u.page_size, backing, sizeof(backing));
        const double dealt = u.local_bytes + u.remote_bytes;
        if (dealt > 0) {
            snprintf(line, sizeof(line), "\n%s on %s: %.2f of %.2f MiB of matrices are on the node that reads them (%.1f %%)", ggml_hugepages_kind_name(u.kind),
                backing, u.local_bytes/1024.0/1024.0, dealt/1024.0/1024.0, (double) (int64_t) (1000.0*u.local_bytes/dealt)/10.0);
            text += line;
        }
    }
    // rounds down, so that "100" means all
    snprintf(line, sizeof(line), "\n%.2f of %.2f MiB on huge pages (%.1f %%)", huge/1024.0/1024.0, total/1024.0/1024.0,
        total > 0 ? (double) (int64_t) (1000.0*huge/total)/10.0 : 0.0);
    text += line;
    if (report->late > 0) {
        snprintf(line, sizeof(line), ", %.2f MiB of later growth in ordinary memory", report->late/1024.0/1024.0);
        text += line;
    }
    return snprintf(buf, size, "%s", text.c_str());
} catch (...) {
    return snprintf(buf, size, "out of memory");
}

void ggml_hugepages_log_report(void) {
    ggml_hugepages_report report;
    if (!ggml_hugepages_default_scope().params.enabled || !ggml_hugepages_get_report(0, &report)) {
        return;
    }
    char text[4096];
    ggml_hugepages_report_to_str(&report, text, sizeof(text));
    std::istringstream lines(text);
    std::string line;
    while (std::getline(lines, line)) {
        GGML_LOG_INFO("hugepages: %s\n", line.c_str());
    }
}
