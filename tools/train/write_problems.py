#!/usr/bin/env python3
"""Writes problems of wanted lengths for `pmkvq eval`, and texts for `pmkvq calibrate`. No torch is needed.

write_problems.py --out problems.jsonl --lengths 2048,4096,8192,16384,24576,30720 --per-cell 4
write_problems.py --out calibration.jsonl --lengths 8192,16384 --per-cell 2 --split train --texts

A length is that of prompt and chain together, kept within 8 %. The level of a row is its length in units of 1,024 tokens,
so a report by level is one by length. Equal options give equal files.
"""
import argparse
import json
import os

import problems
from tokens import Tokens

HERE = os.path.dirname(os.path.abspath(__file__))
SHIPPED = os.path.normpath(os.path.join(HERE, "..", "..", "models", "longcot-10m"))
MOST_DRAWS = 20000


def levels_near(tokens, draw, task, length):
    """Levels of `task` that may reach `length`, by eight samples of each."""
    levels = []
    low, high = problems.LONG_LEVELS[task]
    for level in [*range(1, problems.LEVELS[task] + 1), *range(low, high + 1), problems.BEYOND]:
        sizes = [size_of(tokens, *draw(task, level)) for _ in range(8)]
        if min(sizes) * 0.7 < length < max(sizes) * 1.4:
            levels.append(level)
    return levels


def size_of(tokens, text, trace, answer):
    return len(tokens.encode(problems.prompt_text(text) + problems.reply_text(trace, answer)))


def rows_of(options):
    """Rows by length and task. A problem is never drawn twice."""
    tokens = Tokens(os.path.join(SHIPPED, "tokenizer.json"))
    exclude = problems.published(SHIPPED)
    for length in options.lengths:
        for task in options.tasks:
            stream = f"lengths/{length}/{task}"
            draw = problems.Generator(options.seed, options.split, stream, exclude).draw
            levels = levels_near(tokens, draw, task, length)
            found = 0
            for turn in range(MOST_DRAWS):
                if found == options.per_cell:
                    break
                if not levels:
                    break
                text, trace, answer = draw(task, levels[turn % len(levels)])
                if abs(size_of(tokens, text, trace, answer) / length - 1) > 0.08:
                    continue
                exclude.add(text)
                kilo = round(length / 1024)
                yield {
                    "id": f"{task}-{kilo}k-{found:03d}",
                    "task": task,
                    "level": kilo,
                    "problem": text,
                    "answer": answer,
                    "reference_chain": trace,
                }
                found += 1
            if found < options.per_cell:
                raise SystemExit(f"[problems] {task} has {found} problems of about {length} tokens: choose another length")


def main():
    parser = argparse.ArgumentParser(description="Writes problems of wanted lengths.")
    parser.add_argument("--out", required=True)
    parser.add_argument("--lengths", default="2048,4096,8192,16384,24576,30720", help="tokens, prompt and chain together")
    parser.add_argument("--per-cell", type=int, default=4, help="problems of each length and task")
    parser.add_argument("--tasks", default=",".join(problems.LEVELS))
    parser.add_argument("--seed", type=int, default=9)
    parser.add_argument("--split", choices=("held-out", "train"), default="held-out")
    parser.add_argument("--texts", action="store_true", help="whole texts for `calibrate` in place of problems")
    options = parser.parse_args()
    options.lengths = [int(n) for n in options.lengths.split(",")]
    options.tasks = options.tasks.split(",")
    rows = list(rows_of(options))  # All of them before the file: a run that fails leaves none.
    with open(options.out, "w", encoding="utf-8") as file:
        for row in rows:
            if options.texts:
                prompt = problems.prompt_text(row["problem"])
                row = {"text": prompt + problems.reply_text(row["reference_chain"], row["answer"])}
            json.dump(row, file)
            file.write("\n")


if __name__ == "__main__":
    main()
