#!/usr/bin/env python3
"""Tables and charts of the pages in docs/questions, from results/long: KL along long chains, transfer, interpolation, halving.

Usage: tools/question_pages.py [--check]

With --check nothing is written, and the exit code is 1 where a file differs from what would be written. The measurements are
made by the commands on the pages; `error-growth` files are kept as tools/length_results.py keeps them."""
import json
import math
import pathlib
import sys

import svg_chart
from public_results import write_between_marks
from results_data import FIGURES

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "results" / "long", ROOT / "docs"
TOOL = "tools/question_pages.py"


def load(name):
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def growth():
    made = load("kl-ledger-16k-000")
    middles = [(a + b) / 2 for a, b in zip(made["bin_edges"], made["bin_edges"][1:])]
    lines = ["| cache | MiB | mean KL of logits | by eighth of the chain | mean KL of attention | tokens changed, first at |", "|---" * 6 + "|"]
    panels = [[], []]
    for cache in made["caches"]:
        shown = " ".join("-" if mean is None else f"{mean:.0e}" for mean in cache["kl_by_eighth"])
        first = "" if cache["first_disagreement"] is None else f", {cache['first_disagreement']:,}"
        lines.append(f"| `{cache['kv']}` | {cache['peak_bytes'] / 2**20:.1f} | {cache['mean_kl']:.1e} | {shown} | {cache['mean_attention_kl']:.3f} | "
                     f"{len(cache['disagreements'])}{first} |")
        panels[0].append((cache["kv"], list(zip(middles, cache["binned_kl"]))))
        panels[1].append((cache["kv"], list(zip(middles, cache["binned_attention_kl"]))))
    ticks = [4000, 8000, 12000, 16000]
    picture = svg_chart.chart([svg_chart.Panel("KL of logits", "position", "nats, logarithmic", panels[0], log_y=True, x_ticks=ticks),
                               svg_chart.Panel("KL of attention", "position", "nats", panels[1], y_range=(0, 0.25), x_ticks=ticks)], height=430)
    return {"Growth": lines, "Solved": solved()}, picture


def solved():
    """Rows of 24 chains of 16K tokens, by task."""
    tasks = ("chain", "multiply", "sort", "ledger")
    lines = ["| cache | peak MiB | solved | 95 % | " + " | ".join(tasks) + " |", "|---" * (4 + len(tasks)) + "|"]
    for name in ("fp16", "best", "static"):
        made = load(f"solved-16k-{name}")
        rows = list(zip(made["columns"]["id"], made["columns"]["correct"]))
        good = sum(bool(correct) for _, correct in rows)
        low, high = FIGURES.of(solved=good, responses=len(rows))["interval"]
        cells = [f"{sum(bool(c) for i, c in rows if i.startswith(task))}/{sum(i.startswith(task) for i, _ in rows)}" for task in tasks]
        lines.append(f"| `{made['kv']}` | {made['peak_bytes'] / 2**20:.1f} | {good}/{len(rows)} | {100 * low:.1f} to {100 * high:.1f} | " + " | ".join(cells) + " |")
    return lines


def ranks(values):
    order = sorted(range(len(values)), key=lambda i: values[i])
    places = [0] * len(values)
    for place, i in enumerate(order):
        places[i] = place
    return places


def rank_correlation(a, b):
    """Spearman's, of values without ties."""
    n = len(a)
    return 1 - 6 * sum((x - y) ** 2 for x, y in zip(ranks(a), ranks(b))) / (n * (n * n - 1))


def transfer():
    made = load("transfer-2048")
    tasks = [task["name"] for task in made["tasks"]]
    lines = ["| sensitivities of | blocks of 4 bits | " + " | ".join(tasks) + " | geometric mean |", "|---" * (len(tasks) + 3) + "|"]
    series = []
    for row in made["rows"]:
        kls = [row["on"][task]["kl"] for task in tasks]
        mean = math.exp(sum(math.log(max(k, 1e-9)) for k in kls) / len(kls))
        wide = ", ".join(str(i) for i, bits in enumerate(row["k_bits"]) if bits == 4) or "none: the bytes evenly"
        lines.append(f"| {row['name']} | {wide} | " + " | ".join(f"{k:.1e}" for k in kls) + f" | {mean:.1e} |")
        if row["name"] in ("registers", "all tasks", "mirrored", "uniform"):
            series.append(("placement by " + row["name"], list(enumerate(kls, 1))))
    panels = [svg_chart.Panel("Texts of 2,048 tokens", "task: " + ", ".join(f"{i} {task}" for i, task in enumerate(tasks, 1)), "KL, nats", series,
                              log_y=True, x_ticks=list(range(1, len(tasks) + 1)), marks=True)]
    plan = json.loads((ROOT / "models" / "longcot-32k" / "plan.json").read_text())["sensitivity"]
    lengths = ["| task, texts of 2,048 tokens | keys to 4 bits | keys to 2 bits | values to 4 bits | values to 2 bits |", "|---" * 5 + "|"]
    for task in made["tasks"]:
        cells = [f"{rank_correlation(task['sensitivity'][side][width], plan[side][width]):.2f}" for side in ("k", "v") for width in ("4", "2")]
        lengths.append(f"| {task['name']} | " + " | ".join(cells) + " |")
    return {"Transfer": lines, "Lengths": lengths}, svg_chart.chart(panels, width=760, height=430)


def interpolation():
    tables, losses, kls = {}, [], []
    for name, words in (("stretch-2k", "chains of 2K"), ("stretch-32k", "chains of 30K")):
        made = load(name)
        if made is None:
            continue
        lines = ["| factor | loss of the calibration text | KL with the plan | KL, placement alone | blocks of 4 bits | rank correlation with factor 1 |", "|---" * 6 + "|"]
        for point in made["points"]:
            wide = ", ".join(str(i) for i, bits in enumerate(point["k_bits"]) if bits == 4)
            lines.append(f"| {point['factor']} | {point['calibration_loss']:.2f} | {point['cache']['kl']:.1e} | {point['placement_only']['kl']:.1e} | {wide} | "
                         f"{point['rank_correlation']:.2f} |")
        tables[f"Interpolation {name}"] = lines
        kls.append((words + ", key scales and placement", [(p["factor"], p["cache"]["kl"]) for p in made["points"]]))
        kls.append((words + ", placement alone", [(p["factor"], p["placement_only"]["kl"]) for p in made["points"]]))
        losses.append((words, [(p["factor"], p["calibration_loss"]) for p in made["points"]]))
    ticks = [1, 2, 4, 8, 16, 32]
    picture = svg_chart.chart([svg_chart.Panel("Damage with the plan", "interpolation factor", "KL, nats", kls, log_y=True, log_x=True, x_ticks=ticks, marks=True),
                               svg_chart.Panel("Loss of the calibration text", "interpolation factor", "nats", losses, y_range=(0, 10), log_x=True, x_ticks=ticks, marks=True)])
    return tables, picture


def halving():
    made = load("halving")
    lines = ["| cache | MiB | tokens/s | halvings | all of them, share of the time | longest wait of a token, ms |", "|---" * 6 + "|"]
    series = []
    for run in made["runs"]:
        share = run["halving_us"] / 1e6 / run["seconds"]
        lines.append(f"| `{run['kv']}` | {run['peak_mib']:.1f} | {run['tokens_per_second']:.0f} | {run['halvings']:,} | {100 * share:.2f} % | {run['longest_pause_us'] / 1000:.1f} |")
        if run["by_position"]:
            series.append((run["kv"], run["by_position"]))
    picture = svg_chart.chart([svg_chart.Panel("Time that halving has taken so far", "position", "ms, sum", series, y_range=(0, 80), x_ticks=[2000, 4000, 6000, 8000])], width=700)
    return {"Halving": lines}, picture


PAGES = {"growth": growth, "transfer": transfer, "interpolation": interpolation, "halving": halving}


def main():
    check = "--check" in sys.argv[1:]
    if [a for a in sys.argv[1:] if a != "--check"]:
        sys.exit(__doc__)
    FIGURES.start(str(ROOT / "build" / "release" / "bin" / "pmkvq"))
    failed = 0
    for name, make in PAGES.items():
        tables, picture = make()
        path = DOCS / "images" / f"question-{name}.svg"
        if check:
            same = path.exists() and path.read_text() == picture
            failed += not same
            if not same:
                print(f"docs/images/{path.name} is not as rendered")
        else:
            path.write_text(picture)
        failed += write_between_marks(DOCS / "questions" / f"{name}.md", TOOL, tables, check)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
