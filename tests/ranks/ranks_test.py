#!/usr/bin/env python3
"""The program under mpirun: results of 2 and 4 ranks equal those of one process, and every failure
is one line and an end.

Usage: ranks_test.py PROGRAM SOURCE_ROOT PLUGIN. Exit code 77 (skipped) where mpirun or the plugin is
missing.
"""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

PROGRAM, ROOT, PLUGIN = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
LONGCOT = str(ROOT / "models/longcot-10m")
TINY = str(ROOT / "tests/golden/tiny-llama")
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
               "OMPI_MCA_hwloc_base_binding_policy": "none"}
ONE = ["--tp-slices", "8", "--threads", "1"]
MANY = ["--threads", "1"]
DEADLINE_S = 300


def mpirun(ranks, arguments, program=PROGRAM):
    return ["mpirun", "-np", str(ranks), program, *arguments]


def run(command, environment=ENVIRONMENT, expect=0):
    done = subprocess.run(command, capture_output=True, text=True, env=environment,
                          timeout=DEADLINE_S, stdin=subprocess.DEVNULL)
    if expect is not None and done.returncode != expect:
        raise AssertionError(f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def without_times(text):
    """Lines of a stats file without what a clock says, and without the working memory of a rank."""
    lines = []
    for line in text.splitlines():
        values = json.loads(line)
        lines.append({k: v for k, v in values.items() if not k.endswith(("_us", "seconds"))
                      and k not in ("activation_bytes", "cache_scratch_bytes")})
    return lines


def descendants(pid):
    """Process ids of PROGRAM below `pid`."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            program = os.readlink(folder / "exe")
        except (OSError, IndexError, ValueError):
            continue
        if parent == pid and program == os.path.realpath(PROGRAM):
            found.append(int(folder.name))
    return sorted(found)


def is_alive(pid):
    """Whether it runs, or is stopped; not of one that nobody has waited for yet."""
    try:
        return (pathlib.Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def cpu_seconds(process):
    """Of a process so far; 0 where it has ended."""
    try:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ends(pid, within_s=10):
    """Whether a process ends: ranks may outlive mpirun for a moment."""
    end = time.time() + within_s
    while is_alive(pid) and time.time() < end:
        time.sleep(0.05)
    return not is_alive(pid)


class Long:
    """A run of two ranks that would take minutes."""

    def __init__(self, *arguments):
        command = mpirun(2, ["run", "--model", TINY, "--prompt-ids", "5,6,7", "--ignore-eos",
                             "--max-tokens", "1000000", "--max-len", "2000", "--n-samples", "4096",
                             *MANY, *arguments])
        self.process = subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        end = time.time() + 60
        while True:  # Half a second of work each: the model is loaded in a few milliseconds.
            self.ranks = descendants(self.process.pid)
            if len(self.ranks) == 2 and all(cpu_seconds(rank) > 0.5 for rank in self.ranks):
                break
            if time.time() > end or self.process.poll() is not None:
                self.process.kill()
                raise AssertionError("the run does not begin: " + self.process.communicate()[1])
            time.sleep(0.02)

    def end(self, within_s=30):
        try:
            _, err = self.process.communicate(timeout=within_s)
        finally:
            self.process.kill()
        return self.process.returncode, err


class SameResults(unittest.TestCase):
    def compare_runs(self, ranks, model, prompt, options):
        results = []
        for command in ([PROGRAM], ["mpirun", "-np", str(ranks), PROGRAM]):
            with tempfile.TemporaryDirectory() as folder:
                stats, out = (os.path.join(folder, name) for name in ("stats", "out"))
                done = run([*command, "run", "--model", model, *prompt, *options, "--stats", stats,
                            "--json", out, *(ONE if len(command) == 1 else MANY)])
                result = json.loads(pathlib.Path(out).read_text())
                self.assertEqual(result.pop("ranks", 1), 1 if len(command) == 1 else ranks)
                for sequence in result["sequences"]:
                    sequence.pop("longest_pause_us")
                results.append((done.stdout, without_times(pathlib.Path(stats).read_text()), result))
        self.assertEqual(results[0][0], results[1][0])
        self.assertEqual(results[0][1], results[1][1])
        self.assertEqual(results[0][2], results[1][2])
        return results[0]

    def test_run_of_two_ranks_with_a_copied_kv_head(self):
        _, stats, _ = self.compare_runs(
            2, LONGCOT, ["--file", LONGCOT + "/example.txt"],
            ["--temperature", "0.6", "--seed", "3", "--max-tokens", "400", "--kv", "pm-kvq",
             "--kv-budget", "1MiB", "--n-samples", "2"])
        self.assertTrue(any(line["event"] == "halving" for line in stats))

    def test_run_of_four_ranks(self):
        for weights in ("as-stored", "q8"):
            _, stats, _ = self.compare_runs(
                4 if weights == "as-stored" else 2, TINY,
                ["--prompt-ids", ",".join(str(3 + i % 200) for i in range(300))],
                ["--temperature", "1", "--seed", "3", "--max-tokens", "500", "--ignore-eos", "--kv",
                 "pm-kvq", "--kv-budget", "90001B", "--weights", weights])
            self.assertTrue(any(line["event"] == "halving" for line in stats))

    def test_perplexity_and_logits(self):
        arguments = ["perplexity", "--model", LONGCOT, "--dataset", LONGCOT + "/calibration.jsonl",
                     "--kv", "pm-kvq", "--kv-budget", "1500KiB", "--seq-len", "600", "--n-samples",
                     "1", "--json", "-"]
        one = json.loads(run([PROGRAM, *arguments, *ONE]).stdout)
        two = json.loads(run(mpirun(2, [*arguments, *MANY, "--tp", "2"])).stdout)
        self.assertEqual(two.pop("ranks"), 2)
        self.assertEqual(one, two)

    def test_eval(self):
        arguments = ["eval", "--model", LONGCOT, "--benchmark", "longcot", "--end", "2",
                     "--max-tokens", "200", "--kv", "pm-kvq", "--kv-budget", "1MiB"]
        texts = []
        for command, options in (([PROGRAM], ONE), (["mpirun", "-np", "2", PROGRAM], MANY + ["--tp", "2"])):
            with tempfile.TemporaryDirectory() as folder:
                out = os.path.join(folder, "run")
                run([*command, *arguments, "--out", out, *options])
                lines = (pathlib.Path(out) / "responses.jsonl").read_text().splitlines()
                texts.append(sorted((json.loads(line)["id"], json.loads(line)["text"],
                                     json.loads(line)["peak_bytes"]) for line in lines))
        self.assertTrue(texts[0])
        self.assertEqual(texts[0], texts[1])

    def test_serve(self):
        answers = []
        for command, options in (([PROGRAM], ONE), (["mpirun", "-np", "2", PROGRAM], MANY)):
            port = 18000 + os.getpid() % 2000 + len(answers)
            process = subprocess.Popen([*command, "serve", "--model", LONGCOT, "--port", str(port),
                                        *options], env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            try:
                body = json.dumps({"model": "longcot-10m", "prompt": "Q: 12+7=?", "max_tokens": 40,
                                   "temperature": 0, "seed": 1}).encode()
                request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body,
                                                 {"Content-Type": "application/json"})
                for _ in range(200):
                    try:
                        with urllib.request.urlopen(request, timeout=60) as reply:
                            answers.append(json.load(reply)["choices"][0]["text"])
                            break
                    except OSError:
                        self.assertIsNone(process.poll())
                        time.sleep(0.1)
            finally:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=30)
        self.assertEqual(len(answers), 2)
        self.assertEqual(answers[0], answers[1])

    def test_bench_comm_predicts_a_token(self):
        done = run(mpirun(2, ["bench", "comm", "--model", LONGCOT, "--repeat", "20", "--tokens",
                              "16", "--threads", "1", "--json", "-"]))
        result = json.loads(done.stdout)
        self.assertEqual(result["ranks"], 2)
        self.assertTrue(all(row["sum_us"] > 0 for row in result["exchanges"]))
        self.assertGreater(result["step"]["predicted_ms"], 0)
        self.assertGreater(result["step"]["measured_ms"], 0)


class Plan(unittest.TestCase):
    # Llama-3-70B: what each of 8 GPUs holds.
    CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
              "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
              "num_attention_heads": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
              "rope_theta": 500000.0, "max_position_embeddings": 8192, "hidden_act": "silu",
              "torch_dtype": "bfloat16", "tie_word_embeddings": False}

    def test_a_rank_of_a_model_that_is_not_there(self):
        with tempfile.TemporaryDirectory() as folder:
            config = pathlib.Path(folder) / "config.json"
            config.write_text(json.dumps(self.CONFIG))
            plan = json.loads(run([PROGRAM, "fit", str(config), "--memory", "141GB", "--ranks", "8",
                                   "--device", "cuda", "--json", "-"]).stdout)
            self.assertEqual((plan["ranks"], plan["kv_parts"], plan["kv_copies"]), (8, 8, 1))
            whole = json.loads(run([PROGRAM, "fit", str(config), "--memory", "1000GB", "--json",
                                    "-"]).stdout)
            embedding = 128256 * 8192 * 2
            norms = 161 * 8192 * 4
            self.assertEqual(8 * (plan["weight_bytes"] - embedding - norms),
                             whole["weight_bytes"] - embedding - norms)
            self.expect(run([PROGRAM, "fit", str(config), "--memory", "141GB", "--ranks", "3"],
                            expect=1).stderr, "expected 1 or 2 or 4")

    def expect(self, text, part):
        self.assertIn(part, text)


class Failures(unittest.TestCase):
    def expect_line(self, command, text, environment=ENVIRONMENT):
        done = run(command, environment, expect=None)
        self.assertNotEqual(done.returncode, 0)
        lines = [line for line in done.stderr.splitlines() if line.startswith("pmkvq: ")]
        self.assertEqual(len([line for line in lines if text in line]), 1, done.stderr)

    def test_wrong_numbers_of_ranks(self):
        prompt = ["run", "--model", TINY, "--prompt-ids", "5,6", "--max-tokens", "1", *MANY]
        self.expect_line(mpirun(3, prompt), "found 3 ranks, expected 1 or 2 or 4")
        self.expect_line(mpirun(2, [*prompt, "--kv", "kivi"]), "--kv kivi")
        self.expect_line(mpirun(2, ["run", "--model", str(ROOT / "models/longcot-mla"),
                                    "--prompt-ids", "5,6"]), "latent attention")

    def test_a_missing_plugin_is_one_line_of_every_rank(self):
        done = run(mpirun(2, ["run", "--model", TINY, "--prompt-ids", "5"]),
                   {**ENVIRONMENT, "PMKVQ_MPI_PLUGIN": "/nowhere/libpmkvq_mpi.so"}, expect=None)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("install pmkvq-mpi", done.stderr)
        self.assertEqual(done.stdout.strip().count("\n"), 0, done.stdout)

    def test_one_rank_needs_no_plugin(self):
        environment = {**ENVIRONMENT, "PMKVQ_MPI_PLUGIN": "/nowhere/libpmkvq_mpi.so"}
        run(mpirun(1, ["run", "--model", TINY, "--prompt-ids", "5", "--max-tokens", "1"]), environment)

    def test_mixed_instruction_sets(self):
        arguments = ["run", "--model", TINY, "--prompt-ids", "5", "--max-tokens", "1"]
        command = ["mpirun", "-np", "1", "-x", "PMKVQ_TARGET=SSE4", PROGRAM, *arguments, ":",
                   "-np", "1", PROGRAM, *arguments]
        done = run(command, expect=None)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("expected the same on all", done.stderr)

    def test_a_killed_rank_ends_the_others(self):
        long = Long()
        self.assertEqual(len(long.ranks), 2)
        os.kill(long.ranks[1], signal.SIGKILL)
        code, _ = long.end()
        self.assertNotEqual(code, 0)
        for rank in long.ranks:
            self.assertTrue(ends(rank))

    def test_a_rank_that_hangs_is_named_and_ended(self):
        long = Long("--comm-timeout", "2")
        os.kill(long.ranks[1], signal.SIGSTOP)
        try:
            self.assertTrue(ends(long.ranks[0], within_s=30))
        finally:  # mpirun may wait for a rank that is stopped.
            os.kill(long.ranks[1], signal.SIGCONT)
        code, err = long.end()
        self.assertTrue(ends(long.ranks[1]))
        self.assertNotEqual(code, 0)
        self.assertIn("rank 0 of 2", err)
        self.assertIn("waits for another rank", err)

    def test_ctrl_c_stops_all_ranks_together(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            long = Long()
            long.process.send_signal(number)
            code, err = long.end()
            self.assertNotEqual(code, 0)
            for rank in long.ranks:
                self.assertTrue(ends(rank))
            self.assertNotIn("diverged", err)


if __name__ == "__main__":
    if shutil.which("mpirun") is None or not PLUGIN.exists():
        print("skipped: no mpirun, or a build without the MPI plugin (openmpi-bin, libopenmpi-dev)")
        sys.exit(77)
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]], verbosity=2)
