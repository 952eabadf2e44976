"""Texts of emoji, CJK, combining characters and tags through `pmkvq serve`, whole and as streams.

Called with PROGRAM MODEL [COUNT] (2,000). A JSON schema makes the model write each text; at a high temperature its tokens are
single bytes more often than not, so that texts are cut at every byte. Streamed text must be the unstreamed one, stop strings
must end both at the same place, and no U+FFFD may come that is not in the text.
"""
import concurrent.futures
import json
import random
import sys

COUNT = int(sys.argv.pop(3)) if len(sys.argv) > 3 else 2000

from served import Server  # noqa: E402  (reads sys.argv)

PIECES = ["a", "Z", "7", " ", "  ", "\n", "\t", '"', "\\", "</think>", "<think>", "<tool_call>", "</", "<|im_end|>", "\u00e9", "e\u0301", "\u00df", "\u0416",
          "\u05d0", "\u0e01\u0e33", "\u4e2d", "\u6587\u5b57", "\u3042", "\ud55c", "\uff01", "\u2028", "\u200b", "\ufeff", "\U0001f600", "\U0001f44d\U0001f3fd",
          "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U00020000", "\U0010fffd", "\x7f", "\x01"]


def ask(server, text, seed, **fields):
    """What the model writes and how it ends: of the whole answer, and of the stream. And its number of tokens."""
    body = {"prompt": "x", "temperature": 2, "seed": seed, "max_tokens": 1900,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": text}}}, **fields}
    status, reply = server.post("/v1/completions", body)
    assert status == 200, (text, reply)
    choice = reply["choices"][0]
    events = [event["choices"][0] for event in server.stream("/v1/completions", body)]
    streamed = "".join(event["text"] for event in events)
    whole = (choice["text"], choice["finish_reason"], choice["stop_reason"])
    assert whole == (streamed, events[-1]["finish_reason"], events[-1]["stop_reason"]), (text, whole, streamed, events[-1])
    return *whole, reply["usage"]["completion_tokens"]


def check(server, seed):
    rng = random.Random(seed)
    text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 16)))
    written, finish, _, tokens = ask(server, text, seed)
    assert finish == "stop" and json.loads(written) == text, (text, written, finish)
    literal = written.strip()
    begin = rng.randrange(len(literal))
    stop = literal[begin:begin + rng.randint(1, 4)]
    cut, finish, reason, _ = ask(server, text, seed, stop=[stop])
    assert (cut, finish, reason) == (written[:written.index(stop)], "stop", stop), (text, stop, cut, reason)
    return len(written.encode()), tokens


def main():
    with Server("--max-sequences", "16", "--queue-size", "64", "--kv", "fp16") as server:
        with concurrent.futures.ThreadPoolExecutor(16) as clients:
            sizes = list(clients.map(lambda seed: check(server, seed), range(COUNT)))
    size, tokens = (sum(column) for column in zip(*sizes))
    print(f"{COUNT} texts, {size} bytes in {tokens} tokens ({size / tokens:.2f} bytes a token): streams equal whole answers, with and without stop strings")


main()
