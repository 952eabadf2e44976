"""pmkvq serve and llama-server beside each other: long answers, many at once, in a KV cache of 40 % of what 16 bits need.

Called with PROGRAM MODEL LLAMA_SERVER [options]; --help lists them. Writes MODEL as GGUF, asks both servers the same problems with
the same token ids at temperature 0, in rounds whose order changes, and prints a table of medians over the rounds. docs/serving.md says
what the rows are. Standard library only.
"""
import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

MAX_LEN = 4096  # Tokens of a prompt and its answer.
BITS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}  # llama.cpp's: 32 values share one 16-bit scale.
CONTEXT_STEP = 256  # llama.cpp rounds the context of a sequence to it.
START_S = 120.0


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("program", help="pmkvq")
    parser.add_argument("model", help="a folder of the Qwen2 form in BF16 with problems.jsonl")
    parser.add_argument("llama_server", help="llama-server; its libraries are looked for beside it")
    parser.add_argument("--rounds", type=int, default=3, help="each row once a round (%(default)s)")
    parser.add_argument("--minutes", type=float, default=1e9, help="a run that goes on then is not counted (no limit)")
    parser.add_argument("--problems", type=int, default=40, help="problems a row and round (%(default)s)")
    parser.add_argument("--at-once", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--threads", default="2", help="of each server (%(default)s)")
    parser.add_argument("--levels", default="4,5", help="their levels (%(default)s)")
    parser.add_argument("--rows", default=".", help="a regular expression: the rows whose names it finds (all)")
    parser.add_argument("--pool", type=int, default=0, help="bytes of the pool (40 %% of what fp16 takes at its peak)")
    parser.add_argument("--weights", default="bf16", choices=["bf16", "f16"], help="of the GGUF file (%(default)s)")
    parser.add_argument("--server-cpus", help="CPUs of the servers, as 0,1 (all)")
    parser.add_argument("--client-cpus", help="CPUs of the clients (all)")
    parser.add_argument("--json", help="a file for all figures")
    parser.add_argument("--earlier", action="append", default=[], metavar="JSON",
                        help="figures of the same problems, pool and threads that are counted as well")
    return parser.parse_args()


ARGUMENTS = parse_arguments()
AT_ONCE = ARGUMENTS.at_once
sys.argv[1:] = [ARGUMENTS.program, ARGUMENTS.model]

from problems import problems, quantile  # noqa: E402
from served import Server  # noqa: E402  (reads sys.argv)
from timed_stream import ask_all  # noqa: E402
import write_gguf  # noqa: E402


class Pinned:
    """Processes started in `with` run on these CPUs; threads are told apart, so this is for the thread that starts them."""

    def __init__(self, cpus):
        self.cpus = cpus and {int(cpu) for cpu in cpus.split(",")}

    def __enter__(self):
        self.before = os.sched_getaffinity(0)
        if self.cpus:
            os.sched_setaffinity(0, self.cpus)

    def __exit__(self, *_):
        os.sched_setaffinity(0, self.before)


class Llama:
    """A llama-server until `with` ends."""

    def __init__(self, gguf, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        folder = os.path.dirname(os.path.abspath(ARGUMENTS.llama_server))
        paths = [folder, os.environ.get("LD_LIBRARY_PATH", "")]
        command = [ARGUMENTS.llama_server, "--model", gguf, "--host", "127.0.0.1", "--port", str(self.port), "--device", "none",
                   "--threads", ARGUMENTS.threads, "--threads-batch", ARGUMENTS.threads, "--flash-attn", "on",
                   "--cont-batching", "--no-context-shift", "--cache-ram", "0", "--fit", "off", "--log-verbosity", "4", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                        env={**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, paths))})
        self.lines, self.is_ready = [], threading.Event()
        threading.Thread(target=self.read, daemon=True).start()
        if not self.is_ready.wait(START_S) or self.process.poll() is not None:
            self.__exit__()
            raise RuntimeError("llama-server is not ready: " + "".join(self.lines[-20:]))

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if "listening on http" in line:
                self.is_ready.set()
        self.is_ready.set()

    def log(self, pattern):
        """What the first line of the log that has `pattern` says in its groups."""
        return next((found.groups() for found in (re.search(pattern, line) for line in self.lines) if found), None)

    def cache_bytes(self):
        found = self.log(r"llama_kv_cache: size = *([0-9.]+) MiB")
        return found and float(found[0]) * 2**20

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def ours(name, *options):
    """A row: pmkvq serve in one pool; POOL among the options stands for its bytes."""
    def start(_, pool):
        return Server("--threads", ARGUMENTS.threads, "--max-len", str(MAX_LEN), "--max-sequences", str(AT_ONCE),
                      "--queue-size", "64", "--queue-timeout", "0", "--kv-mode", "pool",
                      *(str(pool) if option == "POOL" else option for option in options))
    return f"pmkvq {name}", start


def theirs(kv, how):
    """A row: llama-server with the cache type `kv` in the pool's bytes.

    `how`: `unified` is one cache for AT_ONCE slots, `split` gives each of them an equal part, `whole` has as many slots as have
    MAX_LEN tokens each, `ample` has MAX_LEN for each of AT_ONCE slots.
    """
    def start(gguf, pool):
        if how == "ample":
            slots, tokens = AT_ONCE, AT_ONCE * MAX_LEN
        else:
            tokens = pool // bytes_of_token(kv)
            slots = min(AT_ONCE, max(1, tokens // MAX_LEN)) if how == "whole" else AT_ONCE
            tokens = slots * MAX_LEN if how == "whole" else tokens
        step = CONTEXT_STEP * (slots if how == "split" else 1)
        tokens = max(step, round(tokens / step) * step)
        return Llama(gguf, "--cache-type-k", kv, "--cache-type-v", kv, "--ctx-size", str(tokens), "--parallel", str(slots),
                     "--kv-unified" if how == "unified" else "--no-kv-unified")
    return f"llama-server {kv} {how}", start


PLAN = ("--plan", f"{ARGUMENTS.model}/plan.json")
AMPLE = ours("fp16 ample", "--kv", "fp16", "--kv-pool", "512MiB", "--kv-target", "16")
ROWS = [
    ours("pm-kvq 8 to 4", "--kv", "pm-kvq", *PLAN, "--kv-pool", "POOL", "--kv-target", "8", "--kv-floor", "4"),
    ours("pm-kvq 6 to 4", "--kv", "pm-kvq", *PLAN, "--kv-pool", "POOL", "--kv-target", "6", "--kv-floor", "4"),
    ours("static-4", "--kv", "static-4", *PLAN, "--kv-pool", "POOL"),
    *(theirs(kv, how) for kv in BITS for how in ("unified", "split", "whole")),
    AMPLE,
    theirs("f16", "ample"),
]


def bytes_of_token(kv):
    with open(f"{ARGUMENTS.model}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    values = config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2
    return int(values * BITS[kv] / 8)


def cpu_time(pid):
    """Seconds of CPU that a process has taken."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(name, start, gguf, pool, asked, prompts, until):
    """One run of one row, and its texts."""
    load = os.getloadavg()[0]
    with Pinned(ARGUMENTS.server_cpus):
        server = start(gguf, pool)
    with server:
        bodies = [{"prompt": prompt, "temperature": 0, "max_tokens": MAX_LEN - len(prompt)} for prompt in prompts]
        began = time.monotonic()
        with Pinned(ARGUMENTS.client_cpus):
            streams = asyncio.run(ask_all(server.port, bodies, AT_ONCE, until))
        seconds = time.monotonic() - began
        if isinstance(server, Llama):
            cache, slots = server.cache_bytes(), int(server.process.args[server.process.args.index("--parallel") + 1])
            peak = None
        else:
            cache, peak, slots = server.metric("pmkvq_kv_pool_bytes"), server.metric("pmkvq_kv_peak_bytes"), AT_ONCE
        cpu_seconds = cpu_time(server.process.pid)
    results = [stream.result(problem) for stream, problem in zip(streams, asked)]
    ends = [result["end"] for result in results]
    gaps = [gap for result in results for gap in result["gaps"]]
    row = {
        "row": name, "asked": len(asked), "cache_bytes": cache, "peak_bytes": peak, "slots": slots, "seconds": seconds,
        "cpu_seconds": cpu_seconds, "load_average": load,
        **{end: ends.count(end) for end in ("solved", "wrong", "cut", "lost")},
        "answers_per_minute": (ends.count("solved") + ends.count("wrong")) / seconds * 60,
        "tokens_per_s": sum(result["tokens"] for result in results) / seconds,
        "gap_p50_ms": quantile(gaps, 0.5) * 1e3, "gap_p99_ms": quantile(gaps, 0.99) * 1e3, "gap_max_ms": max(gaps, default=0) * 1e3,
        "errors": sorted({result["error"] for result in results if result["error"]}),
        "answers": [{"id": problem["id"], "end": result["end"], "tokens": result["tokens"]} for problem, result in zip(asked, results)],
    }
    print(f"{name}: {row['answers_per_minute']:.1f} answers a minute, {row['tokens_per_s']:.0f} tokens/s, {row['solved']} solved, "
          f"{row['wrong']} wrong, {row['cut']} cut, {row['lost']} lost; p50 {row['gap_p50_ms']:.1f} ms, p99 {row['gap_p99_ms']:.1f} ms; "
          f"{seconds:.0f} s, CPU {cpu_seconds:.0f} s, load {load:.1f}", file=sys.stderr, flush=True)
    return row, [result["text"] for result in results]


def token_ids(asked):
    """The prompts as token ids, by our server's template and tokenizer."""
    with Server() as server:
        ids = []
        for problem in asked:
            _, reply = server.post("/apply-template", {"messages": [{"role": "user", "content": problem["problem"]}]})
            ids.append((reply["prompt"], server.post("/tokenize", {"prompt": reply["prompt"]})[1]["tokens"]))
    return ids


def table(rows, pool):
    """Markdown: medians of the rates and times, sums of the counts."""
    lines = [f"| {AT_ONCE} at once, pool {pool / 2**20:.1f} MiB | cache, slots | answers a minute | tokens/s | CPU ms a token "
             "| between tokens, p50, p99 (ms) | asked | solved | wrong | cut | lost |", "|" + "---|" * 11]
    for name in dict.fromkeys(row["row"] for row in rows):
        runs = [row for row in rows if row["row"] == name]

        def median(value, runs=runs):
            return statistics.median(value(run) for run in runs)
        counts = [sum(run[key] for run in runs) for key in ("solved", "wrong", "cut", "lost")]
        cells = [
            name, f"{runs[0]['cache_bytes'] / 2**20:.1f} MiB, {runs[0]['slots']}",
            f"{median(lambda run: run['answers_per_minute']):.1f}", f"{median(lambda run: run['tokens_per_s']):.0f}",
            f"{median(lambda run: run['cpu_seconds'] / (run['tokens_per_s'] * run['seconds'])) * 1e3:.2f}",
            f"{median(lambda run: run['gap_p50_ms']):.1f}, {median(lambda run: run['gap_p99_ms']):.1f}", sum(counts), *counts]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def ratios(rows):
    """Answers a minute of our first row over those of each row of llama-server, of one round each: median, least and most."""
    first = {(row["session"], row["round"]): row["answers_per_minute"] for row in rows if row["row"] == ROWS[0][0]}
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows if row["row"].startswith("llama-server")):
        found = [first[row["session"], row["round"]] / row["answers_per_minute"] for row in rows
                 if row["row"] == name and row["answers_per_minute"] and (row["session"], row["round"]) in first]
        if found:
            lines.append(f"{ROWS[0][0]} / {name}: {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}, {len(found)} rounds)")
    return "\n".join(lines)


def measure_all(gguf, asked, prompts, until):
    """The bytes of the pool, all runs, and the last texts of each row."""
    chosen = [row for row in ROWS if re.search(ARGUMENTS.rows, row[0])]
    rows, texts, pool, session = [], {}, ARGUMENTS.pool, time.time()
    try:
        if not pool:
            pool = int(measure(*AMPLE, gguf, 0, asked, prompts, until)[0]["peak_bytes"] * 0.4)
        for round_index in range(ARGUMENTS.rounds):
            for name, start in chosen if round_index % 2 == 0 else chosen[::-1]:
                row, texts[name] = measure(name, start, gguf, pool, asked, prompts, until)
                rows.append({"session": session, "round": round_index, **row})
    except asyncio.TimeoutError:
        print("out of time", file=sys.stderr)
    return pool, rows, texts


def main():
    levels = {int(level) for level in ARGUMENTS.levels.split(",")}
    asked = problems(ARGUMENTS.model, ARGUMENTS.problems, levels)
    prompts = [ids for _, ids in token_ids(asked)]
    with tempfile.TemporaryDirectory() as folder:
        gguf = f"{folder}/model.gguf"
        write_gguf.write(ARGUMENTS.model, gguf, ARGUMENTS.weights)
        pool, rows, texts = measure_all(gguf, asked, prompts, time.monotonic() + ARGUMENTS.minutes * 60)
        with Llama(gguf, "--ctx-size", "512") as server:
            version, features = (" ".join(server.log(pattern) or ["?"]) for pattern in (r"(build .*)", r"system_info: (.*)"))
    terms = {"pool_bytes": pool, "levels": sorted(levels), "problems": len(asked), "at_once": AT_ONCE, "threads": ARGUMENTS.threads,
             "weights": ARGUMENTS.weights, "llama_server": [version, features]}
    if ARGUMENTS.json:
        with open(ARGUMENTS.json, "w", encoding="utf-8") as file:
            json.dump({"terms": terms, "rows": rows}, file, indent=1)
    for name in ARGUMENTS.earlier:
        with open(name, encoding="utf-8") as file:
            earlier = json.load(file)
        if earlier["terms"] != terms:
            sys.exit(f"compare_llama_server.py: {name}, terms: {earlier['terms']}, expected {terms}")
        rows += earlier["rows"]
    order = [name for name, _ in ROWS]
    rows.sort(key=lambda row: order.index(row["row"]))
    print(f"llama-server: {version}; {features}")
    print(table(rows, pool), "", ratios(rows), sep="\n")
    same = [AMPLE[0], "llama-server f16 ample"]
    if all(name in texts for name in same):
        equal = sum(a == b for a, b in zip(*(texts[name] for name in same)))
        print(f"16 bits, ample: {equal} of {len(asked)} texts are the same in both servers")


main()
