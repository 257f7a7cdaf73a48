#pragma once

// Huge pages in /props and /metrics, runs that only plan or load, and a server that cannot wake up. Only requests of these two endpoints read the kernel's report.

#include "hugepages.h"
#include "server-common.h"

#include <stdexcept>

struct server_context;

// For --hugepage-plan and --hugepage-load: prints the result. Returns the exit code; a router has no model to plan or to load.
int server_hugepages_run(server_context & ctx_server, common_params & params, bool is_router);

// A sleeping server could not load its model again. It stays asleep, and the next request tries again.
struct server_hugepages_asleep : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Throws server_hugepages_asleep with the cause of the failed load. Returns if the option is off.
void server_hugepages_stay_asleep(const common_params & params);

// for /props; null if the option is off
json server_hugepages_props(const common_params & params);

// for /metrics, in the text format of Prometheus; empty if the option is off
std::string server_hugepages_metrics(const common_params & params);
