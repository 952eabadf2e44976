"""What `pmkvq serve` takes beside the engine without it.

Called with PROGRAM MODEL [ROUNDS] (5). 1, 16 and 64 streams against `pmkvq run --n-samples`, the same batch of the same number of
tokens, in turns; medians count. Time is CPU time, with one engine thread (more would spin): so the figures mean
the same on a machine that does other work, where wall time says who got a core. The engine's thread alone bounds the
tokens per second where the I/O thread has a core to itself; demanded are 90 % of the engine's tokens per CPU second there with
the shipped model, and 98 % with a model of the shape of a 0.5B one (24 layers of 896, 716 MB of random weights). The whole
process is the other extreme, one core for all threads.

The first byte of a stream: wall time from the request to it, less the time that the engine took for the prompt, on an
idle server; 99 of 100 within 5 ms more than replies of /live, which other work on the machine delays, too.
"""
import json
import os
import random
import resource
import selectors
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROUNDS = int(sys.argv.pop(3)) if len(sys.argv) > 3 else 5

import served  # noqa: E402  (reads sys.argv)
from served import PROGRAM, Server, wait_until  # noqa: E402

SHIPPED = served.MODEL
OPTIONS = ["--kv", "pm-kvq", "--kv-budget", "32MiB", "--max-len", "2048", "--threads", "1"]
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 896, 24, 14, 2, 64, 4864


def make_half_billion(folder):
    """A model with the shape of Qwen2.5-0.5B but for its vocabulary, and random weights."""
    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("*.safetensors*", "*.jsonl", "plan*"))
    with open(SHIPPED + "/config.json") as file:
        config = json.load(file)
    config.update(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
                  intermediate_size=INNER, max_window_layers=LAYERS)
    with open(folder + "/config.json", "w") as file:
        json.dump(config, file)
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], HIDDEN], "model.norm.weight": [HIDDEN]}
    for layer in range(LAYERS):
        of = f"model.layers.{layer}."
        for name, rows, columns in [("self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN), ("self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
                                    ("self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN), ("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
                                    ("mlp.gate_proj", INNER, HIDDEN), ("mlp.up_proj", INNER, HIDDEN), ("mlp.down_proj", HIDDEN, INNER)]:
            shapes[f"{of}{name}.weight"] = [rows, columns]
            if name[-6] in "qkv" and name.startswith("self"):
                shapes[f"{of}{name}.bias"] = [rows]
        shapes[of + "input_layernorm.weight"] = shapes[of + "post_attention_layernorm.weight"] = [HIDDEN]
    rng = random.Random(1)
    block = b"".join(struct.pack("<f", rng.gauss(0, 0.02))[2:] for _ in range(1 << 18))
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder + "/model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, entry in header.items():
            left = entry["data_offsets"][1] - entry["data_offsets"][0]
            if "norm" in name:
                file.write(b"\x80\x3f" * (left // 2))  # 1
                continue
            while left > 0:
                begin = 2 * rng.randrange(1 << 17)
                part = block[begin:begin + left]
                file.write(part)
                left -= len(part)


def engine_seconds(streams, tokens):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([PROGRAM, "run", "--model", served.MODEL, *OPTIONS, "--n-samples", str(streams), "--max-tokens", str(tokens), "--ignore-eos",
                    "--temperature", "1", "--json", "/dev/null", "--prompt", "x"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def server_seconds(server, streams, tokens):
    """Of the engine's thread, which is the busiest, and of all threads."""
    body = json.dumps({"prompt": "x", "max_tokens": tokens, "ignore_eos": True, "temperature": 1, "stream": True}).encode()
    data = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    before = server.thread_seconds()
    with selectors.DefaultSelector() as selector:
        tails = {}
        for _ in range(streams):
            client = socket.create_connection(("127.0.0.1", server.port))
            client.sendall(data)
            selector.register(client, selectors.EVENT_READ)
            tails[client] = b""
        while tails:
            for key, _ in selector.select():
                part = key.fileobj.recv(1 << 16)
                assert part, "a stream has broken off"
                tails[key.fileobj] = (tails[key.fileobj] + part)[-64:]
                if b"[DONE]" in tails[key.fileobj]:
                    selector.unregister(key.fileobj)
                    del tails[key.fileobj]
                    key.fileobj.close()
    taken = [seconds - before.get(task, 0) for task, seconds in server.thread_seconds().items()]
    return max(taken), sum(taken)


def compare(name, least, tokens_of):
    failed = False
    for streams in [1, 16, 64]:
        tokens = tokens_of(streams)
        few = 5  # The start, and the prompts.
        count = streams * (tokens - few)
        rates = {"engine": [], "thread": [], "process": []}
        with Server(*OPTIONS, "--max-sequences", str(streams)) as server:
            server_seconds(server, streams, few)  # Warms up.
            for _ in range(ROUNDS):
                rates["engine"].append(count / (engine_seconds(streams, tokens) - engine_seconds(streams, few)))
                long, short = server_seconds(server, streams, tokens), server_seconds(server, streams, few)
                rates["thread"].append(count / (long[0] - short[0]))
                rates["process"].append(count / (long[1] - short[1]))
        medians = {which: statistics.median(values) for which, values in rates.items()}
        parts = {which: value / medians["engine"] for which, value in medians.items()}
        print(f"{name}, {streams} streams: tokens per CPU second {medians['engine']:.1f} without the server ({min(rates['engine']):.1f} to "
              f"{max(rates['engine']):.1f}); engine thread {100 * parts['thread']:.1f} %, whole process {100 * parts['process']:.1f} %", flush=True)
        failed |= parts["thread"] < least
    return failed


def first_bytes(count=300):
    """Milliseconds from request to first byte, less those that the engine took for the prompt. Whether 99 % of them are more
    than 5 ms above those of /live, which other work on the machine delays alike."""
    body = json.dumps({"prompt": "x" * 300, "max_tokens": 1, "stream": True}).encode()
    data = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    live = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    beside, of_live = [], []
    with Server(*OPTIONS) as server:
        prefill = 'pmkvq_step_seconds_total{kind="prefill"}'
        with server.connect() as client:
            for _ in range(count):
                began = time.perf_counter()
                client.sendall(live)
                client.recv(1 << 16)
                of_live.append(1000 * (time.perf_counter() - began))
                before = server.metric(prefill)
                began = time.perf_counter()
                client.sendall(data)
                part = client.recv(1 << 16)
                seconds = time.perf_counter() - began
                while b"[DONE]" not in part:
                    part += client.recv(1 << 16)
                wait_until(lambda: server.metric(prefill) > before)
                beside.append(1000 * (seconds - server.metric(prefill) + before))
    beside.sort()
    of_live.sort()
    print(f"first byte of {count} streams, less the prompt's time: p50 {beside[count // 2]:.2f} ms, p99 {beside[count * 99 // 100]:.2f} ms, "
          f"most {beside[-1]:.2f} ms; /live between them: {of_live[count // 2]:.2f}, {of_live[count * 99 // 100]:.2f}, {of_live[-1]:.2f} ms",
          flush=True)
    return beside[count * 99 // 100] > of_live[count * 99 // 100] + 5


def main():
    failed = first_bytes()
    failed |= compare("shipped model", 0.90, lambda streams: 1200 if streams < 64 else 600)
    with tempfile.TemporaryDirectory() as folder:
        served.MODEL = os.path.join(folder, "half-billion")
        make_half_billion(served.MODEL)
        failed |= compare("0.5B shape", 0.98, lambda streams: 60 if streams == 1 else 24)
    sys.exit(1 if failed else 0)


main()
