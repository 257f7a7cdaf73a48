# Included by CMake at upstream's project("ggml"), for us and for stock.
#
# GCC before 13.3 tells the optimizer that ldtilecfg reads 8 of its 64 bytes. The stores to the rest are dropped, and
# ggml's AMX kernels end in a general protection fault at their first use. Without the macro ggml leaves them out.
if (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13.3)
    add_compile_options(-U__AMX_INT8__)
endif()
