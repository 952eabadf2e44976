#!/usr/bin/env python3
"""`pmkvq serve --config FILE`: options from a file, and the command line above them.

Usage: config_test.py PROGRAM MODEL [TEST...]. Python's standard library only.
"""
import json
import os
import subprocess
import tempfile
import unittest

from served import FILES, KEY, MODEL, PROGRAM, Server, main


def config(name="config.json", **options):
    """A file with these options; _ stands for - in names."""
    path = os.path.join(FILES.name, name)
    with open(path, "w") as file:
        json.dump({option.replace("_", "-"): value for option, value in options.items()}, file)
    return path


class Configuration(unittest.TestCase):
    def test_a_server_from_a_file_alone(self):
        keys = os.path.join(FILES.name, "keys")
        with open(keys, "w") as file:
            file.write(KEY + "\n")
        path = config(model=MODEL, port=0, kv="pm-kvq", kv_mode="pool", kv_pool="24MiB", kv_target=6.5, kv_floor=4, priorities=True,
                      max_len=1024, max_sequences=3, threads=1, served_model_name="from-file", no_ui=True, strict=False,
                      api_key_file=keys, max_body=1 << 20)
        with FromFile(path) as server:
            key = {"Authorization": "Bearer " + KEY}
            self.assertEqual(server.get("/v1/models")[0], 401)
            _, text = server.get("/v1/models", headers=key)
            model = json.loads(text)["data"][0]
            self.assertEqual((model["id"], model["max_model_len"]), ("from-file", 1024))
            self.assertEqual(server.get("/")[0], 404)
            self.assertEqual(json.loads(server.get("/props", headers=key)[1])["total_slots"], 3)
            status, reply = server.post("/v1/completions", {"prompt": "Sort", "max_tokens": 2, "priority": 5, "no_such_field": 1},
                                        headers=key)
            self.assertEqual(status, 200, reply)

    def test_the_command_line_wins(self):
        path = config(served_model_name="from-file", no_ui=True, max_len=512, port=1)
        with Server("--config", path, "--served-model-name", "from-line", "--no-ui=false") as server:
            model = json.loads(server.get("/v1/models")[1])["data"][0]
            self.assertEqual((model["id"], model["max_model_len"]), ("from-line", 2048))
            self.assertEqual(server.get("/")[0], 200)

    def test_names_of_files_are_relative_to_the_working_directory(self):
        with tempfile.TemporaryDirectory() as folder:
            path = config(model=os.path.abspath(MODEL), api_key_file="keys")
            run = subprocess.run([os.path.abspath(PROGRAM), "serve", "--config", path], cwd=folder, capture_output=True, text=True)
            self.assertEqual(run.returncode, 1)
            self.assertIn("[keys] no such file", run.stderr)

    def test_faults_are_one_line_and_wrong_usage(self):
        for options, expected in [({"port": "80"}, "port: found \"80\", expected a number"),
                                  ({"kv_pol": "1GiB"}, "found the name \"kv-pol\", expected options of serve"),
                                  ({"priorities": None}, "priorities: found null, expected true or false"),
                                  ({"config": "other.json"}, "config: found \"other.json\", expected no"),
                                  ({"kv": "nope"}, "kv: unknown method 'nope'"),
                                  ({"max_body": "4QiB"}, "max-body: found '4QiB'")]:
            path = config(model=MODEL, **options)
            run = subprocess.run([PROGRAM, "serve", "--config", path], capture_output=True, text=True)
            self.assertEqual(run.returncode, 2, run.stderr)
            self.assertIn(f"[{path}] {expected}", run.stderr)
            self.assertEqual(run.stderr.count("\n"), 1)


class FromFile(Server):
    """A server whose only option is its file."""

    def __init__(self, path):
        super().__init__(command=[PROGRAM, "serve", "--config", path], tls=None)


if __name__ == "__main__":
    main()
