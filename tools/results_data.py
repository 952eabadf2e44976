"""Result files as render_results.py and plot_results.py read them: outcomes, pairs of outcomes, what the program says of both."""
import functools
import json
import pathlib
import statistics
import subprocess
import sys

import results_settings as rs

SIGNIFICANT = 0.05


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
    """One result file, or some problems of it: a setting on a problem set."""

    def __init__(self, data, problem_set):
        self.data, self.set = data, problem_set
        self.fits = data["fits"]
        columns = data.get("columns", {})
        keys = list(zip(columns.get("id", []), columns.get("response", [])))
        self.rows = {key: dict(zip(columns, values)) for key, values in zip(keys, zip(*columns.values()))} if keys else {}

    def subset(self, keep):
        """Of the problems for which keep(id) is true."""
        part = Result({"fits": self.fits}, self.set)
        part.data, part.rows = self.data, {key: row for key, row in self.rows.items() if keep(key[0])}
        return part

    def reporting(self):
        return self.subset(rs.is_reporting)

    def choosing(self):
        return self.subset(lambda problem: not rs.is_reporting(problem))

    def carried(self):
        """Whether the run had another limit of tokens than its set has now."""
        return self.data.get("made_at_max_len", self.set.max_len) != self.set.max_len

    def solved(self):
        return sum(bool(row["correct"]) for row in self.rows.values())

    def total(self):
        return len(self.rows)

    def share(self):
        return self.solved() / self.total()

    def interval(self):
        return FIGURES.of(solved=self.solved(), responses=self.total())["interval"]

    def peak_bytes(self):
        return max(row["peak_bytes"] for row in self.rows.values())

    def bits_of(self, num_bytes):
        """As bits per value of max_len tokens."""
        return num_bytes * 8 / (rs.VALUES_PER_TOKEN * self.set.max_len)

    def kept_share(self):
        """Of the tokens, where a response ends; the mean over problems."""
        return statistics.mean(row.get("kept_share", 1) for row in self.rows.values())

    def mean_tokens(self):
        return statistics.mean(row["output_tokens"] for row in self.rows.values())


class Pair:
    """Outcomes of two results on the problems that both have: a against b. Every problem has one response."""

    def __init__(self, a, b):
        keys = a.rows.keys() & b.rows.keys()
        self.both = sum(bool(a.rows[k]["correct"] and b.rows[k]["correct"]) for k in keys)
        self.only_a = sum(bool(a.rows[k]["correct"] and not b.rows[k]["correct"]) for k in keys)
        self.only_b = sum(bool(b.rows[k]["correct"] and not a.rows[k]["correct"]) for k in keys)
        self.n = len(keys)
        figures = FIGURES.of(both=self.both, only_method=self.only_a, only_other=self.only_b,
                             neither=self.n - self.both - self.only_a - self.only_b)
        self.p, self.difference, self.interval = figures["p_value"], figures["difference"], figures["interval"]

    def verdict(self):
        """What the pair shows of a, in words."""
        if -rs.MARGIN <= self.interval[0] and self.interval[1] <= rs.MARGIN:
            return "as good"
        if self.p >= SIGNIFICANT:
            return "not shown"
        return "better" if self.only_a > self.only_b else "worse"


class Results:
    """The result files of a folder."""

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
            data = json.loads(path.read_text())
            if (data["spec"], data["plan"]) != (setting.spec, setting.plan):
                sys.exit(f"render_results.py: [{path}] spec, plan: found {data['spec']}, {data['plan'] or 'none'}, expected "
                         f"{setting.spec}, {setting.plan or 'none'}; make it again with tools/make_results.py")
            return Result(data, problem_set)
        if problem_set in (rs.HARD, rs.LATE):
            whole = self.get(rs.ALL, bits, setting)
            return whole and whole.subset(problem_set.holds)
        return None

    def calibration(self, name):
        """How long it took, or None."""
        path = self.folder / "calibrations" / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def missing_runs(self):
        return [r for r in rs.all_runs() if self.get(r.set, r.bits, r.setting) is None]

    def check_choices(self):
        """The two rivals of each budget must be what the choosing half says (results_settings.BEST_RIVALS)."""
        for bits in rs.BUDGETS:
            found = sorted((s for s in rs.RIVALS[bits] if self.get(rs.HARD, bits, s) and self.get(rs.HARD, bits, s).fits),
                           key=lambda s: self.rank(s, bits))
            names = tuple(s.name for s in found[:2])
            if names != rs.BEST_RIVALS[bits]:
                sys.exit(f"render_results.py: BEST_RIVALS[{bits:g}]: found {', '.join(rs.BEST_RIVALS[bits])}, expected "
                         f"{', '.join(names)}, which solve most of the choosing half; mend tools/results_settings.py")

        for bits, named in rs.BEST_OF_FIELD.items():
            made = {s.name: self.get(rs.HARD, bits, s) for s in rs.FIELD[bits]}
            fitting = {name: result for name, result in made.items() if result and result.fits}
            names = tuple(sorted(fitting, key=lambda name: (-fitting[name].solved(), fitting[name].peak_bytes()))[:2])
            if None not in made.values() and names != named:
                sys.exit(f"render_results.py: BEST_OF_FIELD[{bits:g}]: found {', '.join(named) or 'none'}, expected "
                         f"{', '.join(names)}, which solve most of the choosing half; mend tools/results_settings.py")

    def rank(self, setting, bits):
        here = self.get(rs.HARD, bits, setting)
        there = next((self.get(rs.HARD, 3.25, s) for s in rs.RIVALS[3.25] if s.name == setting.name), None)
        return (-here.solved(), -(there.solved() if there and there.fits else 0), here.peak_bytes())
