#!/usr/bin/env python3
"""Prints an answer as it grows. Python's standard library only. Usage: chat.py QUESTION"""
import json
import os
import sys
import urllib.request


def main():
    url = os.environ.get("PMKVQ_URL", "http://127.0.0.1:8080")
    body = {"messages": [{"role": "user", "content": sys.argv[1]}], "temperature": 0, "max_tokens": 400,
            "stream": True, "stream_options": {"include_usage": True}}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json",
                                      "Authorization": "Bearer " + os.environ.get("PMKVQ_KEY", "none")})
    with urllib.request.urlopen(request) as reply:
        for line in reply:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            event = json.loads(line[6:])
            for choice in event["choices"]:
                delta = choice["delta"]
                print(delta.get("reasoning_content", "") + (delta.get("content") or ""), end="", flush=True)
            if event.get("usage"):
                kv = event["kv"]
                print(f"\n[{event['usage']['completion_tokens']} tokens, {kv['peak_bytes']} bytes of cache, "
                      f"{kv['mean_bits']:.1f} bits a value]", file=sys.stderr)
    print()


if __name__ == "__main__":
    main()
