#!/usr/bin/env python3
"""The failure of one request of `pmkvq serve` is that request's only: a model with one broken weight.

Usage: isolation_test.py PROGRAM MODEL [TEST...]. Python's standard library only.
"""
import concurrent.futures
import json
import os
import shutil
import struct
import tempfile
import unittest

import served
from served import Server, main, wait_until

BROKEN_TOKEN = 300
SOUND = served.MODEL


def break_token(source, target):
    """A copy of the model whose embedding of one token is not a number. The output head is a tensor of its own there."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.jsonl"))
    with open(target + "/model.safetensors.index.json") as file:
        index = json.load(file)
    name = "model.embed_tokens.weight"
    with open(os.path.join(target, index["weight_map"][name]), "r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        table = json.loads(file.read(size))[name]
        assert table["dtype"] == "BF16", table
        begin, end = table["data_offsets"]
        file.seek(8 + size + begin)
        sound = file.read(end - begin)
        row = 2 * table["shape"][1]
        file.seek(8 + size + begin + BROKEN_TOKEN * row)
        file.write(b"\xc0\x7f" * (row // 2))  # NaN
    text = json.dumps({"lm_head.weight": {**table, "data_offsets": [0, len(sound)]}}).encode()
    text += b" " * (-len(text) % 8)
    with open(target + "/head.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + sound)
    index["weight_map"]["lm_head.weight"] = "head.safetensors"
    with open(target + "/model.safetensors.index.json", "w") as file:
        json.dump(index, file)
    with open(target + "/config.json") as file:
        config = json.load(file)
    config["tie_word_embeddings"] = False
    with open(target + "/config.json", "w") as file:
        json.dump(config, file)


class BrokenWeight(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        broken = os.path.join(cls.folder.name, "broken")
        break_token(SOUND, broken)
        served.MODEL = broken
        cls.modes = [("--max-sequences", "8"),
                     ("--max-sequences", "8", "--kv-mode", "pool", "--kv-pool", "32MiB")]

    @classmethod
    def tearDownClass(cls):
        served.MODEL = SOUND
        cls.folder.cleanup()

    def test_seven_texts_are_as_without_it(self):
        bodies = [{"prompt": [10 + i] * 5, "max_tokens": 200, "ignore_eos": True, "seed": i, "temperature": 1} for i in range(7)]
        broken = {"prompt": [5] * 40 + [BROKEN_TOKEN], "max_tokens": 200, "ignore_eos": True}
        for options in self.modes:
            with self.subTest(options), Server(*options) as server:
                alone = [server.post("/v1/completions", body) for body in bodies]
                self.assertEqual([status for status, _ in alone], [200] * 7)
                with concurrent.futures.ThreadPoolExecutor(10) as clients:
                    beside = [clients.submit(server.post, "/v1/completions", body) for body in bodies]
                    failed = [clients.submit(server.post, "/v1/completions", broken) for _ in range(3)]
                    beside = [one.result() for one in beside]
                    failed = [one.result() for one in failed]
                for (_, reply), (status, other) in zip(alone, beside):
                    self.assertEqual((status, other.get("choices")), (200, reply["choices"]))
                for status, reply in failed:
                    self.assertEqual((status, reply["error"]["type"], reply["error"]["code"]), (500, "server_error", "numeric_error"), reply)
                streamed, text = server.request("POST", "/v1/completions", {**broken, "stream": True})
                self.assertEqual((streamed.status, json.loads(text)["error"]["code"]), (500, "numeric_error"))
                wait_until(lambda: any(streamed.getheader("X-Request-Id") in line for line in list(server.lines)))
                log = "".join(server.lines)
                self.assertIn('"event":"numeric_error"', log)
                self.assertIn("not finite", log)
                self.assertIn(streamed.getheader("X-Request-Id"), log)
                self.assertIn(streamed.getheader("X-Request-Id"), json.loads(text)["error"]["message"])
                server.wait_for_metric("pmkvq_kv_used_bytes", 0)
                self.assertEqual(server.get("/health")[0], 200)


if __name__ == "__main__":
    main()
