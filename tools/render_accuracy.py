#!/usr/bin/env python3
"""Renders docs/accuracy.md from the JSON files that scripts/accuracy.sh wrote. Usage: render_accuracy.py FOLDER"""
import json
import math
import pathlib
import sys

KV_VALUES_PER_TOKEN = 12 * 2 * 128  # longcot-10m: blocks x (K, V) x KV dim
MAX_LEN = 4096


def wilson(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion."""
    z, p = 1.959964, correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return centre - half, centre + half


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    print("""# Accuracy of the shipped model under cache budgets

longcot-10m, greedy, 200 held-out problems (8 per task and level, levels 1 to 5), answers must be equal. Budgets are for one
sequence of 4,096 tokens and count every byte: codes, metadata, sink, open page. Intervals are 95 % Wilson intervals.
Made by `scripts/accuracy.sh build/release/bin/pmkvq results/accuracy` and rendered by
`tools/render_accuracy.py results/accuracy > docs/accuracy.md`.

| setting | policy | budget KiB | bits per value at 4,096 tokens | solved | 95 % interval | cut by length | longest pause ms |
|---|---|---|---|---|---|---|---|""")
    for path in sorted(folder.glob("[0-9]*.json")):
        row = json.loads(path.read_text())
        low, high = wilson(row["correct"], row["problems"])
        bits = row["budget_bytes"] * 8 / (KV_VALUES_PER_TOKEN * MAX_LEN)
        name = path.stem[3:].replace("-oldest-first", "")
        print(f"| {name} | {row['policy'] if row['kv'].startswith('pm-kvq') else '-'} | {row['budget_bytes'] / 1024:,.0f} | {bits:.2f} "
              f"| {row['correct']}/{row['problems']} | {low:.3f} to {high:.3f} | {row['cut_by_length']} "
              f"| {row['longest_pause_us'] / 1000:.2f} |")
    print("""
`plan-Nbit`: block-wise {4, 2} plan averaging N bits, with searched key scales (`models/longcot-10m/plan.json` and the same
measurements under another budget). `split`: K and V of a block may differ, same bytes as 2.5 bits. `pm-kvq-Nbit`: the same
width for every block, no key scales; `scales`: with the plan's. Pauses were measured with several settings side by side on
one machine; they bound, and do not describe, what a quiet machine shows.""")


if __name__ == "__main__":
    main()
