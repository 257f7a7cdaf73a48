"""Asks a server through OpenAI's client, once as a stream and once as a whole, and prints JSON.

usage: client.py BASE_URL
"""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", timeout=120, max_retries=0)
request = {
    "model": client.models.list().data[0].id,
    "messages": [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "What is a huge page?"},
    ],
    "temperature": 0,
    "seed": 7,
    "max_tokens": 24,
    # The second answer would start from the first one's cache, and sums would be made in another order.
    "extra_body": {"cache_prompt": False},
}
pieces = [
    chunk.choices[0].delta.content
    for chunk in client.chat.completions.create(stream=True, **request)
    if chunk.choices and chunk.choices[0].delta.content
]
whole = client.chat.completions.create(**request).choices[0]
print(
    json.dumps(
        {
            "streamed": "".join(pieces),
            "chunks": len(pieces),
            "whole": whole.message.content,
            "finish_reason": whole.finish_reason,
        }
    )
)
