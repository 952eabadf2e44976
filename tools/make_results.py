#!/usr/bin/env python3
"""Makes the result files of docs/results.md: one per problem set, budget and cache setting (tools/results_settings.py).

Usage: tools/make_results.py [--program P] [--results results/runs] [--work WORK] [--jobs J] [--threads T] [--only REGEX]
       tools/make_results.py --time-calibrations   (how long the calibrations take, nothing else beside them)
       tools/make_results.py --verify N [--seed S] [--problems K]   (runs N settings again and compares, writes nothing)
First prints what is left to do and how many hours that takes here, measured with a short run. Can be stopped and
started again at any time: runs that are whole are skipped, and one that was cut goes on where it stopped (WORK holds
the responses, the result files only counts). Outcomes of near ties may depend on the instruction set and on the kernels
of OpenBLAS (PMKVQ_TARGET, OPENBLAS_CORETYPE)."""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import sys
import time

import results_runner
import results_settings as rs


def seconds_text(started):
    return f"{time.monotonic() - started:7.0f} s"


class Maker:
    """Result files from parts. A part is some problems of a run, done by one job."""

    def __init__(self, args):
        self.args = args
        self.runner = results_runner.Runner(args)
        self.started = time.monotonic()

    def result_path(self, run):
        return self.args.results / run.set.name / f"{run.bits:g}" / f"{run.setting.name}.json"

    def write(self, run, result):
        path = self.result_path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result, separators=(",", ":")) + "\n")
        partial.rename(path)

    def twin(self, run, among):
        """A run of `among` with the same outcomes: a simulated cache that fits two budgets is the same in both."""
        return next((r for r in among if run.setting.simulated() and r.bits != run.bits
                     and (r.set, r.setting) == (run.set, run.setting)), None)

    def take_twins(self, runs):
        """Writes the results of runs whose twin is there."""
        for run in runs:
            twin = self.twin(run, [r for r in rs.all_runs() if self.result_path(r).exists()])
            needs, fits = self.runner.fits(run)
            result = json.loads(self.result_path(twin).read_text()) if twin else {}
            if not fits:
                self.write(run, {**run.describe(), "fits": False, "needs_bytes": needs})
            elif result.get("fits"):
                columns = result.pop("columns")
                self.write(run, {**result, **run.describe(), "budget_bytes": run.set.budget_bytes(run.bits),
                                 "same_run_as": twin.name(), "columns": columns})

    def part_folder(self, run, part):
        return self.args.work / "runs" / run.set.name / f"{run.bits:g}" / run.setting.name / f"part-{part}"

    def make_part(self, run, part):
        """Says how it went."""
        if self.result_path(run).exists():
            return "not needed"
        out = self.part_folder(run, part)
        if (out / "result.json").exists():
            return "there"
        try:
            needs, fits = self.runner.fits(run)
            if not fits:
                self.write(run, {**run.describe(), "fits": False, "needs_bytes": needs})
                return f"does not fit, needs {needs} bytes"
            start, end = run.set.part_range(part)
            result = self.runner.evaluate(run, self.runner.problems_of(run.set), start, end, out)
        except results_runner.Failed as error:
            return f"failed: {error}"
        (out / "result.partial").write_text(json.dumps(result))
        (out / "result.partial").rename(out / "result.json")
        return "done"

    def merge(self, run):
        """Writes the result of a run whose parts are all there."""
        paths = [self.part_folder(run, part) / "result.json" for part in range(run.set.num_parts())]
        if self.result_path(run).exists() or not all(path.exists() for path in paths):
            return
        parts = [json.loads(path.read_text()) for path in paths]
        columns = {name: sum((p["columns"][name] for p in parts), []) for name in parts[0]["columns"]}
        if all(kept == 1 for kept in columns["kept_share"]):
            del columns["kept_share"]  # Nothing was evicted.
        self.write(run, {**run.describe(), "fits": True, "budget_bytes": parts[0]["budget_bytes"],
                         "longest_pause_us": max(p["longest_pause_us"] for p in parts), "columns": columns})

    def estimate(self, runs):
        tokens = sum(rs.set_tokens(r.set, self.args.program) for r in runs)
        rate = self.runner.measure_rate() * self.args.jobs
        print(f"{len(runs)} runs to make, about {tokens / 1e6:.1f} million tokens at about {rate:,.0f} tokens/s: "
              f"{tokens / rate / 3600:.2f} hours", flush=True)

    def make(self, wanted):
        failed = 0
        there = [run for run in rs.all_runs() if self.result_path(run).exists()]
        runs = [run for i, run in enumerate(wanted) if not self.twin(run, there + wanted[:i])]
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            self.runner.calibrate_in(pool, runs)
            pending = {pool.submit(self.make_part, run, part): (run, part) for run in runs
                       for part in range(run.set.num_parts())}
            for done in concurrent.futures.as_completed(pending):
                run, part = pending[done]
                failed += done.result().startswith("failed")
                print(f"{seconds_text(self.started)}  {run.name()} part {part}: {done.result()}", flush=True)
                self.merge(run)
        self.take_twins([run for run in wanted if run not in runs])
        if failed:
            sys.exit(f"make_results.py: {failed} parts failed")

    def time_calibrations(self):
        """Times the calibrations of the wanted runs, one after the other."""
        runs = [r for r in rs.all_runs() if re.search(self.args.only, r.name())]
        folder = self.args.results / "calibrations"
        folder.mkdir(parents=True, exist_ok=True)
        for name in (rs.PLAN_CALIBRATION, *rs.METHOD_CALIBRATIONS):
            path = folder / f"{name}.json"
            if path.exists() or not any(rs.calibration_of(run.setting) == name for run in runs):
                continue
            try:
                found = self.runner.time_calibration(name)
            except results_runner.Failed as error:
                sys.exit(f"make_results.py: {name}: {error}")
            results_runner.write_whole(path, json.dumps(found) + "\n")
            print(f"{seconds_text(self.started)}  {name}: {found['seconds']:.1f} s", flush=True)

    def verify(self):
        """Runs settings that were drawn at random again and compares every recorded column of every problem."""
        wanted = [r for r in rs.all_runs() if re.search(self.args.only, r.name()) and self.result_path(r).exists()]
        drawn = results_runner.draw(wanted, self.args.verify, self.args.seed)
        different = 0
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            self.runner.calibrate_in(pool, drawn)
            pending = []
            for run in drawn:
                result = json.loads(self.result_path(run).read_text())
                pending += results_runner.verification(self.runner, pool, run, result, self.args)
            for run, numbers, future in pending:
                words = future.result()
                different += bool(words)
                print(f"{seconds_text(self.started)}  {run.name()} {numbers}: {words or 'equal'}", flush=True)
        checks = f"{len(drawn)} settings in {len(pending)} parts"
        if different:
            sys.exit(f"make_results.py: {different} parts differ, of {checks}")
        print(f"all equal: {checks}")


def at_least(least):
    def parse_number(text):
        if not re.fullmatch("[0-9]+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"found '{text}', expected a whole number from {least}")
        return int(text)
    return parse_number


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("build/release/bin/pmkvq"))
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("results/runs"))
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("build/results"))
    parser.add_argument("--jobs", type=at_least(1), default=1, help="parts side by side")
    parser.add_argument("--threads", type=at_least(1), default=2, help="threads of each part")
    parser.add_argument("--batch", type=at_least(1), default=16)
    parser.add_argument("--only", default="", help="only runs whose SET/BITS/NAME matches this regular expression")
    parser.add_argument("--no-estimate", action="store_true", help="do not measure how long it takes")
    parser.add_argument("--list", action="store_true", help="print the runs that are left and stop")
    parser.add_argument("--time-calibrations", action="store_true", help="time every calibration that has no time yet")
    parser.add_argument("--verify", type=at_least(1), metavar="N", help="run N random settings again and compare")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of --verify: which settings and problems")
    parser.add_argument("--problems", type=at_least(1), metavar="K", help="of --verify: K random problems of each setting")
    args = parser.parse_args()
    try:
        re.compile(args.only)
    except re.error as error:
        parser.error(f"argument --only: found '{args.only}', expected a regular expression ({error})")
    return args


def stop(_signal, _frame):
    results_runner.stop_programs()
    print("make_results.py: stopped; run it again to go on", file=sys.stderr, flush=True)
    os._exit(130)  # Waiting parts of the pool must not start.


def main():
    args = parse()
    maker = Maker(args)
    runs = [r for r in rs.all_runs() if re.search(args.only, r.name()) and not maker.result_path(r).exists()]
    if args.list:
        print("\n".join(r.name() for r in runs))
        return
    if not args.program.exists():
        sys.exit(f"make_results.py: --program: found no {args.program}; make the program with ./run build")
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if args.verify:
        maker.verify()
        return
    if args.time_calibrations:
        maker.time_calibrations()
        return
    if not runs:
        print("all result files are there")
        return
    if not args.no_estimate:
        maker.estimate(runs)
    maker.make(runs)


if __name__ == "__main__":
    main()
