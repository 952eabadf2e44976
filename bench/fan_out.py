#!/usr/bin/env python3
"""Responses per second of `pmkvq eval` by ranks of mpirun, against one process with the same threads.

Usage: fan_out.py PROGRAM MODEL [--ranks N] [--threads T] [--rounds R] [--max-tokens M]. Run in turns: one process, N ranks,
and N processes at once that know nothing of each other and do a part of the problems each. The last is what the machine
itself gives: caches and memory that N processes share. Prints the medians, their ratios over N, and the same by processor
time: on a machine with other work to do, only the latter says what sharing costs.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess

ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}


def measure(*commands):
    """Responses, and responses per second of the programs, which run at once, and of their processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = [subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
               for command in commands]
    summaries = [json.loads(process.communicate()[0]) for process in running]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    responses = sum(summary["responses"] for summary in summaries)
    return responses, responses / max(summary["seconds"] for summary in summaries), responses / cpu_seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--problems", type=int, default=20, help="for each rank")
    options = parser.parse_args()
    number = options.ranks

    def command(begin, end):
        return [options.program, "eval", "--model", options.model, "--start", str(begin), "--end", str(end), "--max-tokens",
                str(options.max_tokens), "--max-len", "1024", "--batch", "4", "--kv", "static-4", "--threads",
                str(options.threads), "--json", "-"]

    whole = command(0, options.problems * number)
    shared = ["mpirun", "-np", str(number), "--bind-to", "none", *whole]
    parts = [command(options.problems * i, options.problems * (i + 1)) for i in range(number)]
    runs = {"1 process": [], f"{number} ranks": [], f"{number} processes": []}
    one, many, apart = runs.values()
    for _ in range(options.rounds):
        one.append(measure(whole))
        many.append(measure(shared))
        apart.append(measure(*parts))
    for name, measured in runs.items():
        print(f"{name}: {measured[0][0]} responses, {statistics.median(run[1] for run in measured):.2f} per second, "
              f"{statistics.median(run[2] for run in measured):.2f} per second of processor time")

    def ratio(of, to, field):
        return statistics.median(a[field] / b[field] for a, b in zip(of, to))

    for name, measured in (f"{number} ranks", many), (f"{number} processes", apart):
        print(f"{name}: {ratio(measured, one, 1) / number:.3f} of {number} times one process; {ratio(measured, one, 2):.3f} by "
              "processor time")
    print(f"{number} ranks: {ratio(many, apart, 1):.3f} of {number} processes; {ratio(many, apart, 2):.3f} by processor time")


if __name__ == "__main__":
    main()
