"""Runs the program for make_results.py: plans, calibrations, evaluations of some problems under one setting."""
import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import tempfile
import threading
import time

import results_settings as rs

RUNNING = set()
STOPPED = threading.Event()
KEPT_COLUMNS = ("id", "response", "correct", "output_tokens", "finish_reason", "peak_bytes")
VERIFIED_PROBLEMS = 16  # Of one part of a verification.


class Failed(Exception):
    """The program did not do what was asked of it."""


def stop_programs():
    STOPPED.set()
    for process in list(RUNNING):
        process.terminate()
    for process in list(RUNNING):
        process.wait()


def write_whole(path, text):
    """So that a file that is there is whole, whoever else writes it."""
    partial = path.with_suffix(f".{threading.get_ident()}.partial")
    partial.write_text(text)
    partial.rename(path)


def processor():
    """The processor's name and numbers: names alone do not tell generations apart on rented machines."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return "unknown"
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{said.get('model name', 'unknown')}, family {said.get('cpu family', '?')}, model {said.get('model', '?')}"


class Runner:
    def __init__(self, args):
        self.args = args
        self.data = args.work / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.plan_lock = threading.Lock()
        self.calibrations = {}  # Name -> future.
        self.needs = {}  # (set, bits, setting) -> what fits() says.

    def program(self, *arguments):
        command = [str(self.args.program), *map(str, arguments)]
        if STOPPED.is_set():
            raise Failed("stopped")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        RUNNING.add(process)
        out, err = process.communicate()
        RUNNING.discard(process)
        if process.returncode != 0:
            last = err.strip().splitlines()[-1] if err.strip() else f"exit code {process.returncode}"
            raise Failed(f"pmkvq {arguments[0]}: {last}")
        return out

    # What a setting needs before it can run.

    def make_plan(self, kind, bits, max_len):
        path = self.data / rs.plan_name(kind, bits, max_len)
        with self.plan_lock:
            if path.exists():
                return
            partial = self.data / "partial" / path.name
            partial.parent.mkdir(exist_ok=True)
            self.program("calibrate", *rs.plan_options(kind, bits, max_len), "--plan", partial)
            for suffix in (".safetensors", ".json"):  # The file that is looked for comes last.
                partial.with_suffix(suffix).rename(path.with_suffix(suffix))

    def calibrate(self, name):
        path = self.data / f"{name}.safetensors"
        if not path.exists():
            partial = self.data / f"partial-{name}.safetensors"
            self.program("calibrate", *rs.calibration_options(name, partial), "--threads", self.args.threads)
            partial.rename(path)

    def time_calibration(self, name):
        """Calibrates anew, with nothing to go on from, and says how long that took. Runs take the file where they lack theirs."""
        with tempfile.TemporaryDirectory(dir=self.data) as folder:
            path = pathlib.Path(folder) / (f"{name}.json" if name == rs.PLAN_CALIBRATION else f"{name}.safetensors")
            begin, before = time.monotonic(), os.times()
            self.program("calibrate", *rs.calibration_options(name, path), "--threads", self.args.threads)
            seconds, after = time.monotonic() - begin, os.times()
            of_processors = (after.children_user + after.children_system) - (before.children_user + before.children_system)
            num_samples, seq_len = rs.samples_of(name)
            found = {"name": name, "samples": num_samples, "tokens_of_a_sample": seq_len, "seconds": round(seconds, 1),
                     "processor_seconds": round(of_processors, 1), "threads": self.args.threads, "processor": processor(),
                     "file_bytes": sum(file.stat().st_size for file in pathlib.Path(folder).glob(f"{name}.*"))}
            kept = self.data / path.name
            if name != rs.PLAN_CALIBRATION and not kept.exists():
                path.rename(kept)  # For the runs.
            return found

    def calibrate_in(self, pool, runs):
        """Begins the calibrations that the runs need."""
        for name in rs.METHOD_CALIBRATIONS:
            if any(self.wants(run, name) for run in runs):
                self.calibrations[name] = pool.submit(self.calibrate, name)

    @staticmethod
    def wants(run, name):
        return f"{{data}}/{name}.safetensors" in run.setting.spec

    def prepare(self, run):
        if run.setting.plan:
            self.make_plan(run.setting.plan, run.bits, run.set.max_len)
        for name, future in self.calibrations.items():
            if self.wants(run, name):
                future.result()

    def arguments(self, run):
        budget = ["--kv-budget", rs.mib(run.set.budget_bytes(run.bits))] if run.bits < 16 else []
        return [*run.setting.arguments(self.data, run.bits, run.set.max_len), *budget]

    def fits(self, run):
        """The smallest budget in which the setting holds max_len tokens, and whether this one does."""
        self.prepare(run)
        if run.bits == 16:
            return 0, True
        if run not in self.needs:
            found = json.loads(self.program("inspect", rs.MODEL, *self.arguments(run), "--max-len", run.set.max_len,
                                            "--json", "-"))
            self.needs[run] = (found["needs_bytes"], found["holds"])
        return self.needs[run]

    # Problems and their outcomes.

    def write_problems(self, name, keep):
        path = self.data / f"problems-{name}.jsonl"
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rs.problem_rows() if keep(row["id"])))
        return path

    def problems_of(self, problem_set):
        path = self.data / f"problems-{problem_set.name}.jsonl"
        return path if path.exists() else self.write_problems(problem_set.name, problem_set.holds)

    def evaluate(self, run, problems, start, end, out):
        """The problems [start, end) of a file of problems: what `pmkvq eval --json` says, with the columns that are kept."""
        out.mkdir(parents=True, exist_ok=True)
        summary = out / "summary.json"
        self.program("eval", "--model", rs.MODEL, "--benchmark", "longcot", "--data", problems, "--per-cell", 0,
                     "--max-len", run.set.max_len, "--start", start, "--end", end, *self.arguments(run),
                     "--batch", self.args.batch, "--threads", self.args.threads, "--out", out, "--json", summary)
        result = json.loads(summary.read_text())
        columns = {name: result["columns"][name] for name in KEPT_COLUMNS}
        columns["correct"] = [int(c) for c in columns["correct"]]
        least, digests, kept = {}, {}, {}
        for line in (out / "responses.jsonl").read_text().splitlines():
            row = json.loads(line)
            key = row["id"], row["response"]
            # Narrowest width of any page at the end; 0 for methods without pages.
            least[key] = min((w for w, n in zip((16, 8, 4, 2), row["final_pages"]) if n), default=0)
            kept[key] = round(row.get("kept_share", 1), 4)  # Of the tokens, where the response ends.
            digests[key] = hashlib.sha256(row["text"].encode()).hexdigest()[:12]
        keys = list(zip(columns["id"], columns["response"]))
        columns["least_bits"] = [least[key] for key in keys]
        columns["text_sha256"] = [digests[key] for key in keys]
        columns["kept_share"] = [kept[key] for key in keys]
        return {"budget_bytes": result["budget_bytes"], "longest_pause_us": result["longest_pause_us"], "columns": columns}

    def measure_rate(self):
        """Tokens per second of one job, over a packed and a simulated cache."""
        tokens = seconds = 0.0
        for spec in ("pm-kvq:bits=4", "kivi:bits=4"):
            summary = self.data / "rate.json"
            self.program("eval", "--model", rs.MODEL, "--benchmark", "longcot", "--data", f"{rs.MODEL}/problems.jsonl",
                         "--per-cell", 4, "--min-level", 3, "--max-level", 3, "--max-len", 4096, "--kv", spec,
                         "--batch", self.args.batch, "--threads", self.args.threads, "--json", summary)
            found = json.loads(summary.read_text())
            seconds += found["seconds"]
            tokens += found["output_tokens"]
        return tokens / seconds


# Verification: the same settings again.


def draw(runs, count, seed):
    """`count` of the runs, by the seed alone; all of them when there are no more."""
    return random.Random(seed).sample(runs, min(count, len(runs)))


def compare_columns(expected, found, wanted):
    """What differs first, in words; "" when `found` has every problem of `wanted`, with the same row as in `expected`."""
    missing = sorted(wanted - set(found["id"]))
    if missing:
        return f"{missing[0]}: not run"
    names = [name for name in expected if name in found]
    rows = {row[:2]: row for row in zip(*(expected[name] for name in ["id", "response", *names]))}
    for row in zip(*(found[name] for name in ["id", "response", *names])):
        for name, old, new in zip(names, rows[row[:2]][2:], row[2:]):
            if old != new:
                return f"{row[0]}: {name} was {old}, is {new}"
    return ""


def verification(runner, pool, run, result, args):
    """Starts the comparisons of one setting: a list of (run, problems in words, future of what differs)."""
    if not result["fits"]:
        def check_need():
            needs, _ = runner.fits(run)
            return "" if needs == result["needs_bytes"] else f"needs {needs} bytes, had needed {result['needs_bytes']}"
        return [(run, "bytes that it needs", pool.submit(check_need))]
    ids = result["columns"]["id"]
    if args.problems:
        ids = random.Random(f"{args.seed} {run.name()}").sample(ids, min(args.problems, len(ids)))
    started = []
    for start in range(0, len(ids), VERIFIED_PROBLEMS):
        part = set(ids[start:start + VERIFIED_PROBLEMS])
        name = f"verify-{args.seed}-{run.name().replace('/', '-')}-{start}"

        def check(part=part, name=name):
            out = args.work / "verify" / name
            shutil.rmtree(out, ignore_errors=True)  # Or its responses would be taken for done.
            try:
                runner.prepare(run)
                found = runner.evaluate(run, runner.write_problems(name, part.__contains__), 0, len(part), out)
            except Failed as error:
                return str(error)
            return compare_columns(result["columns"], found["columns"], part)
        started.append((run, f"problems {start} to {start + len(part) - 1}", pool.submit(check)))
    return started
