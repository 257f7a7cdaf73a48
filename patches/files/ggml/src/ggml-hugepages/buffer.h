#pragma once

#include <cstdint>

// microseconds of this thread in ggml_hugepages_buffer_populate
uint64_t ggml_hugepages_us_populate();
