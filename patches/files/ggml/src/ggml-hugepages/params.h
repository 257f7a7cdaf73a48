#pragma once

// what the program asks for

#include "ggml-hugepages.h"

// the scope of threads without one
ggml_hugepages_scope ggml_hugepages_default_scope();

// the scope of this thread
ggml_hugepages_scope ggml_hugepages_current_scope();
