#!/usr/bin/env python3
"""Picks the 40 held-out problems of `pmkvq demo` from a problems.jsonl.

Of every task: the first problem of levels 1 to 5 and the second of levels 3 to 5, without the
reference chains. Usage: pick_problems.py problems.jsonl > heldout-40.jsonl
"""
import json
import sys

seen: dict[tuple[str, int], int] = {}
for line in open(sys.argv[1], encoding="utf-8"):
    row = json.loads(line)
    key = (row["task"], row["level"])
    seen[key] = seen.get(key, 0) + 1
    if row["level"] <= 5 and seen[key] <= (2 if row["level"] >= 3 else 1):
        row.pop("reference_chain", None)
        print(json.dumps(row, ensure_ascii=False))
