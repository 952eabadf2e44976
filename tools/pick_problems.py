#!/usr/bin/env python3
"""Picks the 40 held-out problems of `pmkvq demo` from a problems.jsonl.

Of every task: the first problem of levels 1 to 5 and the second of levels 3 to 5, without the
reference chains. Usage: tools/pick_problems.py problems.jsonl > heldout-40.jsonl
"""
import json
import sys


def pick(path):
    """The rows to keep."""
    seen: dict[tuple[str, int], int] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                key = (row["task"], int(row["level"]))
            except (ValueError, KeyError, TypeError):
                sys.exit(f"pick_problems.py: [{path}:{number}] found no problem, expected JSON with task and level; name a "
                         "problems.jsonl")
            seen[key] = seen.get(key, 0) + 1
            if row["level"] <= 5 and seen[key] <= (2 if row["level"] >= 3 else 1):
                row.pop("reference_chain", None)
                yield row


def main():
    if len(sys.argv) != 2:
        print(f"usage: tools/pick_problems.py problems.jsonl > heldout-40.jsonl; found {len(sys.argv) - 1} arguments, expected 1",
              file=sys.stderr)
        sys.exit(2)
    if sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return
    try:
        for row in pick(sys.argv[1]):
            print(json.dumps(row, ensure_ascii=False))
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"pick_problems.py: [{sys.argv[1]}] cannot read: {getattr(error, 'strerror', None) or 'not a text file'}; name "
                 "a problems.jsonl")


if __name__ == "__main__":
    main()
