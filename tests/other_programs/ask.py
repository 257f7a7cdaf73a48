"""Loads a model with llama-cpp-python, prints the tokens of its answers as JSON, and waits for commands on stdin.

usage: ask.py MODEL
       free                      frees the model, and prints "freed"
       exit                      calls os._exit(7)
       end of stdin              returns from the program
"""

import json
import os
import sys

import llama_cpp

# `verbose` writes llama.cpp's log to stderr.
model = llama_cpp.Llama(sys.argv[1], n_ctx=512, n_threads=2, n_threads_batch=2, verbose=True)
answers = []
for prompt in ("Once upon a time", "The answer is", "In the beginning"):
    model.reset()
    tokens = model.tokenize(prompt.encode())
    answer = model.generate(tokens, temp=0.0)
    answers.append([next(answer) for _ in range(12)])
print(json.dumps(answers), flush=True)

for line in sys.stdin:
    if line == "free\n":
        model.close()
        print("freed", flush=True)
    elif line == "exit\n":
        os._exit(7)
