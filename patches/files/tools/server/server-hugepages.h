#pragma once

// What /props and /metrics tell of huge pages. It is read from the kernel for each request of them, and for no other.

#include "server-common.h"

// for /props; null when the option is off
json server_hugepages_props(const common_params & params);

// for /metrics, in the text format of Prometheus; empty when the option is off
std::string server_hugepages_metrics(const common_params & params);
