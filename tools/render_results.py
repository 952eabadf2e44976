#!/usr/bin/env python3
"""Renders the result files of tools/make_results.py: docs/results.md, its picture docs/images/results.svg, and the table of
README.md.

Usage: tools/render_results.py [--program build/release/bin/pmkvq] [--results results/runs] [--root .] [--check]
Every number comes from the result files; intervals and P of their counts come from the program (./run build makes it).
With --check nothing is written: exit code 1 where a file differs from what would be written."""
import argparse
import pathlib
import sys

import plot_results
import results_settings as rs
from results_data import FIGURES, SIGNIFICANT, Pair, Result, Results

README_BEGIN = "<!-- Accuracy: made by tools/render_results.py -->"
README_END = "<!-- end -->"
CARRIED = "†"
CEILING = 0.99  # Rows that solve more say nothing about the method.


def format_p(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def score(result):
    return f"{result.solved()} of {result.total()}"


def share(result):
    low, high = result.interval()
    return f"{result.solved()}/{result.total()} | {100 * low:.1f} to {100 * high:.1f}"


def mib(num_bytes):
    return f"{num_bytes / 2**20:.2f}"


def memory(result, bits):
    """Cells: budget and peak in MiB, peak in bits."""
    budget = mib(result.set.budget_bytes(bits)) if bits < 16 else "none"
    return f"{budget} | {mib(result.peak_bytes())} | {result.bits_of(result.peak_bytes()):.2f}"


MEMORY_HEADER = "budget MiB | peak MiB | peak bits"


def against(pair):
    """Cells: difference with interval, P, verdict."""
    low, high = pair.interval
    return (f"{100 * pair.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) | {format_p(pair.p)} | "
            f"{pair.verdict()}")


NO_PAIR = " | | "
METHOD_HEADER = f"setting | SPEC | {MEMORY_HEADER} | solved | 95 % | against pm-kvq | P | verdict | mean tokens | calibration"
EVICTING_HEADER = (f"setting | SPEC | {MEMORY_HEADER} | kept | solved | 95 % | against random | P | verdict | mean tokens | "
                   "calibration")


def table(header):
    return [f"| {header} |", "|" + "---|" * (header.count("|") + 1)]


def names(settings):
    return ", ".join(settings)


def folded(rows, lines):
    """A table behind a line that opens it; one of few rows as it is."""
    return ["<details>", f"<summary>{rows} rows</summary>", "", *lines, "", "</details>"] if rows > 3 else lines


class Page:
    def __init__(self, results):
        self.results = results
        self.ceiling = []  # Tables of the appendix.

    def get(self, problem_set, bits, setting):
        return self.results.get(problem_set, bits, setting)

    def reporting(self, problem_set, bits, setting):
        result = self.get(problem_set, bits, setting)
        return result.reporting() if result and result.fits else result

    def rivals(self, bits):
        """The rivals that the choosing half named, with what they solved of the reporting half.

        Both of them: which of the two did better is known from the reporting half alone, so neither is "the best rival"."""
        return ", ".join(f"{s.name} {self.reporting(rs.ALL, bits, s).solved()}" for s in rs.best_rivals(bits))

    # The answer.

    def answer(self):
        low, long_low = min(rs.BUDGETS), min(rs.LONG_BUDGETS)
        fp16, long_fp16 = self.reporting(rs.ALL, 16, rs.FP16), self.get(rs.LONG, 16, rs.FP16)

        def at(bits):
            """Solved by `best`, by the paper and by the rivals, in words."""
            best, paper = (self.reporting(rs.ALL, bits, s).solved() for s in (rs.BEST, rs.PAPER))
            return f"`best` {best}, PM-KVQ as in the paper {paper}, the rivals {self.rivals(bits)}"

        def beside(problem_set, bits, one, two):
            """Two settings with their bytes, and what the pair shows of the first."""
            a, b = self.get(problem_set, bits, one), self.get(problem_set, bits, two)
            return (f"{a.solved()} in {mib(a.peak_bytes())} MiB against {b.solved()} in {mib(b.peak_bytes())} MiB "
                    f"({Pair(a, b).verdict()})")

        wide = [bits for bits in rs.BUDGETS if bits > 4]
        least = min(self.reporting(rs.ALL, bits, s).solved() for bits in wide for s in rs.main_settings(bits))
        rival = rs.LONG_RIVALS[3][0]
        channel, best = (self.get(rs.HARD, low, s) for s in (rs.CHANNEL, rs.BEST))
        return [
            "# Results", "",
            f"Does a small cache cost right answers? On the shipped model, {fp16.total()} held-out problems of up to 4,096 tokens, "
            f"of which fp16 solves {fp16.solved()}:", "",
            f"* at {min(wide):g} bits a value and more, every byte counted, pm-kvq, `best` and the rivals all solve at least "
            f"{least};",
            f"* at 3.25 bits: {at(3.25)};",
            f"* at {low:g} bits: {at(low)}.", "",
            "`best` is pm-kvq that halves its oldest pages first, with widths for keys and values apart: the recipe until values went first ([frontier](frontier.md)). The rivals of a budget are "
            "the two other methods that solved most on the choosing half of the problems, of which these are the other half.", "",
            f"A verdict stands behind a comparison: *better* and *worse* need P < {SIGNIFICANT}; *as good* needs the whole 95 % "
            f"interval of the difference to lie within {100 * rs.MARGIN:g} points; all else is *not shown*.", "",
            f"On chains of up to 6,656 tokens ({long_fp16.total()} problems, fp16 solves {long_fp16.solved()}):", "",
            f"* `best` is not ahead of every rival: at 3 bits {rival.name} solves {beside(rs.LONG, 3, rival, rs.BEST)};",
            f"* at {long_low:g} bits `best` against the paper is {beside(rs.LONG, long_low, rs.BEST, rs.PAPER)};",
            f"* keys quantised per channel may be what `best` lacks there: at {long_low:g} bits with them "
            f"{beside(rs.LONG, long_low, rs.CHANNEL, rs.BEST)}; on the choosing half at levels 3 to 5 they do not help "
            f"({channel.solved()} against {best.solved()} of {best.total()}).", "",
            "![Solved problems against real bytes, all methods, with 95 % intervals](images/results.svg)", "",
        ]

    def how(self):
        return [
            "## How it was measured", "",
            "Model: longcot-10m, in this repository. Greedy decoding, one response to each problem, graded by value. *Bits* are the "
            "bytes of a sequence of the full length (4,096 tokens at levels 1 to 5, 6,656 at level 6, whose longest chain has "
            "6,223 tokens and a prompt), divided by its stored values. Every byte counts: codes, metadata, sink, windows, open "
            "pages, tags. *Budget* is what one sequence may take, *peak* the most that any sequence took.", "",
            "* **Two halves.** The problems of each task and level are cut in two by their number (`HALF` in "
            "`tools/results_settings.py`). Rivals and candidates for `best` were compared on the first half, at levels 3 to 5; every "
            "headline figure is of the second half. Two limits: the halves were cut after levels 1 to 5 had been run whole and "
            "read, and `best` was named before the first recorded run, on evidence that is not in this repository.",
            f"* **Margin.** The {100 * rs.MARGIN:g} points of *as good* were fixed before the runs of level 6, and after those of "
            f"levels 1 to 5. With the {rs.LONG.num_problems} problems of level 6 the interval is wider than the margin even for equal "
            "outcomes, so nothing there can be shown to be as good.",
            "* **Statistics.** Wilson intervals for shares, Newcombe's paired intervals for differences, exact two-sided McNemar "
            "test. No correction for the number of tests: of twenty true nulls, one shows P < 0.05. Where `pmkvq compare` and "
            "`eval` have several responses to a problem, these count together (`research/statistics/statistics.h`).",
            f"* **Ceiling.** Rows and tables where more than {100 * CEILING:g} % are solved are in the appendix.",
            "* **Simulated methods** ([methods.md](methods.md)) are as exact in bytes as the packed ones. Their outcomes do not "
            "depend on the budget, so one run serves all budgets that it fits.",
            f"* **{CARRIED} Carried over.** Rows of level 6 with this mark are simulated methods that were run with 8,192 tokens, not "
            "again with 6,656. Their state depends on the tokens stored, not on the limit, so the outcomes should be the same; for "
            "MixKVQ, which was run with both, they were, problem by problem. These rows themselves were not run again.",
            "* **Forms at level 6.** MixKVQ takes the richest form that fits by its size; that form was not compared on a choosing "
            "half, and the choosing half of level 6 was not run.", "",
            "Made by `tools/make_results.py`, rendered by `tools/render_results.py`; the outcome of every problem is in "
            "`results/runs`, the list of runs in `tools/results_settings.py`. `tools/make_results.py --verify 20 --seed 1` runs 20 "
            "settings again and compares every recorded column of every problem.", "",
        ]

    # Tables.

    def main_rows(self, problem_set, bits, settings):
        """Rows of one set and budget on the reporting half, fp16 first; None where results are missing."""
        fp16 = self.reporting(problem_set, 16, rs.FP16)
        best = self.reporting(problem_set, bits, rs.BEST)
        rows, solved = [f"| fp16 | {memory(fp16, 16)} | {share(fp16)} | {NO_PAIR} | {NO_PAIR} |"], []
        for setting in settings:
            result = self.reporting(problem_set, bits, setting)
            if result is None:
                rows.append(f"| {setting.name} | no result file" + " |" * 11)
                continue
            if not result.fits:
                needs = result.bits_of(result.data["needs_bytes"])
                rows.append(f"| {setting.name} | needs {needs:.2f} bits" + " |" * 11)
                continue
            solved.append(result.share())
            other = NO_PAIR if setting is rs.BEST else against(Pair(result, best))
            name = setting.name + (f" {CARRIED}" if result.carried() else "")
            rows.append(f"| {name} | {memory(result, bits)} | {share(result)} | {against(Pair(result, fp16))} | {other} |")
        return rows, solved

    def main_tables(self):
        out = ["## The reporting half", "",
               "Differences in points. `of+split+channel` is `best` with keys per channel. It was run here because another "
               "measurement at level 6 had favoured it, not because it won on the choosing half: its rows are a lead for the next "
               "`best`, not a claim.", ""]
        header = (f"setting | {MEMORY_HEADER} | solved | 95 % | against fp16 | P | verdict | against `best` | P | verdict")
        plans = [(rs.ALL, "levels 1 to 5", rs.BUDGETS, rs.main_settings),
                 (rs.LATE, "levels 3 to 5", (3.25, 2.7), lambda bits: (rs.PAPER, rs.BEST, rs.CHANNEL, *rs.best_rivals(bits))),
                 (rs.LONG, "level 6", rs.LONG_BUDGETS, rs.long_settings)]
        for problem_set, words, budgets, settings_of in plans:
            for bits in budgets:
                rows, solved = self.main_rows(problem_set, bits, settings_of(bits) + self.field(problem_set, bits))
                title, lines = f"### {bits:g} bits, {words}", table(header) + rows
                if solved and min(solved) > CEILING:
                    self.ceiling += [title, "", *folded(len(rows), lines), ""]
                else:
                    out += [title, "", *lines, ""]
        return out

    def field(self, problem_set, bits):
        """The best of the other methods of the field, where they were run."""
        return tuple(s for s in rs.best_of_field(bits) if problem_set is not rs.ALL and self.get(problem_set, bits, s))

    def rivals_with_fewer_bytes(self):
        out = ["### Rivals with fewer bytes", "",
               "Rivals that are as good as `best`, or better, and take fewer real bytes (`best` uses whatever the budget has "
               "room for). \"Not shown\" rivals with fewer bytes are listed too.", "",
               *table("bits | problems | rival | its peak MiB | it solves | peak MiB of `best` | `best` solves | difference | P | "
                      "verdict")]
        plans = [(rs.ALL, "levels 1 to 5", rs.BUDGETS, rs.best_rivals), (rs.LATE, "levels 3 to 5", tuple(rs.BEST_OF_FIELD), lambda bits: ()),
                 (rs.LONG, "level 6", rs.LONG_BUDGETS, rs.LONG_RIVALS.get)]
        for problem_set, words, budgets, rivals_of in plans:
            for bits in budgets:
                best = self.reporting(problem_set, bits, rs.BEST)
                for setting in rivals_of(bits) + self.field(problem_set, bits):
                    rival = self.reporting(problem_set, bits, setting)
                    if rival is None or not rival.fits or rival.peak_bytes() >= best.peak_bytes():
                        continue
                    pair = Pair(rival, best)
                    if pair.verdict() != "worse":
                        out.append(f"| {bits:g} | {words} | {setting.name} | {mib(rival.peak_bytes())} | {score(rival)} | "
                                   f"{mib(best.peak_bytes())} | {score(best)} | {against(pair)} |")
        return out + [""]

    def past_the_floor(self):
        out = ["### Problems past the floor", "",
               "Levels 1 to 5 hold short chains too, which no budget touches. Here are those problems of the reporting half alone "
               "in whose run under pm-kvq (paper) some page reached the narrowest width that its block was planned for.", ""]
        rows = []
        plans = [(rs.ALL, "levels 1 to 5", (3.25, 2.7), rs.main_settings), (rs.LONG, "level 6", rs.LONG_BUDGETS, rs.long_settings)]
        for problem_set, words, budgets, settings_of in plans:
            for bits in budgets:
                paper, fp16 = self.reporting(problem_set, bits, rs.PAPER), self.reporting(problem_set, 16, rs.FP16)
                past = {key[0] for key, row in paper.rows.items() if row["least_bits"] <= rs.narrowest_width(bits)}
                for setting in settings_of(bits):
                    result = self.reporting(problem_set, bits, setting)
                    if not past or result is None or not result.fits:
                        continue
                    part = result.subset(past.__contains__)
                    other = NO_PAIR if setting is rs.PAPER else against(Pair(part, paper))
                    rows.append(f"| {bits:g}, {words} | {setting.name} | {share(part)} | {against(Pair(part, fp16))} | {other} |")
        header = "bits | setting | solved | 95 % | against fp16 | P | verdict | against pm-kvq | P | verdict"
        return out + folded(len(rows), table(header) + rows) + [""]

    def method_tables(self):
        out = ["## Every method, on the choosing half", "",
               f"{rs.HARD.num_problems} problems of levels 3 to 5. Each method in the richest form that fits the budget, or in its "
               "smallest where none does. The two rivals of the tables above were chosen here: those that solved most; of equal "
               "ones, those that solved most at 3.25 bits, then those with the smaller peak.", ""]
        header = METHOD_HEADER
        for bits in rs.BUDGETS:
            paper = self.get(rs.HARD, bits, rs.PAPER)
            below, above = [], []
            for setting in rs.method_settings(bits):
                result = self.get(rs.HARD, bits, setting)
                at_ceiling = result is not None and result.fits and result.share() > CEILING
                (above if at_ceiling else below).append(self.method_row(bits, setting, paper))
            if below:
                out += [f"### {bits:g} bits", "", *folded(len(below), table(header) + below), ""]
            if above:
                title = f"### {bits:g} bits, every method, choosing half"
                self.ceiling += [title, "", *folded(len(above), table(header) + above), ""]
        return out

    def field_tables(self):
        """Of the budgets that have results; the section is left out while there are none."""
        out = self.tables_of("other methods", METHOD_HEADER, rs.FIELD, rs.PAPER, self.method_row)
        if not out:
            return []
        return ["## The other methods of the field, on the choosing half", "",
                "The same problems and budgets, and 2.3 bits, where a cache of pages does not fit. They joined after the rivals were "
                "chosen and are no candidates. `tada` is missing: the model has one KV head, which is its own mean.", "", *out]

    def evicting_tables(self):
        """As field_tables."""
        out = self.tables_of("methods that evict", EVICTING_HEADER, rs.EVICTING, rs.EVICTING[3.25][0],
                             self.evicting_row)
        if not out:
            return []
        return ["## Methods that evict, on the choosing half", "",
                "The same problems and budgets. Each method has the largest capacity that fits, tokens at 16 bits (`confkv`: 8 bits but for "
                "the newest), and stands against `random`, which evicts by chance in the same bytes. *Kept* is the share of the tokens "
                "that a response still has where it ends, mean over blocks and problems; *peak* counts what is held before a rule "
                "runs, too. `confkv` reserves the bytes of its `max` and holds no more than its `min` where the model is sure of the next "
                "token, which is nearly everywhere: hence its small peak. `confkv-full` has `min` = `max` and takes the whole budget; "
                "how sure the model is then decides nothing.", "", *out]

    def verdict_tables(self):
        """Which methods hold their own at each budget, from the verdicts of the tables below; empty while there are none."""
        rows, evicting = [], []
        for bits in rs.FIELD_BITS:
            made = [(s, self.get(rs.HARD, bits, s)) for s in rs.RIVALS.get(bits, ()) + rs.FIELD[bits]]
            fitting = sorted(((s, r) for s, r in made if r and r.fits), key=lambda pair: -pair[1].solved())
            if not any(r for s, r in made if s in rs.FIELD[bits]):
                continue
            paper = self.get(rs.HARD, bits, rs.PAPER)
            told = paper if paper and paper.fits else self.get(rs.HARD, 16, rs.FP16)
            worse = [s.name for s, r in fitting if Pair(r, told).verdict() == "worse"]
            words = [[f"{s.name} {r.solved()}" for s, r in fitting if (s.name in worse) == is_worse] for is_worse in (False, True)]
            large = [s.name for s, r in made if r and not r.fits]
            rows.append(f"| {bits:g} | {'`pm-kvq`' if told is paper else 'fp16'} {told.solved()} | {names(words[0]) or 'none'} | "
                        f"{names(words[1]) or 'none'} | {names(large)} |")
            chance = self.get(rs.HARD, bits, rs.EVICTING[bits][0])
            kept = [(s, r) for s in rs.EVICTING[bits][1:] if (r := self.get(rs.HARD, bits, s)) and r.fits]
            if chance and kept:
                better = [f"{s.name} {r.solved()}" for s, r in kept if Pair(r, chance).verdict() == "better"]
                rest = [f"{s.name} {r.solved()}" for s, r in kept if Pair(r, chance).verdict() != "better"]
                least = fitting[-1]
                evicting.append(f"| {bits:g} | {chance.solved()} | {names(better) or 'none'} | {names(rest) or 'none'} | "
                                f"{fitting[0][0].name} {fitting[0][1].solved()} | {least[0].name} {least[1].solved()} |")
        if not rows:
            return []
        out = ["## Which methods are worth using", "", *self.every_method(), "### What they are set against", "",
               f"Solved of the {rs.HARD.num_problems} problems of the choosing half, most first; *worse* is the verdict of the tables below, "
               "against `pm-kvq` as in the paper, and against fp16 at 2.3 bits, where its pages do not fit. A method that is not worse "
               "need not be as good: the interval of so few problems is wide. Methods that were not run at a budget are named below its "
               "tables.", "",
               *table("bits | against | not worse | worse | do not fit"), *rows, ""]
        if evicting:
            out += ["Methods that evict, against chance in the same bytes, beside the best and the last of those that keep all tokens:", "",
                    *table("bits | random | better than chance | not shown to be | best that keeps all | last that keeps all"), *evicting, ""]
        return out

    def every_method(self):
        """A line for each method: what it solves at each budget, and in words whether that is worth using."""
        settings = {}  # Name -> budget -> setting.
        for bits in rs.FIELD_BITS:
            for setting in (rs.PAPER, rs.BEST) + rs.RIVALS.get(bits, ()) + rs.FIELD[bits] + rs.EVICTING[bits]:
                settings.setdefault(setting.name, {})[bits] = setting
        made = {name: {bits: result for bits, s in of.items() if (result := self.get(rs.HARD, bits, s))} for name, of in settings.items()}
        fitting = {name: {bits: r for bits, r in of.items() if r.fits} for name, of in made.items()}
        yardsticks = {}
        for bits in rs.FIELD_BITS:
            there = [of[bits] for of in fitting.values() if bits in of]
            yardsticks[bits] = fitting[rs.PAPER.name].get(bits) or max(there, key=Result.solved)
        rows = []
        for name, of in settings.items():
            cells = [str(fitting[name][bits].solved()) if bits in fitting[name] else "too large" if bits in made[name] else "-"
                     for bits in rs.FIELD_BITS]
            if made[name]:
                rows.append((self.worth(name, fitting, yardsticks), f"| {name} | {' | '.join(cells)} | {self.times(of.values())} |"))
        rows.sort(key=lambda row: row[0][0])
        top = ", ".join(f"{bits:g}" for bits in rs.FIELD_BITS)
        header = f"method | {' | '.join(f'{bits:g}' for bits in rs.FIELD_BITS)} | calibration | verdict"
        others = [f"{line} {words} |" for (place, words), line in rows if place > 0]
        return [f"Solved of the {rs.HARD.num_problems} problems of the choosing half at {top} bits a value, and what that says. *Worth using* at a "
                "budget: not shown to be worse there than `pm-kvq` as in the paper, or, where its pages do not fit, than the method that "
                "solves most, and more than half of the problems solved. *Plain rounding* is `rtn` in the same bytes, *chance* is `random`. "
                "At 4.65 bits nearly everything works, so that budget alone recommends nothing. *Too large*: the smallest form does not fit; "
                "a dash: not run there.", "",
                *table(header), *(f"{line} {words} |" for (place, words), line in rows if place == 0), "",
                "The others:", "", *folded(len(others), table(header) + others), ""]

    def worth(self, name, fitting, yardsticks):
        """(place in the order, words) of a method."""
        def at(budgets):
            return " and ".join(", ".join(f"{bits:g}" for bits in budgets).rsplit(", ", 1)) + " bits"

        def verdict(other, bits):
            there = fitting[other].get(bits)
            return Pair(fitting[name][bits], there).verdict() if there and other != name else ""

        own = fitting[name]
        if not own:
            return 3, "fits no budget"
        good = [bits for bits, r in own.items() if Pair(r, yardsticks[bits]).verdict() != "worse" and 2 * r.solved() > r.total()]
        low = [bits for bits in good if bits < 4]
        place, words = (0, f"**worth using at {at(low)}**") if low else (1, f"enough at {at(good)}, not below") if good else (2, "not worth it here")
        said = [words]
        for other, plain in (("rtn", "plain rounding"), (rs.RANDOM, "chance")):
            if other == rs.RANDOM and not rs.evicts(name):
                continue
            found = {bits: verdict(other, bits) for bits in own if bits < 4 or other == rs.RANDOM}
            for kind, phrase in (("better", f"beats {plain}"), ("worse", f"behind {plain}"), ("not shown", f"not shown to differ from {plain}")):
                if budgets := [bits for bits, word in found.items() if word == kind]:
                    said.append(f"{phrase} at {at(budgets)}")
        return place, "; ".join(said)

    def times(self, settings):
        """Cell: the processor times of the calibrations of a method's settings."""
        known = [rs.calibration_of(setting) for setting in settings]
        found = [self.results.calibration(name) for name in known if name]
        if not found:
            return "none"
        seconds = sorted({round(time["processor_seconds"]) for time in found if time})
        return "not timed" if not seconds else f"{seconds[0]} s" if len(seconds) == 1 else f"{seconds[0]} to {seconds[-1]} s"

    def tables_of(self, words, header, settings_of, other, row):
        """Tables of the budgets that have results; `other` is what rows are set against."""
        out = []
        for bits in rs.FIELD_BITS:
            made = [setting for setting in settings_of[bits] if self.get(rs.HARD, bits, setting)]
            if not made:
                continue
            against_result = self.get(rs.HARD, bits, next((s for s in made if s.name == other.name), other))
            top = header
            if against_result is None and other is rs.PAPER:  # Its pages do not fit.
                against_result, top = self.get(rs.HARD, 16, rs.FP16), header.replace("pm-kvq", "fp16")
            out += [f"### {bits:g} bits, {words}", "", *folded(len(made), table(top) + [row(bits, s, against_result) for s in made]), ""]
            if len(made) < len(settings_of[bits]):
                out += [f"Not run: {names(s.name for s in settings_of[bits] if s not in made)}.", ""]
        return out

    def calibration(self, setting):
        """Cell: the processor time of what a setting needs to be calibrated with."""
        name = rs.calibration_of(setting)
        found = name and self.results.calibration(name)
        return "none" if not name else f"{found['processor_seconds']:.0f} s" if found else "not timed"

    def calibration_table(self):
        """What was timed; empty while nothing was."""
        timed = [found for name in (rs.PLAN_CALIBRATION, *rs.METHOD_CALIBRATIONS) if (found := self.results.calibration(name))]
        if not timed:
            return []
        machines = sorted({found["processor"] for found in timed})
        lines = table("file | made by | samples | tokens of each, at most | seconds of one processor | file")
        for found in timed:
            name = found["name"]
            spec = "`calibrate`" if name == rs.PLAN_CALIBRATION else f"`calibrate --kv {rs.METHOD_CALIBRATIONS[name][0]}`"
            lines.append(f"| {name} | {spec} | {found['samples']} | {found['tokens_of_a_sample']:,} | "
                         f"{found['processor_seconds']:.1f} | {found['file_bytes'] / 1024:,.1f} KiB |")
        return ["## How long calibrations take", "",
                f"Processor time, which threads share, of `tools/make_results.py --time-calibrations` on {names(machines)}; other work ran "
                "beside it. `plan` serves all packed settings: another budget only allocates anew.", "",
                *folded(len(timed), lines), ""]

    def without_figures(self, bits, setting, header):
        """The row of a setting that has none, or ""."""
        result, cells = self.get(rs.HARD, bits, setting), header.count("|") - 1
        if result is None:
            return f"| {setting.name} | no result file" + " |" * (cells + 1)
        if not result.fits:
            needs = result.bits_of(result.data["needs_bytes"])
            return f"| {setting.name} | cannot be that small: at least {needs:.2f} bits" + " |" * (cells + 1)
        return ""

    def method_row(self, bits, setting, paper):
        result = self.get(rs.HARD, bits, setting)
        pair = against(Pair(result, paper)) if result and result.fits and paper and paper.fits and setting is not rs.PAPER else NO_PAIR
        return self.without_figures(bits, setting, METHOD_HEADER) or (
            f"| {setting.name} | `{setting.spec.replace('{data}/', '')}` | {memory(result, bits)} | {share(result)} | {pair} | "
            f"{result.mean_tokens():,.0f} | {self.calibration(setting)} |")

    def evicting_row(self, bits, setting, chance):
        result = self.get(rs.HARD, bits, setting)
        pair = against(Pair(result, chance)) if result and result.fits and chance and setting.name != rs.RANDOM else NO_PAIR
        return self.without_figures(bits, setting, EVICTING_HEADER) or (
            f"| {setting.name} | `{setting.spec.replace('{data}/', '')}` | {memory(result, bits)} | {100 * result.kept_share():.0f} % | "
            f"{share(result)} | {pair} | {result.mean_tokens():,.0f} | {self.calibration(setting)} |")

    def change_tables(self, title, words, tables):
        out = [f"## {title}", "", words, ""]
        header = f"change | what it is | {MEMORY_HEADER} | solved | 95 % | against pm-kvq | P | verdict"
        for bits, settings in tables.items():
            rows = []
            paper = self.get(rs.HARD, bits, rs.PAPER)
            for setting in (rs.PAPER, *settings):
                result = self.get(rs.HARD, bits, setting)
                if result is None or not result.fits:
                    rows.append(f"| {setting.name} | no result file" + " |" * 9)
                    continue
                pair = NO_PAIR if setting is rs.PAPER else against(Pair(result, paper))
                rows.append(f"| {setting.name} | {rs.MEANINGS.get(setting.name, '')} | {memory(result, bits)} | {share(result)} | "
                            f"{pair} |")
            out += [f"### {bits:g} bits", "", *folded(len(rows), table(header) + rows), ""]
        return out

    def text(self):
        field = {rs.Run(rs.HARD, bits, s) for bits in rs.FIELD_BITS for s in rs.FIELD[bits] + rs.EVICTING[bits]}
        field |= {rs.Run(part, bits, s) for bits in rs.BEST_OF_FIELD for part in (rs.LATE, rs.LONG) for s in rs.best_of_field(bits)}
        missing = [run for run in self.results.missing_runs() if run not in field]  # Field tables name theirs.
        lines = self.answer() + self.how()
        if missing:
            lines += [f"**{len(missing)} of {len(rs.all_runs())} runs are not made yet**; their rows say \"no result file\".", ""]
        lines += self.main_tables() + self.rivals_with_fewer_bytes() + self.past_the_floor() + self.method_tables()
        lines += self.verdict_tables() + self.field_tables() + self.evicting_tables() + self.calibration_table()
        lines += self.change_tables("One change at a time, on the choosing half", "pm-kvq as in the paper against the same with one "
                                    "thing changed, at equal bytes. Positive: the change helps.", rs.ABLATIONS)
        lines += self.change_tables("What was tried for `best`, on the choosing half", f"Several changes together. `best` of this "
                                    f"page is `{rs.BEST.spec}` with a plan of kind `{rs.BEST.plan}`; `--recipe best` has `k=4+v=2` besides "
                                    "([frontier](frontier.md)).", rs.CANDIDATES)
        lines += ["## Appendix: at the ceiling", "", f"Tables and rows where more than {100 * CEILING:g} % are solved: they show that "
                  "so many bits are enough, and nothing about which method is better.", "", *self.ceiling]
        return "\n".join(lines).rstrip() + "\n"

    def readme_table(self):
        """Four lines, one for each budget."""
        fp16 = self.reporting(rs.ALL, 16, rs.FP16)
        lines = table("bits per value (MiB at 4,096 tokens) | fp16 | pm-kvq | best | rivals chosen on the other half")
        for bits in rs.BUDGETS:
            paper, best = (score(self.reporting(rs.ALL, bits, s)) for s in (rs.PAPER, rs.BEST))
            lines.append(f"| {bits:g} ({mib(rs.ALL.budget_bytes(bits))}) | {score(fp16)} | {paper} | {best} | {self.rivals(bits)} |")
        return "\n".join(lines) + "\n"


def replace_table(readme, new_table, path):
    begin, end = readme.find(README_BEGIN), readme.find(README_END)
    if begin < 0 or end < begin:
        sys.exit(f"render_results.py: [{path}] found no lines '{README_BEGIN}' and '{README_END}', expected them around the table")
    return readme[:begin] + README_BEGIN + "\n" + new_table + readme[end:]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("results/runs"))
    parser.add_argument("--program", default="build/release/bin/pmkvq")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("."), help="where docs/ and README.md are")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a file would change")
    return parser.parse_args()


def main():
    args = parse()
    if not args.results.is_dir():
        sys.exit(f"render_results.py: --results: found no folder {args.results}; start it in the root of the repository")
    FIGURES.start(args.program)
    results = Results(args.results)
    results.check_choices()
    page = Page(results)
    readme = args.root / "README.md"
    files = {args.root / "docs/results.md": page.text(), args.root / "docs/images/results.svg": plot_results.picture(results),
             readme: replace_table(readme.read_text(), page.readme_table(), readme)}
    changed = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    if args.check:
        if changed:
            sys.exit(f"render_results.py: {names(map(str, changed))}: found other text than the results give; run "
                     "tools/render_results.py")
        return
    for path in changed:
        path.write_text(files[path])
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
