#!/usr/bin/env python3
"""Responses per second of `pmkvq eval` by ranks of mpirun, against one process with the same threads.

Usage: fan_out.py PROGRAM MODEL [--ranks N] [--threads T] [--rounds R]. Both are run in turns; prints the medians, their
ratio over N, and the same by processor time: on a machine with other work to do, only the latter says what sharing costs.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess

ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}


def measure(command):
    """Responses, and responses per second of the program and of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    summary = json.loads(result.stdout)
    return summary["responses"], summary["responses_per_second"], summary["responses"] / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    command = [options.program, "eval", "--model", options.model, "--end", str(20 * options.ranks), "--max-tokens", "200",
               "--max-len", "1024", "--batch", "4", "--kv", "static-4", "--threads", str(options.threads), "--json", "-"]
    shared = ["mpirun", "-np", str(options.ranks), "--bind-to", "none", *command]
    one, many = [], []
    for _ in range(options.rounds):
        one.append(measure(command))
        many.append(measure(shared))
    for name, runs in ("1 process", one), (f"{options.ranks} ranks", many):
        print(f"{name}: {runs[0][0]} responses, {statistics.median(run[1] for run in runs):.2f} per second, "
              f"{statistics.median(run[2] for run in runs):.2f} per second of processor time")
    ratio = statistics.median(b[1] / a[1] for a, b in zip(one, many))
    by_cpu = statistics.median(b[2] / a[2] for a, b in zip(one, many))
    print(f"{options.ranks} ranks: {ratio:.2f} times the responses per second, {ratio / options.ranks:.3f} of {options.ranks}; "
          f"{by_cpu:.3f} by processor time")


if __name__ == "__main__":
    main()
