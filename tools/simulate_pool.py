#!/usr/bin/env python3
"""Simulates requests that share a KV pool: what a pool and its widths would do, before a machine has run it.

    tools/simulate_pool.py measure PROGRAM MODEL steps.json     # processor time of decode steps: fp16, static-8, static-4; 1 and 8 sequences
    tools/simulate_pool.py lengths PROGRAM MODEL lengths.json   # tokens of MODEL/problems.jsonl, in the order of tests/server/pressure.py
    tools/simulate_pool.py run MODEL steps.json lengths.json    # the table of docs/serving.md; --at-once, --max-len, --pool-part, --read-limit

A step draws a token of each request; it takes a + b * requests + the bytes of all pages, each width at its measured speed. Prices,
admission, floors and preemption are those of the server (kv/packed/policy/pool_pressure.h, engine/admission.h). Not simulated: sampling,
HTTP, prefill beside decoding (its time is added to the step), the spread of halvings over tokens.
"""
import argparse
import heapq
import json
import math
import resource
import subprocess

PAGE, WIDTHS = 128, (16, 8, 4, 2)
HORIZONS = (0, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 32768)


class Shape:
    """Bytes of the model's pages, and prices per freed byte from the plan's sensitivities."""

    def __init__(self, model):
        with open(f"{model}/config.json", encoding="utf-8") as file:
            config = json.load(file)
        with open(f"{model}/plan.json", encoding="utf-8") as file:
            plan = json.load(file)["sensitivity"]
        self.blocks = config["num_hidden_layers"]
        heads, width = config["num_key_value_heads"], config["head_dim"]
        values = PAGE * heads * width
        # Below 16 bits a minimum and a range of 2 bytes for each token, head and group of 128 values.
        metadata = PAGE * heads * -(-width // 128) * 4
        self.page = [values * 2] + [values * bits // 8 + metadata for bits in WIDTHS[1:]]
        self.sink = 2 * self.blocks * heads * width * 2
        self.prices = []
        for side in ("k", "v"):
            for block in range(self.blocks):
                loss = [0] + [plan[side][str(bits)][block] for bits in WIDTHS[1:]]
                self.prices.append([(loss[i + 1] - loss[i]) / (self.page[i] - self.page[i + 1]) for i in range(3)])

    def bytes_at(self, tokens, bits):
        """A request with closed pages at `bits`, the open one at 16."""
        if tokens <= 0:
            return 0
        pages = max(0, -(-(tokens - 1) // PAGE))
        step = next(i for i in range(3) if bits >= WIDTHS[i + 1])
        part = (bits - WIDTHS[step + 1]) / (WIDTHS[step] - WIDTHS[step + 1])
        closed = part * self.page[step] + (1 - part) * self.page[step + 1]
        return self.sink + 2 * self.blocks * (max(0, pages - 1) * closed + min(1, pages) * self.page[0])


class Forecast:
    """Kaplan-Meier over the lengths of ended answers, with a log-normal prior of the weight of 20."""

    def __init__(self, max_len):
        self.count = max_len // 128 + 1
        self.prior = [1.0] + [0.5 * math.erfc(math.log(i * 128 / 6144) / (0.9 * math.sqrt(2))) for i in range(1, self.count + 1)]
        self.ended, self.cut, self.total = [0] * self.count, [0] * self.count, 0
        self.update()

    def add(self, tokens, was_cut):
        (self.cut if was_cut else self.ended)[min(tokens // 128, self.count - 1)] += 1
        self.total += 1
        self.update()

    def update(self):
        self.survival, at_risk = [1.0], self.total
        for i in range(self.count):
            ends = self.ended[i] + 20 * (self.prior[i] - self.prior[i + 1])
            exposed = max(at_risk - self.cut[i] / 2 + 20 * self.prior[i], 1e-9)
            self.survival.append(self.survival[-1] * min(1, max(0, 1 - ends / exposed)))
            at_risk -= self.ended[i] + self.cut[i]

    def at(self, tokens):
        bucket, part = divmod(tokens, 128)
        if bucket + 1 >= len(self.survival):
            return self.survival[-1]
        return self.survival[bucket] + part / 128 * (self.survival[bucket + 1] - self.survival[bucket])


class Request:
    def __init__(self, number, prompt, answer, max_len):
        self.number, self.prompt, self.max_len = number, prompt, max_len
        self.answer = min(answer, max_len - prompt)
        self.is_cut, self.drawn, self.preempted, self.began = answer > self.answer, 0, 0, None

    def start(self, shape):
        self.narrow = [[0, 0, 0] for _ in shape.prices]  # Pages at <= 8, <= 4, 2 bits, of each block's keys and values.
        self.bytes = 0


def simulate(shape, steps, lengths, pool, target, floor, close=16, at_once=16, max_len=4096, read_limit=0):
    """Clients that each send the next request when one has ended. What became of them all."""
    forecast, now, used, peak, stats = Forecast(max_len), 0.0, 0, 0, {"preempted": 0, "seconds": [], "bits": [], "cut": 0, "halved": 0}
    waiting = [Request(i, *pair, max_len) for i, pair in enumerate(lengths)][::-1]
    clients, running, queued = at_once, [], []

    def pages(request):
        return max(0, -(-(request.prompt + request.drawn - 1) // PAGE))

    def unit(request, stream, step):
        count = pages(request) - 1 if step == 0 else request.narrow[stream][step - 1]
        page = request.narrow[stream][step]
        if page >= count or WIDTHS[step + 1] < floor:
            return None
        distance = max(0, request.prompt + request.drawn - 1 - (page + 1) * PAGE)
        return (shape.prices[stream][step] / math.sqrt(1 + distance / 256), request.number, stream, step, request)

    def free(need, lowest):
        """Halves the cheapest pages until `need` bytes are freed; the bytes that were."""
        nonlocal used
        queue = [one for request in running for stream in range(len(shape.prices)) for step in range(3 if lowest < 8 else 1)
                 if (one := unit(request, stream, step))]
        heapq.heapify(queue)
        freed = 0
        while freed < need and queue:
            _, _, stream, step, request = heapq.heappop(queue)
            request.narrow[stream][step] += 1
            gain = shape.page[step] - shape.page[step + 1]
            request.bytes -= gain
            used, freed = used - gain, freed + gain
            stats["halved"] += shape.page[step]
            for more in {step, min(step + 1, 2)} if lowest < 8 else {step}:
                if (one := unit(request, stream, more)) and not any(entry[1:4] == one[1:4] for entry in queue[:1]):
                    heapq.heappush(queue, one)
        return freed

    def admits(candidate):
        most = 0
        for horizon in HORIZONS:
            total = 0
            for request in running + [candidate]:
                held = request.prompt + request.drawn
                if held + horizon <= request.max_len:
                    alive = forecast.at(request.drawn)
                    total += (forecast.at(request.drawn + horizon) / alive if alive and horizon else 1) * shape.bytes_at(held + horizon, target)
            most = max(most, total)
        return not running or most <= 0.97 * pool

    while waiting or queued or running:
        while clients and waiting:
            queued.append(waiting.pop())
            queued[-1].began = now
            clients -= 1
        prefilled = 0
        while queued and len(running) < at_once and admits(queued[0]):
            request = queued.pop(0)
            request.start(shape)
            running.append(request)
            prefilled += request.prompt + request.drawn
        for request in list(running):
            if request not in running:
                continue
            grown = shape.bytes_at(request.prompt + request.drawn, close) - (shape.bytes_at(request.prompt + request.drawn - 1, close)
                                                                             if request.bytes else 0)
            while grown and used + grown > pool - (pool // 64 if floor < close else 0) and free(used + grown - pool + pool // 64, floor):
                pass
            while used + grown > pool and len(running) > 1:
                victim = min(running, key=lambda one: (one.preempted >= 2, one.drawn, -one.number))
                running.remove(victim)
                used -= victim.bytes
                victim.preempted += 1
                stats["preempted"] += 1
                queued.insert(0, victim)
                if victim is request:
                    break
            if request in running:
                request.bytes += grown
                used += grown
        peak = max(peak, used)
        if read_limit and used > read_limit:
            free(used - read_limit, 8)
        by_width = [0] * 4
        for request in running:
            closed = max(0, pages(request) - 1)
            by_width[0] += request.bytes
            for narrow in request.narrow:
                for step in range(3):
                    at = narrow[step] - (narrow[step + 1] if step < 2 else 0)
                    by_width[step + 1] += at * shape.page[step + 1]
                    by_width[0] -= at * shape.page[step + 1]
            if close < 16:  # All closed pages stand at one width.
                width = WIDTHS.index(close)
                by_width[width] = 2 * shape.blocks * closed * shape.page[width] + by_width[width]
                by_width[0] -= 2 * shape.blocks * closed * shape.page[width]
        now += (steps["base"] + steps["request"] * len(running) + steps["prefill"] * prefilled
                + sum(count * steps["byte"][str(bits)] for count, bits in zip(by_width, WIDTHS) if count))
        for request in list(running):
            request.drawn += 1
            if request.drawn < request.answer:
                continue
            running.remove(request)
            used -= request.bytes
            clients += 1
            forecast.add(request.drawn, request.is_cut)
            stats["cut"] += request.is_cut
            stats["seconds"].append(now - request.began)
            total = sum(pages(request) for _ in request.narrow)
            bits = sum(16 * pages(request) - 8 * n[0] - 4 * n[1] - 2 * n[2] for n in request.narrow) / max(1, total)
            stats["bits"].append(bits if close == 16 else ((pages(request) - 1) * close + 16) / max(1, pages(request)))
    done = sorted(stats["seconds"])
    return {"pool": pool, "peak": peak, "answered": len(done), "cut": stats["cut"], "preempted": stats["preempted"],
            "bits": sum(stats["bits"]) / len(done), "per_minute": 60 * len(done) / now, "p50": done[len(done) // 2],
            "p99": done[int(0.99 * len(done))], "halved": stats["halved"]}


def solve(rows, values):
    """Least squares, no coefficient below 0: those that would be are left out."""
    import numpy
    keep = list(range(len(rows[0])))
    while True:
        found = numpy.linalg.lstsq(numpy.array(rows)[:, keep], numpy.array(values), rcond=None)[0]
        if min(found) >= 0:
            return [float(found[keep.index(i)]) if i in keep else 0.0 for i in range(len(rows[0]))]
        keep.pop(int(found.argmin()))


def measure(program, model):
    """Processor time of a step of one thread, by requests and bytes: other work on the machine does not count."""
    shape, rows, values = Shape(model), [], []
    prompt = "Sort these 04 numbers from small to large with merge sort: 697, 103, 406, 156. What is the sorted list?"

    def seconds(kv, count, tokens):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([program, "run", "--model", model, "--kv", kv, "--threads", "1", "--n-samples", str(count), "--max-tokens", str(tokens),
                        "--ignore-eos", "--temperature", "1", "--seed", "1", prompt], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    for column, bits in enumerate((16, 8, 4)):
        kv = "fp16" if bits == 16 else f"static-{bits}"
        for count in (1, 8):
            lengths = (100, 600, 1600)
            times = [seconds(kv, count, tokens) for tokens in lengths]
            for i in range(2):
                step = (times[i + 1] - times[i]) / (lengths[i + 1] - lengths[i])
                held = 60 + (lengths[i] + lengths[i + 1]) / 2
                row = [1, count, 0, 0, 0]
                row[2 + column] = count * shape.bytes_at(held, bits)
                rows.append([x / step for x in row])  # Relative errors count alike.
                values.append(1)
                print(f"{kv}, {count} at once, {held:.0f} tokens: {1e3 * step:.3f} ms a step", flush=True)
    base, request, *byte = solve(rows, values)
    return {"base": base, "request": request, "prefill": request / 4, "byte": {**dict(zip(("16", "8", "4"), byte)), "2": byte[2]}}


def lengths(program, model):
    """Tokens of prompts and reference chains, all kinds and levels in turn."""
    by_cell = {}
    with open(f"{model}/problems.jsonl", encoding="utf-8") as file:
        for row in map(json.loads, file):
            by_cell.setdefault((row["level"], row["task"]), []).append(row)
    cells = list(by_cell.values())

    def count(text):
        ids = subprocess.run([program, "tokenize", "--model", model, "--no-special", "--file", "-"], input=text, text=True, check=True,
                             capture_output=True).stdout
        return len(ids.split())

    rows = [cells[i % len(cells)][i // len(cells)] for i in range(400)]
    return [[count(row["problem"]), count(row["reference_chain"])] for row in rows]


def run(options):
    shape = Shape(options.model)
    with open(options.steps, encoding="utf-8") as file:
        steps = json.load(file)
    with open(options.lengths, encoding="utf-8") as file:
        pairs = json.load(file)
    common = {"at_once": options.at_once, "max_len": options.max_len}
    ample = simulate(shape, steps, pairs, 1 << 40, 16, 16, **common)
    pool = int(ample["peak"] * options.pool_part)
    ours = simulate(shape, steps, pairs, pool, 8, 4, read_limit=options.read_limit, **common)
    static = simulate(shape, steps, pairs, pool, 4, 4, close=4, **common)
    rows = [("fp16, ample pool", ample), ("pm-kvq, target 8, floor 4", ours), ("static-4", static)]
    print("| cache | pool, peak (MiB) | answered, cut by `--max-len` | preemptions | mean bits at the end | answers a minute | "
          "an answer, p50 and p99 |\n|---|---|---|---|---|---|---|")
    for name, r in rows:
        size = "-" if r["pool"] == 1 << 40 else f"{r['pool'] / 2**20:.1f}"
        print(f"| {name} | {size}, {r['peak'] / 2**20:.1f} | {r['answered']}, {r['cut']} | {r['preempted']} | {r['bits']:.2f} | "
              f"{r['per_minute']:.1f} | {r['p50']:.1f} s, {r['p99']:.1f} s |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("measure", "lengths"):
        command = commands.add_parser(name)
        for argument in ("program", "model", "out"):
            command.add_argument(argument)
    command = commands.add_parser("run")
    for argument in ("model", "steps", "lengths"):
        command.add_argument(argument)
    command.add_argument("--at-once", type=int, default=16)
    command.add_argument("--max-len", type=int, default=4096)
    command.add_argument("--pool-part", type=float, default=0.4, help="of what fp16 takes at its peak")
    command.add_argument("--read-limit", type=int, default=0, help="bytes, --kv-read-limit")
    options = parser.parse_args()
    if options.command == "run":
        return run(options)
    result = (measure if options.command == "measure" else lengths)(options.program, options.model)
    with open(options.out, "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
