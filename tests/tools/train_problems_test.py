"""tools/train: traces equal the published ones, sizes have the recipe's means, tokens equal the tokenizer's. Called with ROOT."""
import argparse
import json
import os
import sys
import unittest

ROOT = sys.argv.pop(1)
sys.path.insert(0, os.path.join(ROOT, "tools", "train"))
import problems  # noqa: E402
import tokens  # noqa: E402
import write_problems  # noqa: E402

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

        for task, level in problems.CELLS[: problems.SHORT_CELLS]:
            mine = [r for r in self.rows if (r["task"], r["level"]) == (task, level)]
            want = sum(reply_length(r["reference_chain"], r["answer"]) for r in mine) / len(mine)
            got = sum(reply_length(*draw.draw(task, level)[1:]) for _ in range(120)) / 120
            self.assertLess(abs(got / want - 1), 0.10, f"{task} {level}: {got:.0f} tokens, published {want:.0f}")

    def test_lengths_of_the_long_cells(self):
        """Every problem fits 32,768 positions; levels 7 to 10 follow one another in length."""
        draw = problems.Generator(6, "held-out", "test", self.exclude)
        for task, (low, high) in problems.LONG_LEVELS.items():
            means = []
            for level in range(low, high + 1):
                texts = [draw.draw(task, level) for _ in range(12)]
                wholes = [problems.prompt_text(t, True) + problems.reply_text(trace, a) for t, trace, a in texts]
                lengths = [len(self.tokens.encode(whole)) for whole in wholes]
                self.assertLess(max(lengths), 32768, f"{task} {level}")
                means.append(sum(lengths) / len(lengths))
            self.assertEqual(sorted(means), means, task)
            self.assertGreater(means[-1], 24000, task)

    def test_longest_problems_fit(self):
        """The worst of each task: widest numbers, most steps."""
        rows, top = [(9, 999)] * 10, problems.LAST_LEVEL - 1
        worst = {
            "chain": (999, rows, problems.CHAIN_STEPS[top][1]),
            "registers": ([99] * 8, [("minus", 0, 1)] * 5, problems.REGISTER_LINES[top][1] // 5),
            "multiply": (10 ** problems.MULTIPLY_DIGITS[top][-1][0] - 1, 10 ** problems.MULTIPLY_DIGITS[top][-1][1] - 1),
            "sort": list(range(problems.SORT_NUMBERS[top][1]))[::-1],
            "ledger": ([1] * 8, [(i - 1, "-", i - 2) for i in range(9, 9 + problems.LEDGER_COMPUTED[top][1])]),
        }
        for task, problem in worst.items():
            text = problems.TASKS[task].text(problem)
            self.assertEqual(problems.TASKS[task].parse(text), problem, task)
            whole = problems.prompt_text(text, True) + problems.reply_text(*problems.TASKS[task].solve(problem))
            self.assertLess(len(self.tokens.encode(whole)), 32768, task)

    def test_problems_of_wanted_lengths(self):
        """Lengths are kept, equal options give equal rows, and multiply pairs are held-out ones."""
        options = argparse.Namespace(lengths=[1024, 8192], per_cell=2, tasks=list(problems.LEVELS), seed=9, split="held-out")
        rows = list(write_problems.rows_of(options))
        self.assertEqual(len({row["problem"] for row in rows}), 2 * 2 * len(problems.LEVELS))
        for row in rows:
            self.assertEqual(self.again(row["problem"]), (row["reference_chain"], row["answer"]), row["id"])
            whole = problems.prompt_text(row["problem"]) + problems.reply_text(row["reference_chain"], row["answer"])
            self.assertLess(abs(len(self.tokens.encode(whole)) / (1024 * row["level"]) - 1), 0.08, row["id"])
        pairs = [problems.parse_multiply(row["problem"]) for row in rows if row["task"] == "multiply"]
        self.assertTrue(all(problems.is_held_out_pair(*pair) for pair in pairs))
        self.assertEqual(list(write_problems.rows_of(options)), rows)
        options.lengths = [10]
        with self.assertRaises(SystemExit):
            list(write_problems.rows_of(options))

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
