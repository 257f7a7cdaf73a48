# CMake includes this file at upstream's project("ggml"), in our build and in stock's.
#
# GCC before 13.3 tells the optimizer that ldtilecfg reads 8 of its 64 bytes. So GCC drops the stores to the rest, and ggml's AMX
# kernels end in a general protection fault at their first use. Without the macro, ggml omits these kernels.
if (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13.3)
    add_compile_options(-U__AMX_INT8__)
endif()
