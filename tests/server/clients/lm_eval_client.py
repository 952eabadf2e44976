#!/usr/bin/env python3
"""lm-eval's local-completions against `pmkvq serve`: 200 multiple-choice and 50 generation items from local files.

Usage: lm_eval_client.py PROGRAM MODEL. Checks that every log-likelihood and every generation is that of `pmkvq run`.
"""
import glob
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from served import MODEL, PROGRAM, Server

OPTIONS = ["--kv", "pm-kvq", "--kv-budget", "4MiB", "--max-len", "2048", "--threads", "2"]
BUDGET = 300  # Tokens of a generation.
TASKS = {"sort_choice": """task: sort_choice
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}]
""", "sort_text": f"""task: sort_text
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["</think>"], max_gen_toks: {BUDGET}, temperature: 0}}
metric_list: [{{metric: exact_match}}]
"""}


def items(count):
    """Prompts in the model's own words, and two lines that may come next."""
    rng = random.Random(1)
    for _ in range(count):
        numbers = rng.sample(range(100, 1000), 4)
        question = f"Sort these 04 numbers from small to large with merge sort: {', '.join(map(str, numbers))}. What is the sorted list?"
        # No white space at the end: lm-eval would count it as the choices'.
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>"
        lines = [numbers, sorted(numbers, reverse=True)]
        yield {"prompt": prompt, "choices": ["\n" + ", ".join(map(str, line)) for line in lines]}


def run(prompt_ids, *options):
    done = subprocess.run([PROGRAM, "run", "--model", MODEL, "--temperature", "0", *OPTIONS, "--json", "-", *options,
                           "--prompt-ids", ",".join(map(str, prompt_ids))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["sequences"][0]


class LmEval(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.folder = tempfile.TemporaryDirectory()
        for name, count in [("sort_choice", 200), ("sort_text", 50)]:
            data = os.path.join(cls.folder.name, name + ".jsonl")
            with open(data, "w") as file:
                file.writelines(json.dumps(item) + "\n" for item in items(count))
            with open(os.path.join(cls.folder.name, name + ".yaml"), "w") as file:
                file.write(TASKS[name] + "dataset_path: json\ntest_split: test\ndataset_kwargs:\n  data_files:\n    test: " + data + "\n")

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()
        cls.folder.cleanup()

    def evaluate(self, task, batch, ids):
        out = os.path.join(self.folder.name, f"{task}-{batch}-{ids}")
        arguments = (f"model=longcot-10m,base_url=http://127.0.0.1:{self.server.port}/v1/completions,tokenizer_backend=remote,"
                     f"num_concurrent=1,tokenized_requests={ids},max_length=2048")
        done = subprocess.run([sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments,
                               "--tasks", task, "--include_path", self.folder.name, "--batch_size", str(batch),
                               "--output_path", out, "--log_samples"], capture_output=True, text=True,
                              env={**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": self.folder.name})
        self.assertEqual(done.returncode, 0, done.stderr[-4000:])
        (path,) = glob.glob(out + "/**/samples_*.jsonl", recursive=True)
        with open(path) as file:
            return sorted((json.loads(line) for line in file), key=lambda sample: sample["doc_id"])

    def encode(self, text):
        return self.server.post("/tokenize", {"prompt": text, "add_special_tokens": False})[1]["tokens"]

    def test_multiple_choice(self):
        found = [[(float(r[0][0]), str(r[0][1]) == "True") for r in s["resps"]]
                 for s in self.evaluate("sort_choice", 1, "True")]
        for batch, ids in [(8, "True"), (1, "False")]:
            again = [[(float(r[0][0]), str(r[0][1]) == "True") for r in s["resps"]] for s in self.evaluate("sort_choice", batch, ids)]
            self.assertEqual(again, found, "batches, text and ids give the same")
        self.assertEqual(len(found), 200)
        worst = 0.0
        for item, choices in zip(items(200), found):
            context = self.encode(item["prompt"])
            for choice, (value, is_greedy) in zip(item["choices"], choices):
                whole = self.encode(item["prompt"] + choice)
                entries = run(whole, "--prompt-logprobs", "1", "--max-tokens", "1")["prompt_logprobs"][len(context) - len(whole):]
                worst = max(worst, abs(value - sum(one["logprob"] for one in entries)))
                self.assertEqual(is_greedy, all(one["logprob"] == one["top"][0]["logprob"] for one in entries))
        print(f"400 log-likelihoods: the largest difference to `pmkvq run` is {worst:.2g}")
        self.assertLessEqual(worst, 1e-4)

    def test_generation(self):
        texts = [s["resps"][0][0] for s in self.evaluate("sort_text", 1, "False")]
        self.assertEqual(texts, [s["resps"][0][0] for s in self.evaluate("sort_text", 8, "False")])
        for item, text in zip(items(50), texts):
            self.assertEqual(text, run(self.encode(item["prompt"]), "--stop", "</think>", "--max-tokens", str(BUDGET))["text"])
        print(f"{len(texts)} generations are those of `pmkvq run`")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=1)
