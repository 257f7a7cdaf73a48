"""The part of `llama_model_params` that llama-hugepages adds: the mirror of `ggml_hugepages_params` in ggml-hugepages.h.

`llama_model_default_params` fills it from the environment variables LLAMA_ARG_HUGEPAGE*.
"""

import ctypes


class ggml_hugepages_params(ctypes.Structure):
    _fields_ = [
        ("enabled", ctypes.c_bool),
        ("policy", ctypes.c_int),
        ("placement", ctypes.c_int),
        ("page_size", ctypes.c_size_t),
        ("n_threads", ctypes.c_int32),
        ("drop_cache", ctypes.c_bool),
        ("kv_bytes", ctypes.c_uint64),
        ("compute_bytes", ctypes.c_uint64),
        ("plan_only", ctypes.c_bool),
        ("load_only", ctypes.c_bool),
        ("evict", ctypes.c_bool),
        ("verify", ctypes.c_bool),
        ("model_id", ctypes.c_uint32),
        ("store", ctypes.c_char * 512),
        ("n_compute_threads", ctypes.c_int32),
        ("keep_context", ctypes.c_bool),
        ("wipe_context", ctypes.c_bool),
        ("context_bytes", ctypes.c_uint64),
        ("context_key", ctypes.c_uint64),
    ]
