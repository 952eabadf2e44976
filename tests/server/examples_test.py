#!/usr/bin/env python3
"""Runs what examples/ has, and `pmkvq chat`, against a server. Usage: examples_test.py PROGRAM MODEL [TEST...]

Parts whose programs are missing (curl, node, systemd-analyze, promtool) are skipped and said.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import unittest

from served import KEY, PROGRAM, QUESTION, ServedTest, chat, main

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../examples")
ANSWER = "103, 156, 406, 697"


def needs(program):
    return unittest.skipIf(shutil.which(program) is None, f"{program} is not installed")


class Clients(ServedTest):
    options = ("--reasoning", "on", "--kv-mode", "pool", "--kv-pool", "16MiB")  # All metrics that there are.
    server_env = {"PMKVQ_API_KEY": KEY}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.url = f"http://127.0.0.1:{cls.server.port}"
        cls.env = {**os.environ, "PMKVQ_URL": cls.url, "PMKVQ_KEY": KEY}

    def output(self, *command, text=None, code=0, **env):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, input=text, env={**self.env, **env})
        self.assertEqual(done.returncode, code, done.stderr)
        self.stderr = done.stderr
        return done.stdout

    @needs("curl")
    def test_curl(self):
        text = self.output(EXAMPLES + "/chat.sh", QUESTION)
        whole, stream = text.split("\n", 1)
        self.assertIn(ANSWER, json.loads(whole)["choices"][0]["message"]["content"])
        self.assertTrue(stream.rstrip().endswith("data: [DONE]"))

    def test_python(self):
        self.assertIn(ANSWER, self.output(sys.executable, EXAMPLES + "/chat.py", QUESTION))
        self.assertIn("bits a value", self.stderr)

    def test_openai(self):
        try:
            import openai  # noqa: F401
        except ImportError:
            self.skipTest("openai is not installed; ./run test-server has it")
        text = self.output(sys.executable, EXAMPLES + "/chat_openai.py", QUESTION)
        self.assertIn(ANSWER, text)
        self.assertIn("number_count=", text)

    @needs("node")
    def test_javascript(self):
        if int(self.output("node", "--version").strip("v\n").split(".")[0]) < 20:
            self.skipTest("node is older than 20")
        self.assertIn(ANSWER, self.output("node", EXAMPLES + "/chat.mjs", QUESTION))

    def test_chat_command(self):
        command = [PROGRAM, "chat", "--url", self.url + "/v1", "--temperature", "0", "--max-tokens", "400"]
        text = self.output(*command, QUESTION, OPENAI_API_KEY=KEY)
        self.assertIn(ANSWER, text)
        self.assertRegex(self.stderr, r"\[stop\] \d+ tokens")
        hidden = self.output(*command, "--hide-reasoning", "--api-key", KEY, QUESTION)
        self.assertLess(len(hidden), len(text))
        self.assertTrue(text.endswith("\n\n" + hidden))
        _, reply = self.server.post("/v1/chat/completions", chat(), headers={"X-Api-Key": KEY})
        self.assertEqual(hidden.rstrip("\n"), reply["choices"][0]["message"]["content"].rstrip("\n"))
        # A conversation: the second message is answered with the first one before it.
        typed = QUESTION + "\n/clear\n" + QUESTION + "\n"
        both = self.output(*command, "--hide-reasoning", "--api-key", KEY, text=typed)
        self.assertEqual(both.count(ANSWER), 2)

    def test_chat_errors_are_one_line(self):
        for arguments, code, word in [(["--url", self.url + "/v1", "--api-key", "wrong", "x"], 1, "API key"),
                                      (["--url", self.url + "/v1", "--api-key", KEY, "--model", "other", "x"], 1, "model"),
                                      (["--url", "http://127.0.0.1:1/v1", "x"], 1, "cannot be connected"),
                                      (["--url", "ftp://x", "x"], 1, "--url"), (["--url", self.url.replace("http", "https"), "x"], 1, "TLS"),
                                      (["x"], 2, "--url")]:
            self.output(PROGRAM, "chat", *arguments, code=code, OPENAI_API_KEY="")
            self.assertIn(word, self.stderr)
            self.assertLessEqual(len(self.stderr.strip().splitlines()), 2, self.stderr)

    def test_dashboard(self):
        self.server.post("/v1/chat/completions", chat(max_tokens=3), headers={"X-Api-Key": KEY})
        _, text = self.server.get("/metrics", headers={"X-Api-Key": KEY})
        known = set(re.findall(r"^([a-z_]+)[ {]", text, re.M))
        with open(EXAMPLES + "/grafana.json") as file:
            dashboard = json.load(file)
        names = set()
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                found = set(re.findall(r"\bpmkvq_[a-z_]+", target["expr"]))
                self.assertTrue(found, target)
                names |= found
                for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]) + re.findall(r"by \((\w+)\)", target["expr"]):
                    self.assertRegex(text, rf"(?m)^{next(iter(found))}\{{.*\b{label}=", (target, label))
        self.assertEqual(names - known, set())
        self.assertGreater(len(names), 20)
        of_pool = set(re.findall(r"pmkvq_kv_(?:water|expected|peak|halved_bytes)[a-z_]+", text))
        self.assertEqual(of_pool - names, set(), "metrics of the pool without a panel")
        self.assertEqual(len({panel["id"] for panel in dashboard["panels"]}), len(dashboard["panels"]))

    @needs("promtool")
    def test_metrics_are_well_formed(self):
        _, text = self.server.get("/metrics", headers={"X-Api-Key": KEY})
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))


class Files(unittest.TestCase):
    @needs("systemd-analyze")
    def test_unit(self):
        with open(EXAMPLES + "/pmkvq.service") as file:
            unit = file.read()
        path = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"pmkvq-{os.getpid()}.service")
        with open(path, "w") as file:  # The program where it is, since the check looks for it.
            file.write(unit.replace("/usr/local/bin/pmkvq", os.path.abspath(PROGRAM)))
        try:
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True)
        finally:
            os.remove(path)
        complaints = [line for line in done.stderr.splitlines() if "pmkvq" in line]
        self.assertEqual(complaints, [], done.stderr)

    def test_unit_and_image_use_options_that_exist(self):
        help_text = subprocess.run([PROGRAM, "serve", "--help"], capture_output=True, text=True, check=True).stdout
        for name in ["pmkvq.service", "Containerfile"]:
            with open(os.path.join(EXAMPLES, name)) as file:
                text = file.read()
            command = text[text.index("ExecStart="):text.index("ExecReload")] if name == "pmkvq.service" else text[text.index("ENTRYPOINT"):]
            for option in set(re.findall(r"--[a-z-]+", command)) - {"--help"}:
                self.assertIn(option, help_text, name)
        self.assertRegex(text, r"(?m)^USER \d+")
        self.assertEqual(len(re.findall(r"(?m)^FROM ", text)), 2)


if __name__ == "__main__":
    main()
