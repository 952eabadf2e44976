#!/usr/bin/env python3
"""Measures cache methods on a public model, and renders docs/results-public.md from what was measured.

Usage: tools/public_results.py run --model FILE --texts FILE --calibration FILE --gsm8k FOLDER --work DIR [--only NAME,...]
                                   [--device DEVICE] [--batch N]
       tools/public_results.py render [--check]

`run` makes results/public/*.json, one file a run, and leaves out what is there; run it again after an interrupt. Everything
else (plans, responses) lies in DIR. `render` writes the tables of docs/results-public.md between its marks; with --check
nothing is written, and the exit code is 1 where the file differs from what would be written."""
import argparse
import json
import pathlib
import subprocess
import sys

from results_data import FIGURES

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "public"
PAGE = ROOT / "docs" / "results-public.md"
VALUES_PER_TOKEN = 24 * 2 * 2 * 64  # Blocks x (K, V) x KV heads x head size of the model.

# Teacher-forced texts of this many tokens, and budgets in bits per stored value, every byte counted. 3.4 is near the least
# that 2-bit pages of 2,048 tokens take: a page of 128 tokens stays at 16 bits, and heads of 64 values have groups of 64.
TEXT_TOKENS, NUM_TEXTS = 2048, 2
TEXT_BUDGETS = (4.65, 3.4)
WIDTHS = "4,2"  # That plans choose from: 4 bits everywhere take 5.23 bits.
# Rivals: the richest form that fits, by its size.
TEXT_RIVALS = {
    4.65: ("kivi", "mixkvq:high=0.09375+mid=0.25"),
    3.4: ("kivi:group=64", "mixkvq:high=0.03125+mid=0.125+group=64+residual=64"),
}
# GSM8K: prompt and answer have 512 tokens at most. Solved problems before the question would fill more of a cache, but the
# model then solves half as many (2 of 16 with four answers of its own, 1 of 12 with eight of the data set).
GSM8K_TOKENS, GSM8K_ANSWER, GSM8K_PROBLEMS = 512, 384, 400
GSM8K_RIVALS = {8: ("kivi", "mixkvq"), 6.25: ("kivi", "mixkvq:residual=96")}
COLUMNS = ("id", "correct", "output_tokens", "peak_bytes")  # Of each problem, kept in the repository.


def mib(bits, tokens):
    return f"{bits * VALUES_PER_TOKEN * tokens / 8 / 2**20:.6f}MiB"


def plan_of(kind, bits, tokens):
    return f"plan-{kind}-{bits:g}-{tokens}.json"


def pm_kvq(bits, tokens):
    """SPEC options of PM-KVQ as in the paper, of `best`, and of `best` with a range for each channel of keys."""
    yield "pm-kvq", ["--recipe", "paper", "--plan", plan_of("tied", bits, tokens)]
    yield "best", ["--recipe", "best", "--plan", plan_of("split", bits, tokens)]
    yield "channel", ["--kv", "pm-kvq:policy=oldest-first+axis=channel", "--plan", plan_of("split", bits, tokens)]


def settings(bits, tokens, rivals):
    yield from pm_kvq(bits, tokens)
    for spec in rivals:
        yield spec.split(":")[0], ["--kv", spec, "--kv-budget", mib(bits, tokens)]


def text_runs():
    """(name of the file, bits, method, cache options)"""
    yield "text-fp16", 16, "fp16", ["--kv", "fp16"]
    for bits in TEXT_BUDGETS:
        for method, options in settings(bits, TEXT_TOKENS, TEXT_RIVALS[bits]):
            yield f"text-{bits:g}-{method}", bits, method, options


def gsm8k_runs():
    yield "gsm8k-fp16", 16, "fp16", ["--kv", "fp16"]
    for bits, rivals in GSM8K_RIVALS.items():
        for method, options in settings(bits, GSM8K_TOKENS, rivals):
            yield f"gsm8k-{bits:g}-{method}", bits, method, options


class Runner:
    def __init__(self, arguments):
        self.arguments = arguments
        self.work = pathlib.Path(arguments.work).resolve()
        self.work.mkdir(parents=True, exist_ok=True)

    def program(self, *command):
        line = [self.arguments.program, *command]
        print(" ".join(line), flush=True)
        subprocess.run(line, cwd=self.work, check=True)

    def plans(self):
        if not (self.work / "measured.json").exists():
            self.program("calibrate", "--model", self.arguments.model, "--dataset", self.arguments.calibration,
                         "--n-samples", "4", "--seq-len", "512", "--memory-budget", mib(TEXT_BUDGETS[0], TEXT_TOKENS),
                         "--max-len", str(TEXT_TOKENS), "--fbit-choices", WIDTHS, "--plan", "measured.json")
        budgets = [(bits, TEXT_TOKENS) for bits in TEXT_BUDGETS] + [(bits, GSM8K_TOKENS) for bits in GSM8K_RIVALS]
        for bits, tokens in budgets:
            for kind, extra in (("tied", []), ("split", ["--separate-kv"])):
                self.program("calibrate", "--from", "measured.json", "--memory-budget", mib(bits, tokens), "--max-len",
                             str(tokens), "--fbit-choices", WIDTHS, *extra, "--plan", plan_of(kind, bits, tokens))

    def run(self):
        self.plans()
        RESULTS.mkdir(parents=True, exist_ok=True)
        only = self.arguments.only.split(",") if self.arguments.only else None
        for name, bits, _, options in [*text_runs(), *gsm8k_runs()]:
            target = RESULTS / f"{name}.json"
            if target.exists() or (only is not None and name not in only):
                continue
            if name.startswith("text"):
                command = ["perplexity", "--dataset", self.arguments.texts, "--n-samples", str(NUM_TEXTS), "--seq-len",
                           str(TEXT_TOKENS)]
            else:
                command = ["eval", "--benchmark", "gsm8k", "--data", self.arguments.gsm8k, "--end", str(GSM8K_PROBLEMS),
                           "--n-responses", "1", "--temperature", "0", "--max-tokens", str(GSM8K_ANSWER), "--max-len",
                           str(GSM8K_TOKENS), "--batch", str(self.arguments.batch), "--out", name, "--device",
                           self.arguments.device]
            self.program(*command, "--model", self.arguments.model, *options, "--json", str(self.work / "result.json"))
            result = json.loads((self.work / "result.json").read_text())
            if "columns" in result:
                result["columns"] = {key: result["columns"][key] for key in COLUMNS}
            target.write_text(json.dumps({"bits": bits, "options": options, "result": result}) + "\n")


def load(name):
    """The result of a run, or None where it was not made."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["result"] if path.exists() else None


def named(method, options):
    spec = options[1] if options[0] == "--kv" else method
    return f"`{spec}`"


def pair_counts(method, fp16):
    """What `pmkvq compare --counts` wants of two runs of the same problems."""
    outcomes = dict(zip(fp16["columns"]["id"], fp16["columns"]["correct"]))
    counts = {"both": 0, "only_method": 0, "only_other": 0, "neither": 0}
    for problem, correct in zip(method["columns"]["id"], method["columns"]["correct"]):
        other = outcomes[problem]
        counts["both" if correct and other else "only_method" if correct else "only_other" if other else "neither"] += 1
    return counts


def against(method, fp16):
    """Two cells: the difference to another run of the same problems in points, with its interval, and P."""
    figures = FIGURES.of(**pair_counts(method, fp16))
    from_, to = figures["interval"]
    return f"{100 * figures['difference']:+.1f} ({100 * from_:+.1f} to {100 * to:+.1f}) | {figures['p_value']:.3g}"


def gsm8k_table():
    lines = ["| cache | budget MiB | peak MiB | solved | 95 % | against fp16, points | P | mean tokens |",
             "|---|---|---|---|---|---|---|---|"]
    fp16 = load("gsm8k-fp16")
    for name, bits, method, options in gsm8k_runs():
        result = load(name)
        if result is None:
            continue
        low, high = FIGURES.of(solved=result["correct"], responses=result["responses"])["interval"]
        difference = against(result, fp16) if method != "fp16" and fp16 is not None else " | "
        budget = "none" if bits == 16 else f"{bits * VALUES_PER_TOKEN * GSM8K_TOKENS / 8 / 2**20:.2f}"
        lines.append(f"| {named(method, options)} | {budget} | {result['peak_bytes'] / 2**20:.2f} | "
                     f"{result['correct']}/{result['responses']} | {100 * low:.1f} to {100 * high:.1f} | {difference} | "
                     f"{result['mean_output_tokens']:.0f} |")
    return lines


def text_table():
    lines = ["| bits | cache | loss | KL to fp16, nats |", "|---|---|---|---|"]
    for name, bits, method, options in text_runs():
        result = load(name)
        if result is not None:
            lines.append(f"| {bits:g} | {named(method, options)} | {result['loss']:.4f} | {result['kl_to_fp16']:.4g} |")
    return lines


def peer_text():
    """The loss of the same tokens with llama.cpp, which `run` does not make."""
    peer = json.loads((RESULTS / "peer.json").read_text())
    ours, theirs = peer["loss"], peer["loss_llama_cpp"]
    return [f"Three texts of long reasoning, the first 300 tokens of each, {peer['tokens']} predictions: loss {ours:.4f} here "
            f"(`pmkvq perplexity --kv fp16`), {theirs:.4f} with llama.cpp ({peer['llama_cpp']} of PyPI, cache in F16, batches of "
            f"128 tokens), {100 * abs(ours / theirs - 1):.2f} % apart. Both round what meets the codes to 8 bits, in other "
            f"groups. The tokens of the whole texts are the same, all {peer['tokens_compared']:,}."]


def write_between_marks(path, tool, tables, check):
    """Puts lines between the marks "<!-- NAME: made by TOOL -->" and "<!-- end -->" of a page. Returns the exit code of --check."""
    page = path.read_text()
    new = page
    for mark, lines in tables.items():
        begin, end = f"<!-- {mark}: made by {tool} -->\n", "<!-- end -->"
        head, _, rest = new.partition(begin)
        new = head + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    if check:
        print(f"docs/{path.name} is " + ("as rendered" if page == new else "not as rendered"))
        return 0 if page == new else 1
    path.write_text(new)
    return 0


def render(arguments):
    FIGURES.start(arguments.program)
    tables = {"Peer": peer_text(), "GSM8K": gsm8k_table(), "Texts": text_table()}
    return write_between_marks(PAGE, "tools/public_results.py", tables, arguments.check)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "render"])
    parser.add_argument("--program", default=str(ROOT / "build/release/bin/pmkvq"))
    for name in ("model", "texts", "calibration", "gsm8k", "work", "only"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--device", default="cpu", help="where GSM8K is solved: cpu or cuda")
    parser.add_argument("--batch", type=int, default=25, help="problems of GSM8K that are solved together")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.action == "run":
        Runner(arguments).run()
        return 0
    return render(arguments)


if __name__ == "__main__":
    sys.exit(main())
