#!/usr/bin/env python3
"""Measures caches of latents with models/longcot-mla, and renders the tables of docs/results-mla.md from what was measured.

Usage: tools/latent_results.py run --work DIR [--per-cell N] [--batch N] [--threads N] [--device DEVICE] [--only NAME,...]
       tools/latent_results.py render [--check]

`run` makes results/mla/*.json, one file a run, and leaves out what is there; run it again after an interrupt. Plans and
responses lie in DIR. `render` writes the tables between the marks of the page; with --check nothing is written, and the
exit code is 1 where the file differs from what would be written."""
import argparse
import json
import pathlib
import subprocess
import sys

from public_results import COLUMNS, against, write_between_marks
from results_data import FIGURES

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "mla"
PAGE = ROOT / "docs" / "results-mla.md"
MODEL = ROOT / "models" / "longcot-mla"
DATA = ROOT / "models" / "longcot-10m"
BLOCKS, LATENT, ROPE = 12, 256, 32
# Budgets are bits per value of this many tokens, every byte counted. Sequences end at MAX_LEN, behind the longest chain of
# levels 1 to 5 (3,693 tokens and its prompt): no widths hold 4,096 tokens in 2.7 bits, where 2.76 is the least.
TOKENS, MAX_LEN = 4096, 3968
# Bits -> widths to choose from, and the least width of rotated keys.
BUDGETS = {4.65: ("8,4,2", 4), 3.25: ("4,2", 4), 2.7: ("4,2", 2)}
# The widest widths of one kind for all tokens that fit, without progression and without key scales: round to nearest.
NEAREST = {4.65: "k=4+v=4", 3.25: "k=2+v=4", 2.7: "k=2+v=2"}


def budget_mib(bits):
    return bits * BLOCKS * (LATENT + ROPE) * TOKENS / 8 / 2**20


def plan_of(bits):
    return f"plan-{bits:g}.json"


def runs():
    """(name, bits, what it is, cache)"""
    yield "fp16", 16, "16 bits", "fp16"
    for bits in BUDGETS:
        yield f"{bits:g}-paper", bits, "paper: progressive, layer budgets", "pm-kvq"
        yield f"{bits:g}-best", bits, "best: progressive, oldest pages first", "pm-kvq:policy=oldest-first"
        yield f"{bits:g}-unscaled", bits, "best without key scales", "pm-kvq:policy=oldest-first+scales=off"
        yield f"{bits:g}-static", bits, "the plan from the first token", "pm-kvq:static"
        yield f"{bits:g}-rotated", bits, "best, rotated in place of key scales", "pm-kvq:policy=oldest-first+scales=off+rotate=keys"
        yield f"{bits:g}-nearest", bits, "round to nearest, one width", f"pm-kvq:{NEAREST[bits]}+static+scales=off"
        yield (f"{bits:g}-nearest-rotated", bits, "the same of rotated latents",
               f"pm-kvq:{NEAREST[bits]}+static+scales=off+rotate=keys")


class Runner:
    def __init__(self, arguments):
        self.arguments = arguments
        self.work = pathlib.Path(arguments.work).resolve()
        self.work.mkdir(parents=True, exist_ok=True)

    def program(self, *command):
        line = [self.arguments.program, *map(str, command)]
        print(" ".join(line), flush=True)
        subprocess.run(line, cwd=self.work, check=True)

    def run(self):
        for bits, (choices, floor) in BUDGETS.items():
            self.program("calibrate", "--from", MODEL / "plan.json", "--memory-budget", f"{budget_mib(bits):.6f}MiB", "--max-len",
                         MAX_LEN, "--fbit-choices", choices, "--rope-floor", floor, "--plan", plan_of(bits))
        RESULTS.mkdir(parents=True, exist_ok=True)
        only = self.arguments.only.split(",") if self.arguments.only else None
        for name, bits, _, spec in runs():
            target = RESULTS / f"{name}.json"
            if target.exists() or (only is not None and name not in only):
                continue
            options = ["--kv", spec]
            if bits != 16:
                options += ["--plan", plan_of(bits), "--kv-budget", f"{budget_mib(bits):.6f}MiB"]
            self.program("eval", "--model", MODEL, "--data", DATA / "problems.jsonl", "--per-cell", self.arguments.per_cell,
                         "--max-level", 5, "--max-len", MAX_LEN, "--batch", self.arguments.batch, "--threads",
                         self.arguments.threads, "--device", self.arguments.device, *options, "--out", name, "--json", "result.json")
            result = json.loads((self.work / "result.json").read_text())
            result["columns"] = {key: result["columns"][key] for key in (*COLUMNS, "level")}
            target.write_text(json.dumps({"bits": bits, "options": options, "result": result}) + "\n")


def load(name):
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["result"] if path.exists() else None


def by_level(result):
    """Solved problems of each level."""
    cells = {}
    for level, correct in zip(result["columns"]["level"], result["columns"]["correct"]):
        cells.setdefault(level, []).append(bool(correct))
    return " | ".join(f"{sum(cells[level])}/{len(cells[level])}" for level in sorted(cells))


def table():
    lines = ["| bits | cache | peak MiB | solved | 95 % | against 16 bits, points | P | L1 | L2 | L3 | L4 | L5 |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|"]
    full = load("fp16")
    for name, bits, what, spec in runs():
        result = load(name)
        if result is None:
            continue
        low, high = FIGURES.of(solved=result["correct"], responses=result["responses"])["interval"]
        difference = against(result, full) if name != "fp16" and full is not None else " | "
        lines.append(f"| {bits:g} | {what}: `{spec}` | {result['peak_bytes'] / 2**20:.2f} | {result['correct']}/{result['responses']} | "
                     f"{100 * low:.1f} to {100 * high:.1f} | {difference} | {by_level(result)} |")
    return lines


def render(arguments):
    FIGURES.start(arguments.program)
    return write_between_marks(PAGE, "tools/latent_results.py", {"Table": table()}, arguments.check)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "render"])
    parser.add_argument("--program", default=str(ROOT / "build/release/bin/pmkvq"))
    parser.add_argument("--work")
    parser.add_argument("--only")
    parser.add_argument("--per-cell", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.action == "run":
        if arguments.work is None:
            parser.error("run needs --work DIR")
        Runner(arguments).run()
        return 0
    return render(arguments)


if __name__ == "__main__":
    sys.exit(main())
