"""The GGUF file that write_gguf.py makes is the same model: same text, same token ids. Called with PROGRAM MODEL [TEST...]."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import write_gguf

PROGRAM, MODEL = sys.argv[1], sys.argv[2]
QUESTION = "Sort these 04 numbers from small to large with merge sort: 697, 103, 406, 156. What is the sorted list?"


def output(*arguments):
    return subprocess.run([PROGRAM, *arguments], check=True, capture_output=True, text=True).stdout


class WriteGgufTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.file = os.path.join(cls.folder.name, "model.gguf")
        write_gguf.write(MODEL, cls.file)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_text(self):
        texts = [output("run", "--model", model, "--temperature", "0", "--kv", "fp16", QUESTION) for model in (MODEL, self.file)]
        self.assertIn("\\boxed{", texts[0])
        self.assertEqual(*texts)

    def test_token_ids(self):
        text = "<|im_start|>user\nSort 12 numbers.<|im_end|>\n<think>\n<|endoftext|>"
        self.assertEqual(*(output("tokenize", "--parse-special", "--model", model, text) for model in (MODEL, self.file)))

    def test_half_precision(self):
        halves = os.path.join(self.folder.name, "halves.gguf")
        write_gguf.write(MODEL, halves, "f16")
        texts = [output("run", "--model", model, "--temperature", "0", "--kv", "fp16", QUESTION) for model in (MODEL, halves)]
        self.assertEqual(*texts)

    def test_another_architecture_is_refused(self):
        folder = pathlib.Path(self.folder.name) / "other"
        folder.mkdir()
        config = json.loads((pathlib.Path(MODEL) / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
        with self.assertRaisesRegex(SystemExit, "expected model_type qwen2"):
            write_gguf.write(folder, os.path.join(self.folder.name, "other.gguf"))
        self.assertFalse(os.path.exists(os.path.join(self.folder.name, "other.gguf")))


unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
