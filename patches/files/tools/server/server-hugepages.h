#pragma once

// Huge pages in /props and /metrics. Only requests of these two endpoints read the kernel's report.

#include "hugepages.h"
#include "server-common.h"

// for /props; null if the option is off
json server_hugepages_props(const common_params & params);

// for /metrics, in the text format of Prometheus; empty if the option is off
std::string server_hugepages_metrics(const common_params & params);
