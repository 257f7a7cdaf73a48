"""Continues a text with llama-cpp-python, and prints JSON: the tokens and the memory on huge pages, or the error.

usage: bindings.py MODEL
"""

import ctypes
import gc
import json
import sys

import llama_cpp

PROMPT = "Once upon a time there was a page that was larger than the others"


def huge_bytes():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("HugetlbPages:"))
    return int(line.split()[1]) * 1024


def complete(path):
    try:
        model = llama_cpp.Llama(path, n_ctx=512, n_threads=2, n_threads_batch=2, seed=1)
    except ValueError as error:
        return {"error": str(error)}
    tokens = model.tokenize(PROMPT.encode())
    answer = []
    for token in model.generate(tokens, temp=0.0):
        answer.append(token)
        if len(answer) == 24:
            break
    return {"tokens": answer, "huge": huge_bytes()}


result = complete(sys.argv[1])
# An error must leave a process that works, and no page.
gc.collect()
result["huge_after"] = huge_bytes() if "error" in result else None
result["size_of_params"] = ctypes.sizeof(llama_cpp.llama_model_params)
result["version"] = llama_cpp.__version__
print(json.dumps(result))
