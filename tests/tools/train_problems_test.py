"""tools/train: traces equal the published ones, sizes have the recipe's means, tokens equal the tokenizer's. Called with ROOT."""
import json
import os
import sys
import unittest

ROOT = sys.argv.pop(1)
sys.path.insert(0, os.path.join(ROOT, "tools", "train"))
import problems  # noqa: E402
import tokens  # noqa: E402

MODEL = os.path.join(ROOT, "models", "longcot-10m")


def rows_of(name):
    with open(os.path.join(MODEL, name), encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


class Problems(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.rows = rows_of("problems.jsonl")
        cls.tokens = tokens.Tokens(os.path.join(MODEL, "tokenizer.json"))
        cls.exclude = problems.published(MODEL)

    def again(self, text):
        task = problems.TASKS[problems.task_of(text)]
        problem = task.parse(text)
        self.assertEqual(task.text(problem), text)
        return task.solve(problem)

    def test_traces_are_those_of_the_published_problems(self):
        self.assertEqual(len(self.rows), 870)
        for row in self.rows:
            self.assertEqual(problems.task_of(row["problem"]), row["task"])
            self.assertEqual(self.again(row["problem"]), (row["reference_chain"], row["answer"]), row["id"])

    def test_calibration_texts_are_whole(self):
        rows = rows_of("calibration.jsonl")
        self.assertGreater(len(rows), 300)
        for row in rows:
            text = row["text"].split("user\n", 1)[1].split("<|im_end|>", 1)[0]
            self.assertIn(text, self.exclude)
            self.assertEqual(problems.prompt_text(text) + problems.reply_text(*self.again(text)), row["text"])

    def test_fresh_problems_read_back(self):
        draw = problems.Generator(1, "train", "test", self.exclude)
        for task, level in problems.CELLS:
            for _ in range(5):
                text, trace, answer = draw.draw(task, level)
                self.assertEqual(self.again(text), (trace, answer))

    def test_means_are_those_of_the_published_cells(self):
        draw = problems.Generator(2, "train", "test", self.exclude)

        def reply_length(trace, answer):
            return len(self.tokens.encode(problems.reply_text(trace, answer)))

        for task, level in problems.CELLS:
            mine = [r for r in self.rows if (r["task"], r["level"]) == (task, level)]
            want = sum(reply_length(r["reference_chain"], r["answer"]) for r in mine) / len(mine)
            got = sum(reply_length(*draw.draw(task, level)[1:]) for _ in range(120)) / 120
            self.assertLess(abs(got / want - 1), 0.10, f"{task} {level}: {got:.0f} tokens, published {want:.0f}")

    def test_split_by_residue_and_by_text(self):
        pairs = [problems.parse_multiply(r["problem"]) for r in self.rows if r["task"] == "multiply"]
        self.assertTrue(all(problems.is_held_out_pair(*pair) for pair in pairs))
        for split in ("train", "held-out"):
            draw = problems.Generator(3, split, "test", self.exclude)
            for _ in range(100):
                pair = problems.parse_multiply(draw.draw("multiply", 1)[0])
                self.assertEqual(problems.is_held_out_pair(*pair), split == "held-out")
        first = problems.Generator(4, "train", "0", set()).draw("ledger", 1)
        self.assertEqual(problems.Generator(4, "train", "0", set()).draw("ledger", 1), first)
        self.assertNotEqual(problems.Generator(4, "train", "0", {first[0]}).draw("ledger", 1)[0], first[0])
        self.assertNotEqual(problems.Generator(4, "held-out", "0", set()).draw("ledger", 1), first)

    def test_tokens_are_those_of_the_tokenizer(self):
        try:
            from tokenizers import Tokenizer
        except ImportError:
            self.skipTest("no tokenizers package")
        reference = Tokenizer.from_file(os.path.join(MODEL, "tokenizer.json"))
        draw = problems.Generator(5, "train", "test", set())
        for task, level in problems.CELLS:
            text, trace, answer = draw.draw(task, level)
            whole = problems.prompt_text(text, level % 2 == 0) + problems.reply_text(trace, answer)
            ids = self.tokens.encode(whole)
            self.assertEqual(ids, reference.encode(whole).ids)
            self.assertEqual(self.tokens.decode(ids), whole)


if __name__ == "__main__":
    unittest.main()
