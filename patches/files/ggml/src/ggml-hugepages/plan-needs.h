#pragma once

#include "plan-blocks.h"

#include <vector>

// Ends a plan with plan_only: keeps the needs for ggml_hugepages_get_needs, and returns false. ok: whether they fit
bool ggml_hugepages_end_plan(const std::vector<ggml_hugepages_consumer> & consumers, bool ok, ggml_hugepages_error * error);
