#!/usr/bin/env python3
"""Renders docs/results.md from the result files that tools/make_results.py made.

Usage: tools/render_results.py [--program build/release/bin/pmkvq] [RESULTS] > docs/results.md   (RESULTS: results/runs)
Every number on the page comes from those files; intervals and P of their counts come from the program (./run build makes
it). A table row whose file is missing says so."""
import argparse
import functools
import json
import pathlib
import statistics
import subprocess
import sys

import results_settings as rs

SIGNIFICANT = 0.05
# The sets of all problems, at each budget.
WHOLE_SETS = [(bits, problem_set, name) for bits in rs.BUDGETS
              for problem_set, name in ((rs.ALL, "levels 1 to 5"), (rs.LONG, "level 6"))]


class Figures:
    """What the program says of counts (`pmkvq compare --counts`): one process for the whole page."""

    def start(self, program):
        try:
            self.process = subprocess.Popen([program, "compare", "--counts", "-"], text=True, bufsize=1,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            sys.exit(f"render_results.py: {error}; make the program with ./run build, or name another with --program")

    @functools.cache
    def of(self, **counts):
        try:
            self.process.stdin.write(json.dumps(counts) + "\n")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            sys.exit("render_results.py: the program gave no figures; make it anew with ./run build")
        return json.loads(line)


FIGURES = Figures()


class Result:
    """One result file: a setting on a problem set."""

    def __init__(self, data):
        self.data = data
        self.fits = data["fits"]
        columns = data.get("columns", {})
        keys = list(zip(columns.get("id", []), columns.get("response", [])))
        self.rows = {key: dict(zip(columns, values)) for key, values in zip(keys, zip(*columns.values()))} if keys else {}

    def subset(self, keep):
        part = Result({"fits": self.fits})
        part.data, part.rows = self.data, {key: row for key, row in self.rows.items() if keep(key, row)}
        return part

    def solved(self):
        return sum(bool(row["correct"]) for row in self.rows.values())

    def total(self):
        return len(self.rows)

    def peak_bits(self, problem_set):
        """Real peak of any sequence, as bits per value of max_len tokens: comparable to the budget."""
        return max(row["peak_bytes"] for row in self.rows.values()) * 8 / (rs.VALUES_PER_TOKEN * problem_set.max_len)

    def mean_tokens(self):
        return statistics.mean(row["output_tokens"] for row in self.rows.values())


class Pair:
    """Outcomes of two results on the problems that both have: a against b."""

    def __init__(self, a, b):
        keys = a.rows.keys() & b.rows.keys()
        self.both = sum(bool(a.rows[k]["correct"] and b.rows[k]["correct"]) for k in keys)
        self.only_a = sum(bool(a.rows[k]["correct"] and not b.rows[k]["correct"]) for k in keys)
        self.only_b = sum(bool(b.rows[k]["correct"] and not a.rows[k]["correct"]) for k in keys)
        self.n = len(keys)
        self.figures = FIGURES.of(both=self.both, only_method=self.only_a, only_other=self.only_b,
                                  neither=self.n - self.both - self.only_a - self.only_b)
        self.p = self.figures["p_value"]

    def difference(self):
        return self.figures["difference"]

    def sign(self):
        """1 where a is shown to be better, -1 where it is shown to be worse, else 0."""
        return 0 if self.p >= SIGNIFICANT else 1 if self.only_a > self.only_b else -1

    def cells(self):
        low, high = self.figures["interval"]
        return f"{100 * self.difference():+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) | {format_p(self.p)}"


def format_p(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def share(result):
    low, high = FIGURES.of(solved=result.solved(), responses=result.total())["interval"]
    return f"{result.solved()}/{result.total()} | {100 * low:.1f} to {100 * high:.1f}"


class Page:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.cache = {}

    def get(self, problem_set, bits, setting):
        """The result, also from a larger set of the same levels; None where no file is there."""
        key = (problem_set.name, bits, setting.name)
        if key not in self.cache:
            self.cache[key] = self.load(problem_set, bits, setting)
        return self.cache[key]

    def load(self, problem_set, bits, setting):
        path = self.folder / problem_set.name / f"{bits:g}" / f"{setting.name}.json"
        if path.exists():
            return Result(json.loads(path.read_text()))
        if problem_set is rs.HARD:
            whole = self.get(rs.ALL, bits, setting)
            return whole and whole.subset(self.in_hard)
        return None

    @staticmethod
    def in_hard(key, _row):
        task_level, number = key[0].rsplit("-", 1)
        level = int(task_level.rsplit("-", 1)[1])
        return rs.HARD.min_level <= level <= rs.HARD.max_level and int(number) < rs.HARD.per_cell

    def missing_runs(self):
        return [r for r in rs.all_runs() if self.get(r.set, r.bits, r.setting) is None]

    def missing(self, setting, columns):
        return f"| {setting.name} | " + " | ".join(["no result file"] + ["" for _ in range(columns - 1)]) + " |"

    def too_big(self, setting, result, problem_set, columns):
        bits = result.data["needs_bytes"] * 8 / (rs.VALUES_PER_TOKEN * problem_set.max_len)
        return f"| {setting.name} | " + " | ".join([f"cannot be that small: at least {bits:.2f} bits"] +
                                                   ["" for _ in range(columns - 1)]) + " |"

    # Tables.

    def main_row(self, setting, bits):
        cells = []
        for problem_set in (rs.ALL, rs.LONG):
            result, fp16 = self.get(problem_set, bits, setting), self.get(problem_set, 16, rs.FP16)
            if result is None or fp16 is None:
                cells.append("no result file | | | |")
            elif not result.fits:
                needs = result.data["needs_bytes"] * 8 / (rs.VALUES_PER_TOKEN * problem_set.max_len)
                cells.append(f"needs {needs:.2f} bits | | | |")
            else:
                cells.append(f"{result.peak_bits(problem_set):.2f} | {share(result)} | {Pair(result, fp16).cells()}")
        return f"| {setting.name} | " + " | ".join(cells) + " |"

    def main_table(self):
        print("""## All problems

Levels 1 to 5 with 4,096 tokens, level 6 with 8,192. Peak: the most real bytes that any sequence took, as bits per value
of the whole length. Differences to fp16 in points with 95 % intervals (Newcombe, paired) and exact McNemar P. The two
rivals of a budget are those that solved most of the hard problems below; of equal ones, those that also lead at 3.25 bits.
""")
        for bits in rs.BUDGETS:
            print(f"### {bits:g} effective bits\n")
            print("| setting | peak | levels 1-5 | 95 % | against fp16 | P | peak | level 6 | 95 % | against fp16 | P |")
            print("|---|---|---|---|---|---|---|---|---|---|---|")
            fp16 = [self.get(s, 16, rs.FP16) for s in (rs.ALL, rs.LONG)]
            if all(fp16):
                print(f"| fp16 (16 bits) | {fp16[0].peak_bits(rs.ALL):.2f} | {share(fp16[0])} | | | "
                      f"{fp16[1].peak_bits(rs.LONG):.2f} | {share(fp16[1])} | | |")
            for setting in rs.main_settings(bits):
                print(self.main_row(setting, bits))
            print()

    def long_table(self):
        print("""## Problems past the floor

Levels 1 to 5 hold short chains too, which no budget touches. Here are those problems of both sets alone in whose run
under pm-kvq (paper) some page reached the narrowest width that its block was planned for: after that, nothing is left
to step down to but the floor.
""")
        print("| effective bits | setting | problems | solved | 95 % | against fp16 | P | against pm-kvq | P |\n"
              "|---|---|---|---|---|---|---|---|---|")
        for bits in rs.BUDGETS:
            for problem_set in (rs.ALL, rs.LONG):
                paper, fp16 = self.get(problem_set, bits, rs.PAPER), self.get(problem_set, 16, rs.FP16)
                if paper is None or fp16 is None:
                    continue
                floor = rs.narrowest_width(bits)
                past = {key for key, row in paper.rows.items() if row["least_bits"] <= floor}
                if not past:
                    continue
                kept = lambda key, _row: key in past  # noqa: E731
                for setting in rs.main_settings(bits):
                    result = self.get(problem_set, bits, setting)
                    if result is None or not result.fits:
                        continue
                    part = result.subset(kept)
                    other = " | " if setting is rs.PAPER else Pair(part, paper).cells()
                    name = "levels 1-5" if problem_set is rs.ALL else "level 6"
                    print(f"| {bits:g}, {name} | {setting.name} | {len(past)} | {share(part)} | "
                          f"{Pair(part, fp16).cells()} | {other} |")
        print()

    def method_tables(self):
        print(f"""## Every method

Levels 3 to 5, {rs.HARD.per_cell} problems of each task and level, 4,096 tokens. Each method in the richest form that fits the
budget, or in its smallest where none does.
""")
        for bits in rs.BUDGETS:
            print(f"### {bits:g} effective bits\n")
            print("| setting | SPEC | peak | solved | 95 % | against fp16 | P | against pm-kvq | P | mean tokens |\n"
                  "|---|---|---|---|---|---|---|---|---|---|")
            fp16, paper = self.get(rs.HARD, 16, rs.FP16), self.get(rs.HARD, bits, rs.PAPER)
            if fp16 is not None:
                print(f"| fp16 (16 bits) | `fp16` | {fp16.peak_bits(rs.HARD):.2f} | {share(fp16)} | | | | | "
                      f"{fp16.mean_tokens():,.0f} |")
            for setting in rs.method_settings(bits):
                result = self.get(rs.HARD, bits, setting)
                if result is None:
                    print(self.missing(setting, 9))
                elif not result.fits:
                    print(self.too_big(setting, result, rs.HARD, 9))
                else:
                    against = " | " if setting is rs.PAPER else Pair(result, paper).cells()
                    spec = setting.spec.replace("{data}/", "")
                    print(f"| {setting.name} | `{spec}` | {result.peak_bits(rs.HARD):.2f} | {share(result)} | "
                          f"{Pair(result, fp16).cells()} | {against} | {result.mean_tokens():,.0f} |")
            print()

    def ablations(self):
        print(f"""## One change at a time

pm-kvq as in the paper against the same with one thing changed, at equal bytes: levels 3 to 5,
{rs.HARD.per_cell} problems of each task and level; level 6 where it was run. Positive: the change helps.
""")
        self.change_tables({bits: (rs.PAPER, *settings) for bits, settings in rs.ABLATIONS.items()})

    def candidates(self):
        print("""## What was tried for `best`

Several changes together, on the same problems.
""")
        self.change_tables({bits: (rs.PAPER, *settings) for bits, settings in rs.CANDIDATES.items()})

    def change_tables(self, tables):
        for bits, settings in tables.items():
            print(f"### {bits:g} effective bits\n")
            print("| change | what it is | problems | solved | 95 % | against pm-kvq | P |\n|---|---|---|---|---|---|---|")
            for setting in settings:
                for problem_set in (rs.HARD, rs.LONG):
                    result, paper = self.get(problem_set, bits, setting), self.get(problem_set, bits, rs.PAPER)
                    if result is None or paper is None:
                        if problem_set is rs.HARD:
                            print(self.missing(setting, 6))
                        continue
                    if not result.fits:
                        print(self.too_big(setting, result, problem_set, 6))
                        continue
                    name = "levels 3-5" if problem_set is rs.HARD else "level 6"
                    against = " | " if setting is rs.PAPER else Pair(result, paper).cells()
                    print(f"| {setting.name} | {rs.MEANINGS.get(setting.name, '')} | {name} | {share(result)} | {against} |")
            print()

    # Words that follow from the numbers.

    def verdicts(self):
        print("## What it says\n")
        for bits in rs.BUDGETS:
            groups = {1: [], 0: [], -1: []}
            paper = self.get(rs.HARD, bits, rs.PAPER)
            for setting in rs.method_settings(bits):
                result = self.get(rs.HARD, bits, setting)
                if setting is rs.PAPER or paper is None or result is None or not result.fits:
                    continue
                pair = Pair(result, paper)
                groups[pair.sign()].append(f"{setting.name} ({100 * pair.difference():+.1f})")
            print(f"* {bits:g} bits, levels 3 to 5: better than pm-kvq (P < {SIGNIFICANT}): {', '.join(groups[1]) or 'none'}. "
                  f"No difference shown: {', '.join(groups[0]) or 'none'}. Worse: {', '.join(groups[-1]) or 'none'}.")
        for bits, problem_set, name in WHOLE_SETS:
            best, paper = self.get(problem_set, bits, rs.BEST), self.get(problem_set, bits, rs.PAPER)
            if best is None or paper is None:
                continue
            pair = Pair(best, paper)
            word = {1: "better", 0: "no difference shown", -1: "worse"}[pair.sign()]
            print(f"* {bits:g} bits, {name}: `best` {best.solved()}/{best.total()}, pm-kvq {paper.solved()}/{paper.total()}: "
                  f"{word} (P {format_p(pair.p)}).")
        self.losses()
        print(f"\n`--recipe best` is `{rs.BEST.spec}` with a plan of kind `{rs.BEST.plan}`.\n")

    def losses(self):
        """What pm-kvq and `best` lose to fp16, and rivals that do as well as `best` with fewer bytes."""
        print("\nWhere PM-KVQ loses to fp16:\n")
        for bits, problem_set, name in WHOLE_SETS:
            fp16 = self.get(problem_set, 16, rs.FP16)
            for setting in (rs.PAPER, rs.BEST):
                result = self.get(problem_set, bits, setting)
                if result is None or fp16 is None:
                    continue
                pair = Pair(result, fp16)
                if pair.sign() < 0:
                    print(f"* {bits:g} bits, {name}: {setting.name} solves {result.solved()}, fp16 {fp16.solved()} of "
                          f"{fp16.total()} (P {format_p(pair.p)}).")
        print("\nWhere a rival does as well with fewer bytes (no worse by the test; `best` keeps whatever the budget has room for):\n")
        print("| effective bits | problems | rival | its peak | it solves | peak of `best` | `best` solves | P |")
        print("|---|---|---|---|---|---|---|---|")
        for bits, problem_set, name in WHOLE_SETS:
            best = self.get(problem_set, bits, rs.BEST)
            for setting in rs.best_rivals(bits):
                rival = self.get(problem_set, bits, setting)
                if rival is None or best is None or not rival.fits:
                    continue
                pair, peaks = Pair(rival, best), (rival.peak_bits(problem_set), best.peak_bits(problem_set))
                if pair.sign() >= 0 and peaks[0] < peaks[1]:
                    print(f"| {bits:g} | {name} | {setting.name} | {peaks[0]:.2f} | {rival.solved()}/{rival.total()} | "
                          f"{peaks[1]:.2f} | {best.solved()}/{best.total()} | {format_p(pair.p)} |")


INTRO = """# Results

Cache methods beside each other at equal real bytes, on longcot-10m, the model in this repository: greedy decoding of
held-out problems, one response each, graded by value. Effective bits are the bytes of a sequence of the set's full length,
divided by its stored values: 4,096 tokens for levels 1 to 5, 8,192 for level 6. Every byte counts: codes, metadata, sink,
windows, open pages, tags. Shares in per cent with 95 % Wilson intervals; differences in points with Newcombe's paired
intervals; P is the exact two-sided McNemar test. No correction for the number of tests: of twenty true nulls, one shows
P < 0.05.

Made by `tools/make_results.py` (resumable; first prints how many hours are left) and rendered by
`tools/render_results.py > docs/results.md`; the outcome of every problem is in `results/runs`. Which runs there are is
listed in `tools/results_settings.py`. Simulated methods ([methods.md](methods.md)) are as exact in bytes as the packed ones.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", default="results/runs")
    parser.add_argument("--program", default="build/release/bin/pmkvq")
    args = parser.parse_args()
    FIGURES.start(args.program)
    page = Page(args.results)
    print(INTRO)
    missing = page.missing_runs()
    if missing:
        print(f"**{len(missing)} of {len(rs.all_runs())} runs are not made yet**; their rows say \"no result file\".\n")
    page.verdicts()
    page.main_table()
    page.long_table()
    page.method_tables()
    page.ablations()
    page.candidates()


if __name__ == "__main__":
    main()
