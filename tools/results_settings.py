"""Which runs docs/results.md is made of: problem sets, budgets, plans, and the cache settings of each table.

Everything that make_results.py runs and render_results.py prints is listed here, so that both agree."""
import dataclasses
import functools
import json
import pathlib
import re
import subprocess

MODEL = "models/longcot-10m"
VALUES_PER_TOKEN = 12 * 2 * 128  # Blocks x (K, V) x KV dim of longcot-10m.
BUDGETS = (8.5, 4.65, 3.25, 2.7)  # Bits per stored value at max_len, every byte counted. Levels 1 to 5.
LONG_BUDGETS = (3.25, 3, 2.7)  # Level 6. 3 is the least that MixKVQ's form of 3.25 bits takes there.
MARGIN = 0.03  # "As good as": the whole 95 % interval of the difference lies inside this margin.


@dataclasses.dataclass(frozen=True)
class ProblemSet:
    """Problems of some levels, by their numbers within each cell (task and level)."""
    name: str
    title: str
    levels: tuple[int, int]  # First and last.
    numbers: tuple[int, int]  # [first, end) of each cell.
    max_len: int
    num_problems: int
    part_size: int = 8  # Problems of a job.

    def num_parts(self):
        return -(-self.num_problems // self.part_size)

    def part_range(self, part):
        return (part * self.part_size, min((part + 1) * self.part_size, self.num_problems))

    def holds(self, problem_id):
        _, level, number = cell_of(problem_id)
        return self.levels[0] <= level <= self.levels[1] and self.numbers[0] <= number < self.numbers[1]

    def budget_bytes(self, bits):
        return int(bits * VALUES_PER_TOKEN * self.max_len / 8)


def cell_of(problem_id):
    """("sort", 5, 13) of sort-5-013."""
    task, level, number = problem_id.rsplit("-", 2)
    return task, int(level), int(number)


# Two disjoint halves of every cell. Rivals of a budget and candidates for `best` are compared on the first half; headline
# figures are of the second half alone.
HALF = {level: 15 if level == 6 else 8 for level in range(1, 7)}  # Numbers below are the choosing half.


def is_reporting(problem_id):
    _, level, number = cell_of(problem_id)
    return number >= HALF[level]


ALL = ProblemSet("all", "levels 1 to 5, 4,096 tokens", (1, 5), (0, 16), 4096, 400)
HARD = ProblemSet("hard", "levels 3 to 5, choosing half, 4,096 tokens", (3, 5), (0, 7), 4096, 105)
LATE = ProblemSet("late", "levels 3 to 5, reporting half, 4,096 tokens", (3, 5), (8, 16), 4096, 120)
# The longest chain of level 6 has 6,223 tokens, and its prompt some 200.
LONG = ProblemSet("long", "level 6, reporting half, 6,656 tokens", (6, 6), (15, 30), 6656, 60)


@functools.cache
def problem_rows():
    return [json.loads(line) for line in pathlib.Path(f"{MODEL}/problems.jsonl").read_text().splitlines()]


@functools.cache
def tokens_per_character(program):
    text = "".join(row["reference_chain"] for row in problem_rows())
    ids = subprocess.run([program, "tokenize", "--model", MODEL], input=text, capture_output=True, text=True,
                         check=True).stdout.split()
    return len(ids) / len(text)


def set_tokens(problem_set, program):
    """About the tokens of the set's chains."""
    return tokens_per_character(program) * sum(
        len(row["reference_chain"]) for row in problem_rows() if problem_set.holds(row["id"]))


def mib(num_bytes):
    return f"{num_bytes / 2**20:.6f}MiB"


# Plans: the shipped measurements (models/longcot-10m/plan.json) under another budget. Widths to choose from are the
# paper's: {8, 4} where 4 bits fit everywhere, {4, 2} below.
PLAN_OPTIONS = {
    "tied": [],
    "split": ["--separate-kv"],
    "mirrored": ["--mirrored"],
    "tied-sink-4": ["--n-sink-token", "4"],
    "tied-sink-64": ["--n-sink-token", "64"],
    "tied-window-256": ["--n-window-token", "256"],
    "split-sink-4": ["--separate-kv", "--n-sink-token", "4"],
}
UNIFORM_WIDTH = {8.5: "8", 4.65: "4", 3.25: "2", 3: "2", 2.7: "2"}  # The widest that fits everywhere.


def plan_name(kind, bits, max_len):
    return f"plan-{kind}-{bits:g}-{max_len}.json"


def plan_options(kind, bits, max_len):
    if kind == "uniform":
        widths, extra = UNIFORM_WIDTH[bits], []
    else:
        widths, extra = ("8,4" if bits > 4 else "4,2"), PLAN_OPTIONS[kind]
    budget = bits * VALUES_PER_TOKEN * max_len / 8
    return ["--from", f"{MODEL}/plan.json", "--memory-budget", f"{budget / 2**20:.6f}", "--max-len", str(max_len),
            "--fbit-choices", widths, *extra]


# Calibrations of methods that have one: name -> SPEC and sample options of `pmkvq calibrate --kv`.
METHOD_CALIBRATIONS = {
    "oscar": ("oscar", 16, 2048),
    "kvmix": ("kvmix", 16, 2048),
    "rotatekv": ("rotatekv", 16, 2048),
    "kvtuner": ("kvtuner", 8, 1024),
    "cq-2c8b": ("cq:channels=2+bits=8", 16, 2048),
    "cq-2c6b": ("cq:channels=2+bits=6", 16, 2048),
    "cq-4c8b": ("cq:channels=4+bits=8", 16, 2048),
    "cq-2c8b-uniform": ("cq:channels=2+bits=8+weights=uniform", 16, 2048),
    "cq-2c6b-uniform": ("cq:channels=2+bits=6+weights=uniform", 16, 2048),
    "cq-4c8b-uniform": ("cq:channels=4+bits=8+weights=uniform", 16, 2048),
    "qaq": ("qaq", 16, 2048),
    "fastkvzip": ("fastkvzip", 16, 2048),
    "svdq": ("svdq", 16, 2048),
    "recalkv-28": ("recalkv:keep=0.28+step=4", 16, 2048),
    "recalkv-20": ("recalkv:keep=0.2+step=4", 16, 2048),
    "recalkv-16": ("recalkv:keep=0.16+step=4", 16, 2048),
    "recalkv-14": ("recalkv:keep=0.14+step=4", 16, 2048),
}


def calibration_of(setting):
    """Name of the calibration that a setting needs, or ""."""
    found = re.search(r"from=\{data\}/([^+]+)\.safetensors", setting.spec)
    return found[1] if found else PLAN_CALIBRATION if setting.plan else ""


# What the shipped plan was made with; its time is shown for every setting with a plan.
PLAN_CALIBRATION = "plan"
PLAN_SAMPLES = (16, 2048)


def samples_of(name):
    return PLAN_SAMPLES if name == PLAN_CALIBRATION else METHOD_CALIBRATIONS[name][1:]


def calibration_options(name, path):
    """Of `pmkvq calibrate`, which writes `path`."""
    num_samples, seq_len = samples_of(name)
    options = ["--model", MODEL, "--dataset", f"{MODEL}/calibration.jsonl", "--pack", "single", "--n-samples",
               str(num_samples), "--seq-len", str(seq_len)]
    if name == PLAN_CALIBRATION:
        return [*options, "--memory-budget", "4.875", "--max-len", "4096", "--plan", str(path)]
    return [*options, "--kv", METHOD_CALIBRATIONS[name][0], "--out", str(path)]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One cache in one table: a SPEC, with the kind of plan it takes its widths and key scales from."""
    name: str
    spec: str
    plan: str = ""

    def simulated(self):
        """Whether the cache is one whose outcomes do not depend on the budget, once it fits."""
        return self.spec.split(":")[0] not in ("pm-kvq", "fp16", "static-8", "static-4", "static-2")

    def arguments(self, folder, bits, max_len):
        arguments = ["--kv", self.spec.replace("{data}", str(folder))]
        if self.plan:
            arguments += ["--plan", str(folder / plan_name(self.plan, bits, max_len))]
        return arguments


@dataclasses.dataclass(frozen=True)
class Run:
    set: ProblemSet
    bits: float  # 16: no budget.
    setting: Setting

    def name(self):
        return f"{self.set.name}/{self.bits:g}/{self.setting.name}"

    def describe(self):
        return {"set": self.set.name, "bits": self.bits, "setting": self.setting.name, "spec": self.setting.spec,
                "plan": self.setting.plan}


FP16 = Setting("fp16", "fp16")
PAPER = Setting("pm-kvq", "pm-kvq", "tied")
BEST = Setting("best", "pm-kvq:policy=oldest-first", "split")
STATIC = Setting("static", "pm-kvq:static", "tied")



def from_file(name, rest):
    return f"{name}:from={{data}}/{name}.safetensors+{rest}" if rest else f"{name}:from={{data}}/{name}.safetensors"


# Rivals: by budget, the richest form of each method that fits, or its smallest where none does.
RIVALS = {
    8.5: (Setting("rtn", "rtn:bits=8"), Setting("kivi", "kivi:bits=4"), Setting("kivi-reference", "kivi:reference+bits=4"),
          Setting("mikv", "mikv:bits=4+ratio=0.3"), Setting("rotatekv", from_file("rotatekv", "bits=4")),
          Setting("mixkvq", "mixkvq:high=0.5+mid=0.5"), Setting("kvmix", "kvmix:k=4+v=4"),
          Setting("kitty", "kitty:boost=1"), Setting("kvtuner", "kvtuner:k=8+v=8"),
          Setting("oscar", from_file("oscar", "bits=8+recent=64")), Setting("static-8", "static-8")),
    4.65: (Setting("rtn", "rtn:bits=4"), Setting("kivi", "kivi:bits=4+group=128"),
           Setting("kivi-reference", "kivi:reference+bits=4"), Setting("mikv", "mikv:ratio=0.15"),
           Setting("rotatekv", from_file("rotatekv", "bits=4")), Setting("mixkvq", "mixkvq"),
           Setting("kvmix", from_file("kvmix", "share=0.5")), Setting("kitty", "kitty:boost=1"),
           Setting("kvtuner", "kvtuner:k=4+v=4"), Setting("kvtuner-calibrated", from_file("kvtuner", "bits=4.4")),
           Setting("oscar", from_file("oscar", "bits=4+sink=16+recent=112")), Setting("static-4", "static-4")),
    3.25: (Setting("rtn", "rtn:bits=3"), Setting("kivi", "kivi:group=64"), Setting("kivi-reference", "kivi:reference"),
           Setting("mikv", "mikv:ratio=0.05"), Setting("rotatekv", from_file("rotatekv", "bits=3+pivots=0")),
           Setting("mixkvq", "mixkvq:high=0.03125+mid=0.25+group=128"), Setting("kvmix", "kvmix:k=2+v=2"),
           Setting("kitty", "kitty"), Setting("kvtuner", "kvtuner:k=4+v=2"),
           Setting("kvtuner-calibrated", from_file("kvtuner", "bits=3")),
           Setting("oscar", from_file("oscar", "recent=224")), Setting("static-2", "static-2")),
    2.7: (Setting("rtn", "rtn:bits=2"), Setting("kivi", "kivi:group=128"), Setting("kivi-reference", "kivi:reference"),
          Setting("mikv", "mikv:ratio=0.01"), Setting("rotatekv", from_file("rotatekv", "bits=2")),
          Setting("mixkvq", "mixkvq:high=0+mid=0+group=128"), Setting("kvmix", "kvmix:k=2+v=2"),
          Setting("kitty", "kitty:boost=0+sink=0"), Setting("kvtuner", "kvtuner:k=2+v=2"),
          Setting("kvtuner-calibrated", from_file("kvtuner", "bits=2.45")),
          Setting("oscar", from_file("oscar", "sink=32+recent=96")), Setting("static-2", "static-2")),
}
# Run on all problems: the two that solved most on the choosing half (HARD) at the budget; of equal ones, those that
# solved most at 3.25 bits, then those with fewer peak bytes. Pages give what both solved on the other half. render_results.py
# refuses to go on when the results say otherwise.
BEST_RIVALS = {8.5: ("rotatekv", "mixkvq"), 4.65: ("mixkvq", "rotatekv"), 3.25: ("mixkvq", "rotatekv"),
               2.7: ("oscar", "kivi")}

# The other methods of the field, beside the rivals: the richest form that fits a budget, or the smallest where none does. They
# are run on the choosing half alone and are no candidates for BEST_RIVALS, which were named before they were there. At 2.3 bits
# those of the rivals that fit stand beside them. `cq-uniform` is the ablation of CQ's paper: no weights by gradients.
FIELD = {
    4.65: (Setting("cq", "cq:from={data}/cq-2c8b.safetensors+window=64"),
           Setting("cq-uniform", "cq:from={data}/cq-2c8b-uniform.safetensors+window=64"),
           Setting("decoquant", "decoquant:columns=8"),
           Setting("kvarn", "kvarn"), Setting("turboquant", "turboquant:recent=128"),
           Setting("qaq", from_file("qaq", "outliers=0")), Setting("xquant", "xquant:km=12+vm=12"),
           Setting("svdq", from_file("svdq", "widths=44200000")),
           Setting("recalkv", "recalkv:from={data}/recalkv-28.safetensors"),
           Setting("subgen", "subgen:recent=512+values=400+clusters=100"), Setting("cocktail-own", "cocktail-own")),
    3.25: (Setting("cq", "cq:from={data}/cq-2c6b.safetensors+window=64"),
           Setting("cq-uniform", "cq:from={data}/cq-2c6b-uniform.safetensors+window=64"),
           Setting("decoquant", "decoquant:bits=2"),
           Setting("kvarn", "kvarn:k=2+sink=32"), Setting("turboquant", "turboquant:k=3+v=3"),
           Setting("qaq", from_file("qaq", "bits=2")), Setting("xquant", "xquant:km=12+vm=12+vq=0"),
           Setting("xquant-shared", "xquant"), Setting("recalkv", "recalkv:from={data}/recalkv-20.safetensors"),
           Setting("subgen", "subgen:recent=384+values=256+clusters=64")),
    2.7: (Setting("cq", "cq:from={data}/cq-4c8b.safetensors+window=128"),
          Setting("cq-uniform", "cq:from={data}/cq-4c8b-uniform.safetensors+window=128"),
          Setting("decoquant", "decoquant:bits=2+columns=8"),
          Setting("kvarn", "kvarn:k=2+sink=0"), Setting("turboquant", "turboquant:k=3+v=2"),
          Setting("qaq", from_file("qaq", "bits=2+outliers=0")),
          Setting("xquant", "xquant:km=12+vm=12+vq=0+group=128"), Setting("xquant-shared", "xquant:group=128"),
          Setting("recalkv", "recalkv:from={data}/recalkv-16.safetensors"),
          Setting("subgen", "subgen:recent=256+values=256+clusters=48")),
    2.3: (Setting("cq", "cq:from={data}/cq-4c8b.safetensors+window=64"),
          Setting("cq-uniform", "cq:from={data}/cq-4c8b-uniform.safetensors+window=64"),
          Setting("decoquant", "decoquant:bits=2+columns=4+residual=32"), Setting("turboquant", "turboquant:k=2+v=2+recent=32"),
          Setting("qaq", from_file("qaq", "bits=1")), Setting("xquant", "xquant:km=12+vm=12+vq=0+group=128"),
          Setting("xquant-shared", "xquant:group=128+vq=0"), Setting("rtn", "rtn:bits=2"), Setting("kvtuner", "kvtuner:k=2+v=2"),
          Setting("oscar", from_file("oscar", "sink=2+recent=12")), Setting("rotatekv", from_file("rotatekv", "bits=2+pivots=0")),
          Setting("mikv", "mikv:reference"),
          Setting("recalkv", "recalkv:from={data}/recalkv-14.safetensors"),
          Setting("subgen", "subgen:recent=256+values=192+clusters=32")),
}

# The two of each budget that solved most on the choosing half (of equal ones, those with fewer peak bytes): they are run on the
# reporting half and at level 6, too, at budgets where the rivals are. render_results.py checks them, as BEST_RIVALS.
BEST_OF_FIELD = {3.25: ("turboquant", "xquant"), 2.7: ("turboquant", "xquant")}

# Methods that evict, each with the largest capacity that fits, and chance (`random`) beside them. What only cuts a prompt keeps all
# other tokens at 16 bits: it fits no budget and is listed once.
CUTS_PROMPTS = (Setting("snapkv-prompt", "snapkv"), Setting("pruning", "pruning:bits=2"))
RANDOM = "random"


def evicting(window, every, scored, pyramid, h2o, confkv, gated):
    """Capacities of a budget. CONF-KV keeps from a quarter of its `max` on, as by default; `confkv-full` always keeps `max`."""
    return (Setting(RANDOM, f"random:capacity={every}"), Setting("window", f"window:recent={window}"),
            Setting("h2o", f"h2o:capacity={h2o}"), Setting("snapkv", f"snapkv:capacity={scored}+every=128"),
            Setting("pyramidkv", f"pyramidkv:capacity={pyramid}+every=128"), Setting("rkv", f"rkv:capacity={scored}"),
            Setting("fastkvzip", from_file("fastkvzip", f"capacity={gated}")),
            Setting("confkv", f"confkv:min={confkv // 4}+max={confkv}"),
            Setting("confkv-full", f"confkv:min={confkv}+max={confkv}"))


EVICTING = {
    4.65: evicting(1186, 1063, 1055, 1052, 1181, 2243, 1053) + CUTS_PROMPTS,
    3.25: evicting(828, 705, 697, 694, 825, 1548, 697),
    2.7: evicting(687, 564, 556, 554, 685, 1275, 557),
    2.3: evicting(584, 461, 453, 450, 584, 1076, 456),
}

FIELD_BITS = (4.65, 3.25, 2.7, 2.3)

# Level 6: the same rivals where they fit, and MixKVQ in the richest form that fits so many tokens.
MIXKVQ_3 = Setting("mixkvq", "mixkvq:high=0.03125+mid=0.25+group=128")
LONG_RIVALS = {
    3.25: (MIXKVQ_3, Setting("rotatekv", from_file("rotatekv", "bits=3+pivots=0"))),
    3: (MIXKVQ_3,),
    2.7: (Setting("mixkvq", "mixkvq:high=0+mid=0.125+group=128"), Setting("kivi", "kivi:group=128"),
          Setting("oscar", from_file("oscar", "sink=32+recent=96"))),
}

# One change of pm-kvq (paper) each.
OLDEST = Setting("oldest-first", "pm-kvq:policy=oldest-first", "tied")
ABLATIONS = {
    3.25: (STATIC, Setting("uniform", "pm-kvq", "uniform"), Setting("split", "pm-kvq", "split"),
           Setting("mirrored", "pm-kvq", "mirrored"), OLDEST, Setting("window-256", "pm-kvq", "tied-window-256"),
           Setting("sink-4", "pm-kvq", "tied-sink-4"), Setting("sink-64", "pm-kvq", "tied-sink-64"),
           Setting("no-scales", "pm-kvq:scales=off", "tied"), Setting("rotate-keys", "pm-kvq:rotate=keys", "tied"),
           Setting("rotate-both", "pm-kvq:rotate=both", "tied"), Setting("channel-keys", "pm-kvq:axis=channel", "tied")),
    2.7: (STATIC, OLDEST, Setting("no-scales", "pm-kvq:scales=off", "tied"),
          Setting("rotate-keys", "pm-kvq:rotate=keys", "tied"), Setting("rotate-both", "pm-kvq:rotate=both", "tied"),
          Setting("channel-keys", "pm-kvq:axis=channel", "tied")),
}

# What was tried for `best`: several changes together.
OF = "pm-kvq:policy=oldest-first"
CHANNEL = Setting("of+split+channel", OF + "+axis=channel", "split")
CANDIDATES = {
    3.25: (Setting("of+split", OF, "split"), CHANNEL,
           Setting("of+split+rotate", OF + "+rotate=keys", "split"), Setting("of+split+sink", OF, "split-sink-4"),
           Setting("of+split+channel+sink", OF + "+axis=channel", "split-sink-4"),
           Setting("of+channel", OF + "+axis=channel", "tied"),
           Setting("of+uniform+channel", OF + "+axis=channel", "uniform")),
    2.7: (CHANNEL, Setting("of+channel", OF + "+axis=channel", "tied"), Setting("of+sink", OF + "+sink=2", "tied"),
          Setting("of+rotate", OF + "+rotate=keys", "tied"),
          Setting("of+channel+rotate", OF + "+axis=channel+rotate=values", "tied")),
}

# What the names in the tables mean.
MEANINGS = {
    "pm-kvq": "the paper: progressive, block-wise widths, key scales, all closed pages step together",
    "best": "oldest pages step first; K and V of a block may have different widths",
    "static": "the same widths from the start, not progressive",
    "uniform": "the same width for every block, not block-wise",
    "split": "K and V of a block may have different widths",
    "mirrored": "block i gets the width that fits block L-1-i, as the reference's gradients are paired",
    "oldest-first": "only as many pages step as must, oldest first",
    "window-256": "a true sliding window of 128 tokens besides the open page",
    "sink-4": "four sink tokens, not one",
    "sink-64": "64 sink tokens",
    "no-scales": "no key reparameterisation",
    "rotate-keys": "Hadamard rotation of keys before they are quantised",
    "rotate-both": "Hadamard rotation of keys and values",
    "channel-keys": "keys quantised per channel over the 128 tokens of a page",
    "of+split": "oldest first, K and V apart",
    "of+split+channel": "the same, keys per channel",
    "of+split+rotate": "the same, keys rotated",
    "of+split+sink": "the same, four sink tokens",
    "of+split+channel+sink": "the same, keys per channel, four sink tokens",
    "of+channel": "oldest first, keys per channel",
    "of+uniform+channel": "oldest first, keys per channel, one width for all blocks",
    "of+sink": "oldest first, two sink tokens",
    "of+rotate": "oldest first, keys rotated",
    "of+channel+rotate": "oldest first, keys per channel, values rotated",
}


def narrowest_width(bits):
    """The narrowest width that the plan of a budget may give a block."""
    return int(UNIFORM_WIDTH[bits])


def all_runs():
    """Every run, the most wanted first."""
    order = (3.25, 2.7, 4.65, 8.5)
    runs = [Run(ALL, 16, FP16), Run(LONG, 16, FP16)]
    runs += [Run(ALL, bits, setting) for bits in order for setting in main_settings(bits)]
    runs += [Run(LONG, bits, setting) for bits in LONG_BUDGETS for setting in long_settings(bits)]
    runs += [Run(LATE, bits, CHANNEL) for bits in (3.25, 2.7)]
    for bits in order:
        runs += [Run(HARD, bits, s) for s in ABLATIONS.get(bits, ()) + RIVALS[bits] + CANDIDATES.get(bits, ())]
    for bits in BEST_OF_FIELD:
        runs += [Run(problem_set, bits, s) for problem_set in (LATE, LONG) for s in best_of_field(bits)]
    for bits, settings in ((3.25, FIELD), (3.25, EVICTING), (2.7, FIELD), (2.7, EVICTING), (2.3, FIELD), (4.65, EVICTING),
                           (2.3, EVICTING), (4.65, FIELD)):
        runs += [Run(HARD, bits, setting) for setting in settings[bits]]
    return list(dict.fromkeys(runs))


def best_rivals(bits):
    return tuple(next(s for s in RIVALS[bits] if s.name == name) for name in BEST_RIVALS[bits])


def best_of_field(bits):
    return tuple(next(s for s in FIELD[bits] if s.name == name) for name in BEST_OF_FIELD.get(bits, ()))


def evicts(name):
    return any(name == setting.name for settings in EVICTING.values() for setting in settings)


def main_settings(bits):
    return (PAPER, BEST, *best_rivals(bits))


def long_settings(bits):
    return (PAPER, BEST, CHANNEL, *LONG_RIVALS[bits])


def method_settings(bits):
    return (PAPER, BEST, *RIVALS[bits])
