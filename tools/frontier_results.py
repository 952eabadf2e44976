#!/usr/bin/env python3
"""Candidates for --recipe best at equal bytes, on the public problems of longcot-10m, and the tables of docs/frontier.md.

Usage: tools/frontier_results.py run --work DIR [--device DEVICE] [--batch N] [--only NAME,...]
       tools/frontier_results.py render [--check]

`run` makes results/frontier/*.json, one file a run, and leaves out what is there; NAME.json in DIR is taken as it is. `render`
writes the tables of the page and its chart; with --check nothing is written, and the exit code is 1 where the page differs
from what would be written. Rivals, the paper and the recipe until now are rows of results/runs (tools/make_results.py)."""
import argparse
import json
import pathlib
import subprocess
import sys

import results_settings as rs
import svg_chart
from public_results import write_between_marks
from results_data import FIGURES, Pair, Result

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "frontier"
PAGE = ROOT / "docs" / "frontier.md"
CHART = ROOT / "docs" / "images" / "frontier.svg"
LEVEL_6 = rs.ProblemSet("level6", "level 6, 6,656 tokens", (6, 6), (0, 30), 6656, 120)
SETS = {"l15": rs.ALL, "l6": LEVEL_6, "hard": rs.HARD}
FIRST = "pm-kvq:policy=oldest-first"
VALUES_FIRST = f"{FIRST}+k=4+v=2"
# Name -> SPEC, kind of plan (results_settings.PLAN_OPTIONS), words.
SETTINGS = {
    "first": (VALUES_FIRST, "split", "**`best`**: values to 2 bits before keys leave 4"),
    "first+channel": (f"{VALUES_FIRST}+axis=channel", "split", "**`best` with keys per channel**"),
    "first+even": (VALUES_FIRST, "uniform", "`best` with as many bytes for each block"),
    "first+even+channel": (f"{VALUES_FIRST}+axis=channel", "uniform", "`best` with keys per channel and as many bytes for each block"),
    "before": (FIRST, "split", "`best` until now: V and K of a page in turn"),
    "channel": (f"{FIRST}+axis=channel", "split", "`best` until now, keys per channel"),
    "paper": ("pm-kvq", "tied", "the paper"),
    "fp16": ("fp16", "", "16 bits"),
}
BUDGETS = {"l15": (8.5, 4.65, 3.25, 2.87, 2.7), "l6": (3.25, 3, 2.87, 2.7, 2.55)}
# Of results/runs: what else is shown, by its name there.
# name there -> (name here, words).
OTHERS = {"pm-kvq": ("paper", "the paper"), "best": ("before", "`best` until now: V and K of a page in turn"),
          "of+split+channel": ("channel", "`best` until now, keys per channel"), "mixkvq": ("mixkvq", "MixKVQ"),
          "rotatekv": ("rotatekv", "RotateKV"), "oscar": ("oscar", "OSCAR"), "kivi": ("kivi", "KIVI")}
DRAWN = {"first": "best", "first+channel": "best, keys per channel", "before": "best until now", "channel": "best until now, keys per channel",
         "paper": "the paper", "mixkvq": "MixKVQ"}
# Ideas that were tried, on the choosing half of levels 3 to 5: words, bits, the run's name in results/runs/hard.
IDEAS = [
    ("keys per channel", 2.7, "of+channel"),
    ("rotated keys", 2.7, "of+rotate"),
    ("keys per channel, rotated values", 2.7, "of+channel+rotate"),
    ("a sink of two tokens", 2.7, "of+sink"),
    ("all pages at 2 bits from the first token, one width for all blocks", 2.7, "static-2"),
    ("a random rotation and one codebook for all coordinates (TurboQuant, keys 3 bits, values 2)", 2.7, "turboquant"),
    ("rotations by what attention sees (OSCAR)", 2.7, "oscar"),
    ("codebooks of neighbouring channels (CQ), weighted by gradients", 2.7, "cq"),
    ("the same, not weighted", 2.7, "cq-uniform"),
    ("keys per channel, values per token (KIVI, groups of 128)", 2.7, "kivi"),
    ("keys of 2 bits, values of 1, levels moved inwards (XQuant's etas, nothing shared)", 2.7, "xquant"),
    ("the same, codes shared by pairs of blocks", 2.7, "xquant-shared"),
    ("widths per token by range and attention (QAQ)", 2.7, "qaq"),
    ("key channels in tiers (MixKVQ; at this size no channel is wide)", 2.7, "mixkvq"),
    ("key channels in tiers (Kitty: 2 bits, 4 for an eighth)", 3.25, "kitty"),
    ("tiles of one variance (KVarN, 2 bits)", 3.25, "kvarn"),
    ("eviction by a trained gate (Fast KVzip)", 2.7, "fastkvzip"),
    ("eviction by attention so far (H2O)", 2.7, "h2o"),
]
IDEAS_AGAINST = "oldest-first"
# What values of 1 bit cost beside keys of 2 and 4, every page so from the first token (but the newest 128): name -> SPEC, words.
# Keys per channel over 128 tokens, values per token and head, levels of 1 and 2 bits moved inwards.
APART = "xquant:km=12+vm=12+group=128"
RUNGS = {
    "rung-k4v2": (f"{APART}+k=4", "keys 4 bits, values 2"),
    "rung-k4v1": (f"{APART}+k=4+vq=0", "keys 4 bits, values 1"),
    "rung-k2v2": (APART, "keys 2 bits, values 2"),
    "rung-k2v1": (f"{APART}+vq=0", "keys 2 bits, values 1"),
}
RUNG_AGAINST = {"rung-k4v1": "rung-k4v2", "rung-k2v2": "rung-k4v2", "rung-k2v1": "rung-k2v2"}
COLUMNS = ("id", "response", "correct", "output_tokens", "finish_reason", "peak_bytes")


def runs():
    """(name, set, bits, SPEC, kind of plan)"""
    for name, (spec, _) in RUNGS.items():
        yield name, "hard", 16, spec, ""
    for key, budgets in BUDGETS.items():
        yield f"{key}-16-fp16", key, 16, "fp16", ""
        for bits in budgets:
            for name, (spec, plan, _) in SETTINGS.items():
                if name != "fp16":
                    yield f"{key}-{bits:g}-{name}", key, bits, spec, plan


def options_of(key, bits, spec, plan, folder):
    problem_set = SETS[key]
    options = ["--kv", spec, "--max-len", str(problem_set.max_len), "--min-level", str(problem_set.levels[0]), "--max-level", str(problem_set.levels[1]),
               "--per-cell", str(problem_set.numbers[1])]
    if not plan:
        return options
    return [*options, "--plan", str(folder / rs.plan_name(plan, bits, problem_set.max_len)), "--kv-budget", str(problem_set.budget_bytes(bits))]


def run(arguments):
    work = pathlib.Path(arguments.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    only = arguments.only.split(",") if arguments.only else None
    for name, key, bits, spec, plan in runs():
        made = work / f"{name}.json"
        if (RESULTS / f"{name}.json").exists() or (only is not None and name not in only) or (arguments.take and not made.exists()):
            continue
        if not made.exists():
            path = work / rs.plan_name(plan, bits, SETS[key].max_len)
            if plan and not path.exists():
                subprocess.run([arguments.program, "calibrate", *rs.plan_options(plan, bits, SETS[key].max_len), "--plan", path], cwd=ROOT, check=True)
            subprocess.run([arguments.program, "eval", "--model", rs.MODEL, *options_of(key, bits, spec, plan, work), "--batch", str(arguments.batch),
                            "--device", arguments.device, "--out", work / name, "--json", made], cwd=ROOT, check=True)
        result = json.loads(made.read_text())
        rows = [row for row in zip(*(result["columns"][column] for column in COLUMNS)) if SETS[key].holds(row[0])]
        columns = {column: [int(v) if column == "correct" else v for v in values] for column, values in zip(COLUMNS, zip(*rows))}
        kept = {"set": key, "bits": bits, "spec": spec, "plan": plan, "device": arguments.device, "fits": True,
                "budget_bytes": result["budget_bytes"], "columns": columns}
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, separators=(",", ":")) + "\n")
    return 0


def load(path, problem_set):
    data = json.loads(path.read_text()) if path.exists() else None
    return Result(data, problem_set) if data and data["fits"] else None


def rows_of(key, bits):
    """(name, words, result) of all that was measured at one budget."""
    problem_set = SETS[key]
    rows = [(name, words, load(RESULTS / f"{key}-{bits:g}-{name}.json", problem_set)) for name, (_, _, words) in SETTINGS.items()]
    have = {name for name, _, result in rows if result}
    for there, (name, words) in OTHERS.items():
        if name not in have:
            rows.append((name, words, load(ROOT / "results" / "runs" / ("all" if key == "l15" else "long") / f"{bits:g}" / f"{there}.json", problem_set)))
    return [row for row in rows if row[2]]


def shown(part):
    if part.total() == 0:
        return "-", "-"
    low, high = part.interval()
    return f"{part.solved()}/{part.total()}", f"{100 * low:.1f} to {100 * high:.1f}"


def table(key, bits):
    rows = rows_of(key, bits)
    best = next((result for name, _, result in rows if name == "before"), None)
    lines = ["| cache | peak MiB | bits | choosing half | reporting half | 95 % | against `best` until now | P | verdict |", "|---" * 9 + "|"]
    for name, words, result in rows:
        half, low_high = shown(result.reporting())
        difference = " | | "
        if best is not None and name != "before":
            pair = Pair(result.reporting(), best.reporting())
            if pair.n:
                difference = f"{100 * pair.difference:+.1f} ({100 * pair.interval[0]:+.1f} to {100 * pair.interval[1]:+.1f}) | {pair.p:.3g} | {pair.verdict()}"
        peak = result.peak_bytes()
        lines.append(f"| {words} | {peak / 2**20:.2f} | {result.bits_of(peak):.2f} | {shown(result.choosing())[0]} | {half} | {low_high} | {difference} |")
    return lines if len(lines) > 2 else []


def ideas():
    def of(bits, name):
        return load(ROOT / "results" / "runs" / rs.HARD.name / f"{bits:g}" / f"{name}.json", rs.HARD)

    lines = ["| idea | budget, bits | peak bits | solved | 95 % | against `best` until now | P | verdict |", "|---" * 8 + "|"]
    for bits in dict.fromkeys(bits for _, bits, _ in IDEAS):
        best = of(bits, IDEAS_AGAINST)
        for words, _, name in [("`best` until now", bits, IDEAS_AGAINST), *(idea for idea in IDEAS if idea[1] == bits)]:
            result = of(bits, name)
            half, low_high = shown(result)
            difference = " | | "
            if name != IDEAS_AGAINST:
                pair = Pair(result, best)
                difference = f"{100 * pair.difference:+.1f} ({100 * pair.interval[0]:+.1f} to {100 * pair.interval[1]:+.1f}) | {pair.p:.3g} | {pair.verdict()}"
            lines.append(f"| {words} | {bits:g} | {result.bits_of(result.peak_bytes()):.2f} | {half} | {low_high} | {difference} |")
    return ["", *lines, ""]


def rungs():
    results = {name: load(RESULTS / f"{name}.json", rs.HARD) for name in RUNGS}
    lines = ["| every page | peak MiB | bits | solved | 95 % | against | difference | P | verdict |", "|---" * 9 + "|"]
    for name, (_, words) in RUNGS.items():
        result = results[name]
        half, low_high = shown(result)
        difference = " | | | "
        if name in RUNG_AGAINST:
            pair = Pair(result, results[RUNG_AGAINST[name]])
            difference = (f"{RUNGS[RUNG_AGAINST[name]][1]} | {100 * pair.difference:+.1f} ({100 * pair.interval[0]:+.1f} to {100 * pair.interval[1]:+.1f}) | "
                          f"{pair.p:.3g} | {pair.verdict()}")
        peak = result.peak_bytes()
        lines.append(f"| {words} | {peak / 2**20:.2f} | {result.bits_of(peak):.2f} | {half} | {low_high} | {difference} |")
    return ["", *lines, ""]


def chart():
    panels = []
    for key, title in (("l15", "Levels 1 to 5, reporting half"), ("l6", "Level 6, reporting half")):
        series = []
        for name, words in DRAWN.items():
            points = []
            for bits in sorted(b for b in BUDGETS[key] if b < 4):
                found = next((result for n, _, result in rows_of(key, bits) if n == name), None)
                if found and found.reporting().total():
                    points.append((bits, 100 * found.reporting().share()))
            series.append((words, points))
        panels.append(svg_chart.Panel(title, "bits a value, every byte counted", "solved, %", series, y_range=(50, 100), marks=True,
                                      x_ticks=sorted(b for b in BUDGETS[key] if b < 4)))
    return svg_chart.chart(panels, height=430)


def render(arguments):
    FIGURES.start(arguments.program)
    lines = []
    for key in BUDGETS:
        problem_set = SETS[key]
        for bits in BUDGETS[key]:
            found = table(key, bits)
            if found:
                lines += ["", f"### {bits:g} bits, {problem_set.title}", "", *found]
    picture = chart()
    if arguments.check:
        if not CHART.exists() or CHART.read_text() != picture:
            print("docs/images/frontier.svg is not as rendered")
            return 1
    else:
        CHART.write_text(picture)
    return write_between_marks(PAGE, "tools/frontier_results.py", {"Tables": [*lines, ""], "Ideas": ideas(), "Rungs": rungs()}, arguments.check)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "render"])
    parser.add_argument("--program", default=str(ROOT / "build/release/bin/pmkvq"))
    parser.add_argument("--work")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", help="runs by name")
    parser.add_argument("--take", action="store_true", help="take what is in the work folder, run nothing")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.action == "render":
        return render(arguments)
    if arguments.work is None:
        parser.error("run needs --work DIR")
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
