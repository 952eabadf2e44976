"""The five tasks of the longcot models: problems by seed, and the trace that each problem has.

A problem is a small tuple. `TASKS[task]` holds its functions: `make(rng, level)` draws a problem, `text` writes it,
`parse` reads it back from its text, `solve` gives (trace, answer). The trace is a function of the problem alone.
Text is byte for byte that of models/longcot-10m/problems.jsonl (tests/tools/train_problems_test.py).
"""
import json
import os
import random
import re
from collections import namedtuple

SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."
LEVELS = {"chain": 6, "registers": 6, "multiply": 5, "sort": 6, "ledger": 6}
# Levels of longcot-32k alone: 6,000 to 31,500 tokens with the prompt; `multiply` begins at 3,200.
LONG_LEVELS = {"chain": (7, 10), "registers": (7, 10), "multiply": (6, 10), "sort": (7, 10), "ledger": (7, 10)}
# The long cells come last: random choices among the others do not depend on them.
CELLS = [(task, level) for task, levels in LEVELS.items() for level in range(1, levels + 1)]
SHORT_CELLS = len(CELLS)
CELLS += [(task, level) for task, (low, high) in LONG_LEVELS.items() for level in range(low, high + 1)]
LAST_LEVEL = 10
BEYOND = 11  # A level that nothing is trained on: up to 41,000 tokens, past the positions of longcot-32k.

# Sizes by level, both ends included: steps, executed lines, digits of the factors, numbers, computed entries.
CHAIN_STEPS = [(3, 6), (7, 13), (14, 25), (26, 42), (43, 64), (65, 96), (97, 160), (161, 260), (261, 400), (401, 530), (540, 690)]
REGISTER_LINES = [(3, 6), (7, 12), (13, 25), (26, 42), (43, 64), (65, 112)]
REGISTER_LINES += [(113, 170), (171, 280), (281, 420), (421, 545), (560, 720)]
MULTIPLY_DIGITS = [
    [(3, 2), (3, 3)],
    [(4, 4), (5, 4)],
    [(5, 5), (5, 6), (6, 5), (6, 6)],
    [(7, 7), (7, 8), (8, 7), (8, 8)],
    [(9, 8), (9, 9), (9, 9)],
]
MULTIPLY_DIGITS += [
    [(m, n) for m in range(low, high + 1) for n in range(low, high + 1) if abs(m - n) < 2]
    for low, high in ((10, 14), (15, 17), (18, 23), (24, 28), (29, 33), (34, 38))
]
SORT_NUMBERS = [(4, 5), (6, 8), (9, 12), (13, 18), (19, 26), (28, 38), (40, 60), (61, 86), (87, 120), (121, 142), (143, 180)]
LEDGER_COMPUTED = [(3, 6), (7, 13), (14, 26), (27, 40), (41, 60), (61, 91), (92, 140), (141, 220), (221, 340), (341, 445), (455, 590)]
LEDGER_GIVEN = [(2, 5)] * 2 + [(4, 8)] * 9

NAMES = "abcdefgh"
Task = namedtuple("Task", "make text parse solve")


# chain: (start, rows of (a, b), steps)
def make_chain(rng, level):
    rows = [(rng.choice((3, 7, 9)), rng.randrange(1000)) for _ in range(10)]
    return rng.randrange(1000), rows, rng.randint(*CHAIN_STEPS[level - 1])


def text_chain(problem):
    start, rows, steps = problem
    table = "\n".join(f"r={r}: a={a} b={b:03d}" for r, (a, b) in enumerate(rows))
    return (
        f"A code x has three digits and starts at {start:03d}. In every step, let r be the first digit of x, take a "
        "and b from row r of the table, and replace x by the last three digits of a*x+b.\n"
        f"{table}\nWhat is x after {steps:02d} steps?"
    )


def parse_chain(text):
    rows = [(int(a), int(b)) for a, b in re.findall(r"a=(\d+) b=(\d+)", text)]
    return int(re.search(r"starts at (\d+)", text)[1]), rows, int(re.search(r"after (\d+) steps", text)[1])


def solve_chain(problem):
    x, rows, steps = problem
    out = [f"We start with x={x:03d} and need {steps:02d} steps."]
    for step in range(1, steps + 1):
        r = x // 100
        a, b = rows[r]
        product = a * x
        total = product + b
        new = total % 1000
        out.append(
            f"Step {step:02d}: x={x:03d}, r={r}, a={a}, b={b:03d}. {a}*{x:03d}={product:04d}. "
            f"{product:04d}+{b:03d}={total:04d}. x={new:03d}."
        )
        x = new
    out.append(f"After {steps:02d} steps x={x:03d}.")
    return "\n".join(out), f"{x:03d}"


# registers: (values, program, rounds); a line is (kind, register, register or number)
KINDS = ("minus", "plus", "swap", "add", "times")
KIND_WEIGHTS = (33, 29, 19, 11, 8)


def make_registers(rng, level):
    low, high = REGISTER_LINES[level - 1]
    while True:
        target = rng.randint(low, high)
        lines = rng.randint(3, min(8, target))
        rounds = max(1, round(target / lines))
        if low <= lines * rounds <= high:
            break
    program = []
    for kind in rng.choices(KINDS, KIND_WEIGHTS, k=lines):
        x, y = rng.sample(range(8), 2)
        if kind == "add":
            y = rng.randint(10, 99)
        elif kind == "times":
            y = rng.choice((3, 7, 9))
        program.append((kind, x, y))
    return [rng.randrange(100) for _ in range(8)], program, rounds


def line_text(line):
    kind, x, y = line
    x = NAMES[x]
    if kind == "swap":
        return f"swap {x} and {NAMES[y]}"
    if kind == "times":
        return f"{x} = {y} * {x}"
    return f"{x} = {x} {'-' if kind == 'minus' else '+'} {y if kind == 'add' else NAMES[y]}"


def state_text(values):
    return "a=%02d b=%02d c=%02d d=%02d e=%02d f=%02d g=%02d h=%02d" % tuple(values)


def text_registers(problem):
    values, program, rounds = problem
    lines = "\n".join(f"{i}. {line_text(line)}" for i, line in enumerate(program, 1))
    return (
        f"Registers a to h hold two-digit numbers: {state_text(values)}\nThe program has {len(program)} lines:\n"
        f"{lines}\nKeep only the last two digits of every result, and add 100 to a negative one. The program is run "
        f"{rounds:02d} times. What do the registers hold at the end?"
    )


def parse_line(text):
    words = text.split()
    if words[0] == "swap":
        return "swap", NAMES.index(words[1]), NAMES.index(words[3])
    x = NAMES.index(words[0])
    if words[3] == "*":
        return "times", x, int(words[2])
    if words[4].isdigit():
        return "add", x, int(words[4])
    return "minus" if words[3] == "-" else "plus", x, NAMES.index(words[4])


def parse_registers(text):
    values = [int(v) for v in re.findall(r"[a-h]=(\d\d)", text.split("\n", 1)[0])]
    program = [parse_line(line) for line in re.findall(r"^\d\. (.*)$", text, re.MULTILINE)]
    return values, program, int(re.search(r"run (\d+) times", text)[1])


def solve_registers(problem):
    values, program, rounds = problem
    values = list(values)
    out = [f"Lines 1 to {len(program)}, {rounds:02d} rounds.", state_text(values)]
    texts = [line_text(line) for line in program]
    for turn in range(1, rounds + 1):
        for i, (kind, x, y) in enumerate(program):
            a = values[x]
            head = f"[{turn:02d}.{i + 1}] {texts[i]}"
            if kind == "swap":
                values[x], values[y] = values[y], a
                out.append(f"{head}. {state_text(values)}")
                continue
            if kind == "minus":
                b = values[y]
                new = (a - b) % 100
                sum_text = f"{a:02d}-{b:02d}{'+100' if a < b else ''}={new:02d}"
            elif kind == "times":
                new = a * y
                sum_text = f"{y}*{a:02d}={new:03d}"
            else:
                b = y if kind == "add" else values[y]
                new = a + b
                sum_text = f"{a:02d}+{b:02d}={new:03d}"
            values[x] = new % 100
            out.append(f"{head}: {sum_text}. {state_text(values)}")
    out.append(f"All {rounds:02d} rounds are done.")
    return "\n".join(out), ", ".join(f"{v:02d}" for v in values)


# multiply: (a, b). One pair in 31 is never trained on: those of the published problems and of held-out problems.
def is_held_out_pair(a, b):
    return (14 * a + b) % 31 == 0


def make_multiply(rng, level, held_out=False):
    m, n = rng.choice(MULTIPLY_DIGITS[level - 1])
    while True:
        a, b = rng.randrange(10 ** (m - 1), 10**m), rng.randrange(10 ** (n - 1), 10**n)
        if is_held_out_pair(a, b) == held_out:
            return a, b


def text_multiply(problem):
    return f"Multiply {problem[0]} by {problem[1]} with column sums of digit products. What is the product?"


def parse_multiply(text):
    found = re.match(r"Multiply (\d+) by (\d+)", text)
    return int(found[1]), int(found[2])


def solve_multiply(problem):
    a, b = problem
    x, y = [int(c) for c in str(a)], [int(c) for c in str(b)]
    m, n = len(x), len(y)
    out = ["Digits:"]
    out.append(" ".join(f"a{i}={v}" for i, v in enumerate(x, 1)))
    out.append(" ".join(f"b{i}={v}" for i, v in enumerate(y, 1)))
    digits = [0] * (m + n + 1)
    carry = 0
    for column in range(m + n, 1, -1):
        out.append(f"Column {column:02d}, carry {carry:02d}:")
        total = carry
        for i in range(max(1, column - n), min(m, column - 1) + 1):
            j = column - i
            product = x[i - 1] * y[j - 1]
            new = total + product
            out.append(f"a{i}*b{j}: {x[i - 1]}*{y[j - 1]}={product:02d}, {total:03d}+{product:02d}={new:03d}")
            total = new
        digits[column], carry = total % 10, total // 10
        out.append(f"d{column:02d}={digits[column]}, carry {carry:02d}")
    digits[1] = carry
    out.append(f"d01={carry}")
    out.append("So " + " ".join(f"d{i:02d}={digits[i]}" for i in range(1, m + n + 1)) + ".")
    return "\n".join(out), str(a * b)


# sort: a list of unlike numbers
def make_sort(rng, level):
    return rng.sample(range(1000), rng.randint(*SORT_NUMBERS[level - 1]))


def text_sort(numbers):
    listed = ", ".join(f"{v:03d}" for v in numbers)
    return f"Sort these {len(numbers):02d} numbers from small to large with merge sort: {listed}. What is the sorted list?"


def parse_sort(text):
    return [int(v) for v in re.search(r"merge sort: ([\d, ]+)\.", text)[1].split(", ")]


def solve_sort(numbers):
    count, width, letter = len(numbers), 1, 65
    now = list(numbers)
    out = [" ".join(f"A{i:02d}={v:03d}" for i, v in enumerate(now, 1))]
    while width < count:
        c, d = chr(letter), chr(letter + 1)
        merged = []
        for left in range(0, count, 2 * width):
            middle, right = min(left + width, count), min(left + 2 * width, count)
            if middle == right:
                out.append(f"Keep {c}{left + 1:02d} to {c}{middle:02d}:")
            else:
                out.append(f"Merge {c}{left + 1:02d} to {c}{middle:02d} with {c}{middle + 1:02d} to {c}{right:02d}:")
            i, j = left, middle
            for k in range(left + 1, right + 1):
                if i < middle and j < right:
                    heads = f"{c}{i + 1:02d}={now[i]:03d} {c}{j + 1:02d}={now[j]:03d}"
                else:
                    t = i if i < middle else j
                    heads = f"{c}{t + 1:02d}={now[t]:03d}"
                if j >= right or (i < middle and now[i] <= now[j]):
                    value, i = now[i], i + 1
                else:
                    value, j = now[j], j + 1
                merged.append(value)
                out.append(f"{heads} > {d}{k:02d}={value:03d}")
        now, width, letter = merged, 2 * width, letter + 1
    c = chr(letter)
    out.append("So " + " ".join(f"{c}{i:02d}={v:03d}" for i, v in enumerate(now, 1)) + ".")
    return "\n".join(out), ", ".join(f"{v:03d}" for v in now)


# ledger: (given values, computed entries of (x, sign, y)); one operand is the entry before
def make_ledger(rng, level):
    given = rng.randint(*LEDGER_GIVEN[level - 1])
    values = [rng.randrange(1000) for _ in range(given)]
    rows = []
    for i in range(given + 1, given + rng.randint(*LEDGER_COMPUTED[level - 1]) + 1):
        nearest = max(1, i - 6) if rng.random() < 0.25 else 1
        x, y = i - 1, rng.randint(nearest, max(nearest, i - 2))
        if rng.random() < 0.5:
            x, y = y, x
        rows.append((x, "+" if rng.random() < 0.51 else "-", y))
    return values, rows


def text_ledger(problem):
    values, rows = problem
    lines = [f"v{i:02d} = {v:03d}" for i, v in enumerate(values, 1)]
    lines += [f"v{i:02d} = v{x:02d} {s} v{y:02d}" for i, (x, s, y) in enumerate(rows, len(values) + 1)]
    return (
        "In this ledger every entry keeps its last three digits, and 1000 is added to a negative one.\n"
        + "\n".join(lines)
        + f"\nWhat is v{len(lines):02d}?"
    )


def parse_ledger(text):
    values = [int(v) for v in re.findall(r"^v\d+ = (\d+)$", text, re.MULTILINE)]
    rows = [(int(x), s, int(y)) for x, s, y in re.findall(r"^v\d+ = v(\d+) ([+-]) v(\d+)$", text, re.MULTILINE)]
    return values, rows


def solve_ledger(problem):
    values, rows = problem
    v = [0] + list(values)
    out = ["Known: " + " ".join(f"v{i:02d}={x:03d}" for i, x in enumerate(values, 1))]
    for i, (x, s, y) in enumerate(rows, len(v)):
        a, b = v[x], v[y]
        if s == "+":
            new = (a + b) % 1000
            result = f"{a:03d}+{b:03d}={a + b:04d}"
        else:
            new = (a - b) % 1000
            result = f"{a:03d}-{b:03d}{'+1000' if a < b else ''}={new:03d}"
        v.append(new)
        out.append(f"v{i:02d} = v{x:02d} {s} v{y:02d}: v{x:02d}={a:03d}, v{y:02d}={b:03d}. {result}. v{i:02d}={new:03d}")
    out.append(f"The last entry is v{len(v) - 1:02d}={v[-1]:03d}.")
    return "\n".join(out), f"{v[-1]:03d}"


TASKS = {
    "chain": Task(make_chain, text_chain, parse_chain, solve_chain),
    "registers": Task(make_registers, text_registers, parse_registers, solve_registers),
    "multiply": Task(make_multiply, text_multiply, parse_multiply, solve_multiply),
    "sort": Task(make_sort, text_sort, parse_sort, solve_sort),
    "ledger": Task(make_ledger, text_ledger, parse_ledger, solve_ledger),
}
FIRST_WORD = {"A": "chain", "Registers": "registers", "Multiply": "multiply", "Sort": "sort", "In": "ledger"}


def task_of(text):
    """The task of a problem's text."""
    return FIRST_WORD[text.split(" ", 1)[0]]


def prompt_text(problem_text, suffix=False):
    return f"<|im_start|>user\n{problem_text}{SUFFIX if suffix else ''}<|im_end|>\n<|im_start|>assistant\n<think>\n"


def reply_text(trace, answer):
    return f"{trace}\n</think>\n\nThe answer is \\boxed{{{answer}}}.<|im_end|>"


def published(folder):
    """Problem texts of the files in `folder` (models/longcot-10m): never trained on, never in a fresh held-out set."""
    texts = set()
    for name in ("problems.jsonl", "heldout-40.jsonl", "calibration.jsonl"):
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            if name == "problems.jsonl":
                raise SystemExit(f"[train] {path} is missing: its problems must not be trained on")
            continue
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                texts.add(row["problem"] if "problem" in row else row["text"].split("<|im_end|>", 1)[0][17:])
    return texts


class Generator:
    """Draws problems of one split. Equal (seed, split, stream) give equal problems.

    `split` is "train" or "held-out"; the two never share a random stream, and multiply pairs are split by residue.
    """

    def __init__(self, seed, split, stream, exclude):
        self.rng = random.Random(f"pmkvq-longcot/{seed}/{split}/{stream}")
        self.held_out = split != "train"
        self.exclude = exclude

    def draw(self, task, level):
        """One problem: (text, trace, answer)."""
        kind = TASKS[task]
        while True:
            if task == "multiply":
                problem = make_multiply(self.rng, level, self.held_out)
            else:
                problem = kind.make(self.rng, level)
            text = kind.text(problem)
            if text not in self.exclude:
                return (text, *kind.solve(problem))
