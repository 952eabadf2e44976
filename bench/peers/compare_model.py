#!/usr/bin/env python3
"""pmkvq beside llama.cpp and ik_llama.cpp on one model file, in alternating rounds.

  compare_model.py --model FILE.gguf --pmkvq build/release/bin/pmkvq --peer llama.cpp=build/peers/measure-llama

Each --peer is llama_measure.cc built against that engine (README.md). A round measures every engine once, in an order that
changes; ratios are taken within rounds. Beside wall time stands the time that the process had processors: with one thread and
other programs on the machine that is the figure to compare, since waiting for a processor is not in it. A table of medians goes
to stdout, all measurements to --out as JSON lines.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


class Peer:
    """A running llama_measure."""

    def __init__(self, name, binary, model, threads):
        self.name = name
        self.process = subprocess.Popen([binary, model, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"compare_model: {self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.read()


def middle(answer):
    return {"ms": statistics.median(answer["ms"]), "processor_ms": statistics.median(answer["processor_ms"])}


def of_peer(peer, args, kv_types):
    for depth in args.depth:
        for kv in kv_types:
            yield f"decode {depth}", kv, middle(peer.ask(f"decode {kv} {depth} {args.tokens}"))
    if args.prefill:
        yield f"prefill {args.prefill}", "f16", middle(peer.ask(f"prefill f16 {args.prefill}"))


def ours(args):
    common = ["--model", args.model, "--threads", str(args.threads), "--attention", args.attention, "--json", "-"]

    def rows(*options):
        answer = subprocess.run([args.pmkvq, "bench", *options, *common], stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(answer.stdout)["rows"]

    depths = ",".join(map(str, args.depth))
    if depths:
        for row in rows("decode", "--depth", depths, "--bits", args.bits, "--repeat", str(args.tokens)):
            yield f"decode {row['depth']}", f"{row['bits']} bits", {"ms": row["ms_per_step"], "processor_ms": row["processor_ms"]}
    if args.prefill:
        row = rows("prefill", "--tokens", str(args.prefill), "--chunk", str(args.prefill), "--repeat", "1")[0]
        yield f"prefill {args.prefill}", "f16", {"ms": row["ms"], "processor_ms": row["processor_ms"]}


def report(records, clock, threads):
    tasks = list(dict.fromkeys(r["task"] for r in records))
    rivals = list(dict.fromkeys(r["engine"] for r in records if r["engine"] != "pmkvq"))
    print(f"\n{'processor time, ms of all threads' if clock == 'processor_ms' else 'wall time, ms'} ({threads} threads), medians; "
          "in brackets how many times as long as ours, of the rounds' ratios the median, least and most")
    for task in tasks:
        of_ours = {(r["round"], r["kv"]): r[clock] for r in records if r["engine"] == "pmkvq" and r["task"] == task}
        for kv in dict.fromkeys(kv for _, kv in of_ours):
            mine = {number: ms for (number, k), ms in of_ours.items() if k == kv}
            line = f"{task:14} pmkvq {kv} {statistics.median(mine.values()):9.2f}"
            for rival in rivals:
                times = {}
                for r in records:
                    if r["engine"] == rival and r["task"] == task:
                        times.setdefault(r["kv"], {})[r["round"]] = r[clock]
                best = min(times, key=lambda k: statistics.median(times[k].values()))
                ratios = [times[best][number] / mine[number] for number in mine if number in times[best]]
                line += (f" | {rival} {best} {statistics.median(times[best].values()):9.2f} ({statistics.median(ratios):.2f}; "
                         f"{min(ratios):.2f} to {max(ratios):.2f})")
            print(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pmkvq", help="the program (none: the peers alone)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=BINARY")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=9, help="tokens decoded a round at each depth")
    parser.add_argument("--depth", type=lambda text: [int(d) for d in text.split(",") if d], default=[0, 8192, 32768])
    parser.add_argument("--kv", default="f16-noflash,f16,q8_0,q4_0", help="cache types of the peers; the fastest one counts")
    parser.add_argument("--bits", default="4", help="widths of our cache")
    parser.add_argument("--attention", default="fast", help="ours: fast or accurate")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of a prompt (0: none)")
    parser.add_argument("--out", help="a file for the measurements")
    args = parser.parse_args()

    peers = [Peer(*text.split("=", 1), args.model, args.threads) for text in args.peer]
    for peer in peers:
        print(f"{peer.name}: loaded in {peer.load['ms'][0]:.0f} ms ({peer.load['processor_ms'][0]:.0f} ms of processors)")
    engines = [(peer.name, lambda peer=peer: of_peer(peer, args, args.kv.split(","))) for peer in peers]
    if args.pmkvq:
        engines.append(("pmkvq", lambda: ours(args)))
    records = []
    for number in range(args.rounds):
        turn = number % len(engines)
        for name, measure in engines[turn:] + engines[:turn]:
            for task, kv, times in measure():
                records.append({"round": number, "engine": name, "task": task, "kv": kv, **times, "load": os.getloadavg()[0]})
                if args.out:
                    with open(args.out, "a", encoding="utf-8") as file:
                        file.write(json.dumps(records[-1]) + "\n")
        print(f"{time.strftime('%H:%M:%S')} round {number + 1} of {args.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    print(f"load average {min(r['load'] for r in records):.1f} to {max(r['load'] for r in records):.1f}")
    for clock in ("ms", "processor_ms"):
        if args.pmkvq:
            report(records, clock, args.threads)


if __name__ == "__main__":
    main()
