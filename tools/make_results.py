#!/usr/bin/env python3
"""Makes the result files of docs/results.md: one per problem set, budget and cache setting (tools/results_settings.py).

Usage: tools/make_results.py [--program P] [--results results/runs] [--work WORK] [--jobs J] [--threads T] [--only REGEX]
First prints what is left to do and how many hours that takes here, measured with a short run. Can be stopped and
started again at any time: runs that are whole are skipped, and one that was cut goes on where it stopped (WORK holds
the responses, the result files only counts)."""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import results_settings as rs

RUNNING = set()
KEPT_COLUMNS = ("id", "response", "correct", "output_tokens", "finish_reason", "peak_bytes", "least_bits")


class Maker:
    def __init__(self, args):
        self.args = args
        self.data = args.work / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()

    def program(self, *arguments, **kwargs):
        command = [str(self.args.program), *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)
        RUNNING.add(process)
        out, err = process.communicate()
        RUNNING.discard(process)
        return process.returncode, out, err

    def must(self, *arguments):
        code, out, err = self.program(*arguments)
        if code != 0:
            sys.exit(f"make_results.py: pmkvq {' '.join(map(str, arguments))}\n{err.strip()[-2000:]}")
        return out

    def result_path(self, run):
        return self.args.results / run.set.name / f"{run.bits:g}" / f"{run.setting.name}.json"

    def make_plans(self, runs):
        for kind, bits, max_len in sorted({(r.setting.plan, r.bits, r.set.max_len) for r in runs if r.setting.plan}):
            path = self.data / rs.plan_name(kind, bits, max_len)
            if not path.exists():
                self.must("calibrate", *rs.plan_options(kind, bits, max_len), "--plan", path)

    def make_calibrations(self, runs):
        for name in rs.METHOD_CALIBRATIONS:
            path = self.data / f"{name}.safetensors"
            if not path.exists() and any(f"{{data}}/{name}.safetensors" in r.setting.spec for r in runs):
                self.must("calibrate", *rs.calibration_options(name), "--out", path)

    def fits(self, run):
        """The smallest budget in which the setting holds max_len tokens, and whether this one does."""
        found = json.loads(self.must("inspect", rs.MODEL, *self.arguments(run), "--max-len", run.set.max_len, "--json", "-"))
        return found["needs_bytes"], found["holds"]

    def arguments(self, run):
        budget = ["--kv-budget", rs.mib(run.set.budget_bytes(run.bits))] if run.bits < 16 else []
        return [*run.setting.arguments(self.data, run.bits, run.set.max_len), *budget]

    def write(self, run, result):
        path = self.result_path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result, separators=(",", ":")) + "\n")
        partial.rename(path)

    def check(self, run):
        """Writes the result of a setting that the budget is too small for; True when there is something to run."""
        if run.bits == 16:
            return True
        needs, fits = self.fits(run)
        if not fits:
            self.write(run, {**run.describe(), "fits": False, "needs_bytes": needs})
            print(f"{run.name()}: does not fit, needs {needs} bytes", flush=True)
        return fits

    def part_folder(self, run, part):
        return self.args.work / "runs" / run.set.name / f"{run.bits:g}" / run.setting.name / f"part-{part}"

    def make_part(self, run, part):
        """Some of the problems of a run: a part is what one job does at a time. Says how it went."""
        out = self.part_folder(run, part)
        if (out / "result.json").exists():
            return "there"
        out.mkdir(parents=True, exist_ok=True)
        start, end = run.set.part_range(part)
        code, _, err = self.program("eval", "--model", rs.MODEL, *run.set.options(), "--start", start, "--end", end,
                                    *self.arguments(run), "--batch", self.args.batch, "--threads", self.args.threads,
                                    "--out", out, "--json", out / "result.partial")
        if code != 0:
            return f"failed: {err.strip().splitlines()[-1] if err.strip() else code}"
        (out / "result.partial").rename(out / "result.json")
        return "done"

    def merge(self, run):
        """Writes the result of a run whose parts are all there."""
        parts = []
        for part in range(run.set.num_parts):
            path = self.part_folder(run, part) / "result.json"
            if not path.exists():
                return
            result = json.loads(path.read_text())
            result["columns"]["least_bits"] = self.least_bits(path.parent / "responses.jsonl", result["columns"])
            parts.append(result)
        columns = {name: sum((p["columns"][name] for p in parts), []) for name in KEPT_COLUMNS}
        columns["correct"] = [int(c) for c in columns["correct"]]
        self.write(run, {**run.describe(), "fits": True, "budget_bytes": parts[0]["budget_bytes"],
                         "longest_pause_us": max(p["longest_pause_us"] for p in parts), "columns": columns})

    @staticmethod
    def least_bits(path, columns):
        """Narrowest width of any page at the end of each response; 0 for methods without pages."""
        least = {}
        for line in path.read_text().splitlines():
            row = json.loads(line)
            pages = row["final_pages"]  # Of 16, 8, 4 and 2 bits.
            least[row["id"], row["response"]] = min((w for w, n in zip((16, 8, 4, 2), pages) if n), default=0)
        return [least[key] for key in zip(columns["id"], columns["response"])]

    def measure_rate(self):
        """Tokens per second of one job, over a packed and a simulated cache."""
        tokens = seconds = 0.0
        for spec in ("pm-kvq:bits=4", "kivi:bits=4"):
            summary = self.data / "rate.json"
            start = time.monotonic()
            self.must("eval", "--model", rs.MODEL, "--benchmark", "longcot", "--data", f"{rs.MODEL}/problems.jsonl",
                      "--per-cell", 4, "--min-level", 3, "--max-level", 3, "--max-len", 4096, "--kv", spec,
                      "--batch", self.args.batch, "--threads", self.args.threads, "--json", summary)
            seconds += time.monotonic() - start
            tokens += json.loads(summary.read_text())["output_tokens"]
        return tokens / seconds

    def estimate(self, runs):
        tokens = sum(rs.set_tokens(r.set, self.args.program) for r in runs)
        rate = self.measure_rate() * self.args.jobs
        print(f"{len(runs)} runs to make, about {tokens / 1e6:.1f} million tokens at about {rate:,.0f} tokens/s: "
              f"{tokens / rate / 3600:.2f} hours", flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("build/release/bin/pmkvq"))
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("results/runs"))
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("build/results"))
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, default=2, help="threads of each run")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", default="", help="only runs whose SET/BITS/NAME matches this regular expression")
    parser.add_argument("--no-estimate", action="store_true", help="do not measure how long it takes")
    parser.add_argument("--list", action="store_true", help="print the runs that are left and stop")
    return parser.parse_args()


def stop(_signal, _frame):
    for process in list(RUNNING):
        process.terminate()
    for process in list(RUNNING):
        process.wait()
    print("make_results.py: stopped; run it again to go on", file=sys.stderr, flush=True)
    os._exit(130)  # Waiting runs of the pool must not start.


def main():
    args = parse()
    maker = Maker(args)
    runs = [r for r in rs.all_runs() if re.search(args.only, r.name()) and not maker.result_path(r).exists()]
    if args.list:
        print("\n".join(r.name() for r in runs))
        return
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if not runs:
        print("all result files are there")
        return
    if not args.no_estimate:
        maker.estimate(runs)
    maker.make_plans(runs)
    maker.make_calibrations(runs)
    runs = [run for run in runs if maker.check(run)]
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        pending = {pool.submit(maker.make_part, run, part): (run, part) for run in runs
                   for part in range(run.set.num_parts)}
        for done in concurrent.futures.as_completed(pending):
            run, part = pending[done]
            failed += done.result().startswith("failed")
            print(f"{time.monotonic() - maker.started:7.0f} s  {run.name()} part {part}: {done.result()}", flush=True)
            maker.merge(run)
    if failed:
        sys.exit(f"make_results.py: {failed} parts failed")


if __name__ == "__main__":
    main()
