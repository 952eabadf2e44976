"""Problems of the shipped model, and what clients make of replies to them."""
import json


def problems(model, count, levels=None):
    """`count` of the model's problems: all kinds, and the `levels` or all of them, in turn."""
    with open(f"{model}/problems.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    by_cell = {}
    for row in rows:
        if levels is None or row["level"] in levels:
            by_cell.setdefault((row["level"], row["task"]), []).append(row)
    cells = list(by_cell.values())
    return [cells[i % len(cells)][i // len(cells)] for i in range(count)]


def is_solved(problem, text):
    """Whether the last box of an answer has what the problem asks for."""
    found = text.rsplit("\\boxed{", 1)
    answer = found[1].split("}", 1)[0] if len(found) == 2 else ""
    return answer.replace(" ", "") == problem["answer"].replace(" ", "")


def quantile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(part * len(values)))] if values else 0
