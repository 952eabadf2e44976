#!/usr/bin/env python3
"""Measures a model of tools/train by length of the chain, and prints tables of what was measured.

Usage: tools/length_results.py run --model DIR --work DIR --results DIR [--lengths N,...] [--max-len N] [--budgets MIB,...] [--device DEVICE]
       tools/length_results.py render --results DIR

`run` writes problems by length (tools/train/write_problems.py), makes plans and evaluates caches: 16 bits, and at each
budget the plan from the first token and two kinds of progression; then problems beyond the trained positions (where
--beyond names lengths), and KL of next tokens and of attention along the longest chains (analyze error-growth). Each run is
a file in the results folder; what is there is left out, and NAME.json in the work folder is taken as it is. Defaults are
those of longcot-32k on a GPU. `render` prints Markdown."""
import argparse
import json
import pathlib
import subprocess
import sys

from public_results import COLUMNS, against
from results_data import FIGURES

ROOT = pathlib.Path(__file__).resolve().parent.parent
LENGTHS, BEYOND, MAX_LEN = "2048,4096,8192,16384,24576,30720", "36864,40960", 32768
# MiB of a sequence; of 32,768 tokens of longcot-32k (12 x 256 values): 3.25, 2.7 and 2.37 bits a value, every byte counted.
BUDGETS = "39.0,32.4,28.5"
CACHES = (
    ("best", "progressive, oldest pages first", "pm-kvq:policy=oldest-first"),
    ("paper", "progressive, layer budgets", "pm-kvq"),
    ("static", "the plan from the first token", "pm-kvq:static"),
)
TEXTS = ["--lengths", "4096,8192", "--per-cell", 4, "--split", "train", "--seed", 5, "--texts"]
GROWTH_TASKS = ("ledger", "chain", "sort")


def runs(budgets):
    """(name, MiB or none, what it is, cache)"""
    yield "fp16", None, "16 bits", "fp16"
    for budget in budgets:
        for name, what, spec in CACHES:
            yield f"{name}-{budget:g}", budget, what, spec
    yield "static-2", None, "2 bits from the first token, no key scales", "static-2"


class Runner:
    def __init__(self, arguments):
        self.arguments = arguments
        self.work = pathlib.Path(arguments.work).resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.model = pathlib.Path(arguments.model).resolve()
        self.results = pathlib.Path(arguments.results)
        self.results.mkdir(parents=True, exist_ok=True)
        self.budgets = [float(b) for b in arguments.budgets.split(",")]

    def call(self, *command):
        line = list(map(str, command))
        print(" ".join(line), flush=True)
        subprocess.run(line, cwd=self.work, check=True)

    def file(self, name, *options):
        if not (self.work / name).exists():
            self.call(sys.executable, ROOT / "tools/train/write_problems.py", "--out", name, *options)

    def plans(self):
        program, device = self.arguments.program, self.arguments.device
        if not (self.work / "plan.json").exists():
            self.file("texts.jsonl", *TEXTS)
            self.call(program, "calibrate", "--model", self.model, "--device", device, "--dataset", "texts.jsonl",
                      "--pack", "single", "--n-samples", self.arguments.samples, "--seq-len", self.arguments.seq_len,
                      "--memory-budget", f"{max(self.budgets)}MiB", "--max-len", self.arguments.max_len, "--plan", "plan.json")
        for budget in self.budgets:
            self.call(program, "calibrate", "--from", "plan.json", "--separate-kv", "--memory-budget", f"{budget}MiB",
                      "--max-len", self.arguments.max_len, "--fbit-choices", "4,2", "--plan", f"plan-{budget:g}.json")

    def evaluate(self, name, data, max_len, options, model):
        if not (self.work / f"{name}.json").exists():
            self.call(self.arguments.program, "eval", "--model", model, "--data", data, "--max-len", max_len, "--batch",
                      self.arguments.batch, "--device", self.arguments.device, *options, "--out", name, "--json", f"{name}.json")
        result = json.loads((self.work / f"{name}.json").read_text())
        result["columns"] = {key: result["columns"][key] for key in (*COLUMNS, "level")}
        return result

    def wanted(self, name):
        only = self.arguments.only.split(",") if self.arguments.only else None
        return not (self.results / f"{name}.json").exists() and (only is None or name in only)

    def run(self):
        self.file("problems.jsonl", "--lengths", self.arguments.lengths, "--per-cell", self.arguments.per_cell)
        for name, budget, _, spec in runs(self.budgets):
            if not self.wanted(name):
                continue
            options = ["--kv", spec]
            if budget is not None:
                if not (self.work / f"plan-{budget:g}.json").exists():
                    self.plans()
                options += ["--plan", f"plan-{budget:g}.json", "--kv-budget", f"{budget}MiB"]
            result = self.evaluate(name, "problems.jsonl", self.arguments.max_len, options, self.model)
            (self.results / f"{name}.json").write_text(json.dumps({"mib": budget, "options": options, "max_len": self.arguments.max_len, "result": result}) + "\n")
        if self.arguments.beyond and self.wanted("far"):
            self.far()
        longest = round(int(self.arguments.lengths.split(",")[-1]) / 1024)
        for problem in (f"{task}-{longest}k-000" for task in GROWTH_TASKS):
            if self.wanted(f"kl-{problem}"):
                self.growth(problem)

    def far(self):
        """Positions beyond the model's own: a copy of the folder whose config.json allows them."""
        most = max(int(n) for n in self.arguments.beyond.split(",")) + 2048
        self.file("far.jsonl", "--lengths", self.arguments.beyond, "--per-cell", 4)
        folder = self.work / "far-model"
        folder.mkdir(exist_ok=True)
        for file in self.model.glob("*.*"):
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text())
        config["max_position_embeddings"] = most
        (folder / "config.json").write_text(json.dumps(config))
        result = self.evaluate("far", "far.jsonl", most, ["--kv", "fp16"], folder)
        (self.results / "far.json").write_text(json.dumps({"mib": None, "options": ["--kv", "fp16"], "max_len": most, "result": result}) + "\n")

    def growth(self, problem):
        budget = self.budgets[len(self.budgets) // 2]
        name = f"kl-{problem}"
        if not (self.work / f"{name}.json").exists():
            caches = [part for _, _, spec in reversed(CACHES) for part in ("--kv", spec)] + ["--kv", "static-2"]
            self.call(self.arguments.program, "analyze", "error-growth", "--model", self.model, "--device", self.arguments.device,
                      "--data", "problems.jsonl", "--problem", problem, "--max-len", self.arguments.max_len, "--stride", 256, "--plan",
                      f"plan-{budget:g}.json", "--kv-budget", f"{budget}MiB", *caches, "--json", f"{name}.json")
        made = json.loads((self.work / f"{name}.json").read_text())
        keys = ("kv", "peak_bytes", "mean_kl", "mean_attention_kl", "disagreements", "first_disagreement", "binned_kl", "binned_attention_kl")
        kept = {key: made[key] for key in ("problem", "prompt_tokens", "chain_tokens", "first_position", "bin_edges")}
        kept["caches"] = [{key: cache[key] for key in keys} | {"kl_by_eighth": eighths(cache["kl"])} for cache in made["caches"]]
        (self.results / f"{name}.json").write_text(json.dumps(kept) + "\n")


def eighths(values):
    """Means over eighths of a chain: of those positions that the cache still held."""
    size = -(-len(values) // 8)
    parts = [[v for v in values[at : at + size] if v is not None] for at in range(0, len(values), size)]
    return [sum(part) / len(part) if part else None for part in parts]


def load(folder, name):
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def by_length(result):
    cells = {}
    for level, correct in zip(result["columns"]["level"], result["columns"]["correct"]):
        cells.setdefault(level, []).append(bool(correct))
    return {level: f"{sum(cells[level])}/{len(cells[level])}" for level in sorted(cells)}


def by_task(result):
    """Rows of a table: task, then solved problems of each length."""
    cells, lengths = {}, sorted(set(result["columns"]["level"]))
    for name, level, correct in zip(*(result["columns"][key] for key in ("id", "level", "correct"))):
        cells.setdefault((name.split("-")[0], level), []).append(bool(correct))
    for task in sorted({task for task, _ in cells}):
        shown = [cells.get((task, level), []) for level in lengths]
        yield f"| {task} | " + " | ".join(f"{sum(c)}/{len(c)}" for c in shown) + " |"


def task_table(folder, name):
    made = load(folder, name)
    if made is None:
        return []
    lengths = sorted(set(made["result"]["columns"]["level"]))
    return ["| task | " + " | ".join(f"{n}K" for n in lengths) + " |", "|---" * (len(lengths) + 1) + "|", *by_task(made["result"])]


def cache_table(folder):
    full, lines = load(folder, "fp16"), []
    order = ["fp16", *(name for name, _, _ in CACHES), "static-2"]
    made = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    made = {name: row for name, row in made.items() if name != "far" and "result" in row}

    def place(name):
        budget = made[name]["mib"] or (0 if name == "static-2" else 1e9)
        return -budget, order.index(name if name in order else name.rpartition("-")[0])

    for name in sorted(made, key=place):
        row, result = made[name], made[name]["result"]
        lengths = by_length(result)
        if not lines:
            lines = ["| MiB | cache | peak MiB | solved | 95 % | against 16 bits, points | P | " + " | ".join(f"{n}K" for n in lengths) + " |"]
            lines.append("|---" * (7 + len(lengths)) + "|")
        low, high = FIGURES.of(solved=result["correct"], responses=result["responses"])["interval"]
        difference = against(result, full["result"]) if name != "fp16" and full is not None else " | "
        lines.append(f"| {row['mib'] or ''} | `{row['options'][1]}` | {result['peak_bytes'] / 2**20:.1f} | "
                     f"{result['correct']}/{result['responses']} | {100 * low:.1f} to {100 * high:.1f} | {difference} | "
                     + " | ".join(lengths.values()) + " |")
    return lines


def growth_table(folder):
    """Mean KL of next tokens in eighths of the chain, and of attention."""
    lines = ["| problem | cache | peak MiB | KL by eighth of the chain | attention KL, mean | tokens changed, first at |", "|---|---|---|---|---|---|"]
    for path in sorted(folder.glob("kl-*.json")):
        made = json.loads(path.read_text())
        for cache in made["caches"]:
            shown = " ".join("-" if mean is None else f"{mean:.1e}" for mean in cache["kl_by_eighth"])
            first = cache["first_disagreement"]
            lines.append(f"| {made['problem']} | `{cache['kv']}` | {cache['peak_bytes'] / 2**20:.1f} | {shown} | {cache['mean_attention_kl']:.2g} | "
                         f"{len(cache['disagreements'])}" + (f", {first}" if first is not None else "") + " |")
    return lines if len(lines) > 2 else []


def render(arguments):
    FIGURES.start(arguments.program)
    folder = pathlib.Path(arguments.results)
    tables = {"Solved by length": cache_table(folder), "16 bits, by task": task_table(folder, "fp16"),
              "Beyond the trained positions, 16 bits": task_table(folder, "far"), "Growth of the error": growth_table(folder)}
    for title, lines in tables.items():
        if lines:
            print(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "render"])
    parser.add_argument("--program", default=str(ROOT / "build/release/bin/pmkvq"))
    parser.add_argument("--model")
    parser.add_argument("--work")
    parser.add_argument("--results", required=True)
    parser.add_argument("--only", help="runs by name")
    parser.add_argument("--lengths", default=LENGTHS)
    parser.add_argument("--beyond", default=BEYOND, help="lengths past the model's positions; an empty text: none")
    parser.add_argument("--budgets", default=BUDGETS, help="MiB a sequence")
    parser.add_argument("--max-len", type=int, default=MAX_LEN)
    parser.add_argument("--per-cell", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8, help="calibration texts")
    parser.add_argument("--seq-len", type=int, default=4096, help="their length")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.action == "render":
        return render(arguments)
    if arguments.work is None or arguments.model is None:
        parser.error("run needs --model DIR and --work DIR")
    if not (pathlib.Path(arguments.model) / "config.json").exists():
        parser.error(f"{arguments.model} has no config.json: give a model folder, such as that of tools/train/train.py --out")
    Runner(arguments).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
