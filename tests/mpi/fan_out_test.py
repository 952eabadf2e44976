#!/usr/bin/env python3
"""Commands whose units are shared by the ranks of mpirun make what one process makes.

Usage: fan_out_test.py PROGRAM MODEL. Exit code 77 where no ranks can be started."""
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import fan_out
from fan_out import check, eval_command, ranks, responses, run

PROGRAM, MODEL = "", ""


def children(process):
    """The process ids of the ranks below a running mpirun."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.append(int(path.parent.name))
    return found


class FanOut(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.scratch.name)
        cls.dataset = pathlib.Path(MODEL) / "calibration.jsonl"
        whole = check(eval_command(PROGRAM, MODEL, cls.folder / "whole", "--json", "-"))
        cls.summary = fan_out.summary_without_times(whole.stdout)
        cls.expected = responses(cls.folder / "whole")
        assert len(cls.expected) == 24

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def test_eval(self):
        for number in 2, 3:
            out = self.folder / f"run{number}"
            result = check(ranks(number, *eval_command(PROGRAM, MODEL, out)))
            self.assertEqual(result.stdout.count("pass@1"), 1)
            self.assertRegex(result.stdout, rf"(?m)^{number} ranks: 24 responses in .* per second; ranks were busy")
            self.assertEqual(responses(out), self.expected)
            summary = json.loads((out / "summary.json").read_text())
            self.assertEqual(summary["ranks"], number)
            self.assertFalse((out / "parts").exists())
            # Nothing is left to do.
            again = check(ranks(2, *eval_command(PROGRAM, MODEL, out, "--json", "-")))
            self.assertEqual(fan_out.summary_without_times(again.stdout), self.summary)

    def test_eval_without_a_folder(self):
        result = check(ranks(3, *eval_command(PROGRAM, MODEL, None, "--json", "-")))
        self.assertEqual(fan_out.summary_without_times(result.stdout), self.summary)

    def end_early(self, out, number, how):
        """Ends a job after a while by how(mpirun's process); returns its exit code."""
        with subprocess.Popen([str(word) for word in ranks(number, *eval_command(PROGRAM, MODEL, out))],
                              env=fan_out.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
            deadline = time.monotonic() + 60
            target = random.randint(1, 4)
            while job.poll() is None and time.monotonic() < deadline:
                lines = sum(path.read_bytes().count(b"\n") for path in out.glob("parts/*.jsonl"))
                if lines >= target:
                    how(job)
                    break
                time.sleep(0.005)
            job.communicate(timeout=120)
            return job.returncode

    def test_twenty_killed_ranks_lose_and_duplicate_nothing(self):
        random.seed(5)

        def kill_one(job):
            found = children(job.pid)
            if found:
                subprocess.run(["kill", "-KILL", str(random.choice(found))], check=False)

        kills = jobs = 0
        while kills < 20:
            out = self.folder / f"killed{jobs}"
            jobs += 1
            while kills < 20 and self.end_early(out, random.choice((2, 3, 4)), kill_one) != 0:
                kills += 1
            check(ranks(3, *eval_command(PROGRAM, MODEL, out)))
            self.assertEqual(responses(out), self.expected)
            self.assertFalse((out / "parts").exists())
        print(f"{kills} ranks killed in {jobs} runs of {len(self.expected)} responses", file=sys.stderr)

    def test_an_interrupted_job_goes_on(self):
        out = self.folder / "interrupted"
        self.end_early(out, 2, lambda job: job.send_signal(signal.SIGINT))
        check(eval_command(PROGRAM, MODEL, out))  # In one process.
        self.assertEqual(responses(out), self.expected)

    def test_compare(self):
        def compare(out):
            return [PROGRAM, "compare", "--model", MODEL, "--max-level", "1", "--end", "3", "--kv", "static-4",
                    "--kv-budget", "1MiB", "--max-len", "256", "--max-tokens", "20", "--threads", "1", "--out", out,
                    "--json", "-"]

        def without_times(text):
            table = json.loads(text)
            table.pop("ranks", None)
            for budget in table["budgets"]:
                for method in budget["methods"]:
                    method.pop("tokens_per_second", None)
            return table

        whole = check(compare(self.folder / "compare1"))
        shared = check(ranks(2, *compare(self.folder / "compare2")))
        self.assertEqual(json.loads(shared.stdout)["ranks"], 2)
        self.assertEqual(without_times(shared.stdout), without_times(whole.stdout))

    def test_calibrate(self):
        def calibrate(plan):
            return [PROGRAM, "calibrate", "--model", MODEL, "--dataset", self.dataset, "--n-samples", "5", "--seq-len",
                    "64", "--memory-budget", "2MiB", "--max-len", "512", "--threads", "1", "--plan", plan]

        check(calibrate(self.folder / "plan1.json"))
        for number in 2, 3:
            plan = self.folder / f"plan{number}.json"
            result = check(ranks(number, *calibrate(plan)))
            self.assertEqual(result.stderr.count("wrote "), 1)
            for name in "json", "safetensors":
                self.assertEqual(plan.with_suffix("." + name).read_bytes(),
                                 (self.folder / f"plan1.{name}").read_bytes())
        self.assertEqual(list(self.folder.glob("plan*partial*")), [])

    def test_single_steps(self):
        def command(name, *more):
            return [PROGRAM, name, "--model", MODEL, "--dataset", self.dataset, "--n-samples", "5", "--seq-len", "40",
                    "--threads", "1", *more]

        whole = json.loads(check(command("perplexity", "--kv", "static-4", "--json", "-")).stdout)
        shared = json.loads(check(ranks(3, *command("perplexity", "--kv", "static-4", "--json", "-"))).stdout)
        self.assertEqual(shared.pop("ranks"), 3)
        self.assertEqual(shared, whole)
        whole = check(command("sensitivity", "--json", "-")).stdout
        self.assertEqual(check(ranks(2, *command("sensitivity", "--json", "-"))).stdout, whole)
        check(command("max-keys", "--out", self.folder / "keys1"))
        check(ranks(2, *command("max-keys", "--out", self.folder / "keys2")))
        self.assertEqual((self.folder / "keys2").read_bytes(), (self.folder / "keys1").read_bytes())

    def test_errors_end_all_ranks(self):
        other = run(ranks(2, *eval_command(PROGRAM, MODEL, self.folder / "whole", "--seed", "7")))
        self.assertNotEqual(other.returncode, 0)
        self.assertEqual(other.stderr.count("--seed: found '42', this run has '7'"), 1, other.stderr)
        missing = run(ranks(3, *eval_command(PROGRAM, self.folder / "no-model", None)))
        self.assertNotEqual(missing.returncode, 0)
        self.assertEqual(other.stdout, "")
        part = run(ranks(2, *eval_command(PROGRAM, MODEL, self.folder / "part", "--shard", "1/2")))
        self.assertNotEqual(part.returncode, 0)
        self.assertEqual(part.stderr.count("a job of 2 ranks"), 1, part.stderr)
        method = run(ranks(2, PROGRAM, "calibrate", "--model", MODEL, "--dataset", self.dataset, "--kv", "oscar", "--out",
                           self.folder / "oscar"))
        self.assertIn("runs in one process", method.stderr)
        self.assertFalse((self.folder / "oscar").exists())


if __name__ == "__main__":
    PROGRAM, MODEL = sys.argv[1:3]
    fan_out.need_ranks(PROGRAM)
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
