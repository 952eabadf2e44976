#!/usr/bin/env python3
"""/v1/completions as lm-eval's local-completions uses it: echo, log-probabilities of prompts, lists of prompts.

Usage: completions_test.py PROGRAM MODEL [TEST...]. Python's standard library only.
"""
import json
import subprocess

from served import MODEL, PROGRAM, QUESTION, ServedTest, chat, main

# As `pmkvq run` starts the engine that is compared with.
SAME = ["--kv", "pm-kvq", "--kv-budget", "4MiB", "--max-len", "2048", "--threads", "2"]


class Echo(ServedTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prompt = cls.post("/apply-template", messages=[{"role": "user", "content": QUESTION}])["prompt"]
        cls.ids = cls.post("/tokenize", prompt=cls.prompt)["tokens"]

    @classmethod
    def post(cls, path, **fields):
        status, reply = cls.server.post(path, fields)
        assert status == 200, reply
        return reply

    def complete(self, **fields):
        return self.post("/v1/completions", **{"temperature": 0, "max_tokens": 1, **fields})

    def test_log_likelihood_is_that_of_run(self):
        reply = self.complete(prompt=self.prompt, logprobs=1, echo=True)["choices"][0]
        found = reply["logprobs"]
        run = subprocess.run([PROGRAM, "run", "--model", MODEL, "--temperature", "0", *SAME, "--json", "-", "--logprobs", "1",
                              "--prompt-logprobs", "1", "--max-tokens", "1", QUESTION], capture_output=True, text=True, check=True)
        sequence = json.loads(run.stdout)["sequences"][0]
        self.assertEqual(sequence["prompt_ids"], self.ids)
        expected = [None] + [one["logprob"] for one in sequence["prompt_logprobs"] if one] + [sequence["logprobs"][0]["logprob"]]
        self.assertEqual(len(expected), len(self.ids) + 1)
        self.assertEqual(found["token_logprobs"], expected)
        self.assertEqual(reply["finish_reason"], "length")

    def test_shape(self):
        whole = self.complete(prompt=self.prompt, logprobs=3, echo=True, max_tokens=6)
        choice, logprobs = whole["choices"][0], whole["choices"][0]["logprobs"]
        count = len(self.ids) + 6
        self.assertEqual({len(logprobs[key]) for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"]}, {count})
        self.assertIsNone(logprobs["token_logprobs"][0])
        self.assertIsNone(logprobs["top_logprobs"][0])
        self.assertTrue(choice["text"].startswith(self.prompt))
        self.assertEqual("".join(logprobs["tokens"]), choice["text"])
        for token, value, top, offset in list(zip(*[logprobs[key] for key in [
                "tokens", "token_logprobs", "top_logprobs", "text_offset"]]))[1:]:
            self.assertEqual(choice["text"][offset:offset + len(token)], token)
            self.assertEqual(top[token], value)
            self.assertIn(len(top), [1, 2, 3, 4])
            self.assertLessEqual(value, max(top.values()))
        drawn = logprobs["token_logprobs"][-6:]
        self.assertEqual(drawn, [max(top.values()) for top in logprobs["top_logprobs"][-6:]], "greedy draws the likeliest")
        self.assertEqual(whole["usage"]["prompt_tokens"], len(self.ids))
        self.assertEqual(whole["usage"]["completion_tokens"], 6)

    def test_ids_and_text_say_the_same(self):
        text = self.complete(prompt=self.prompt, logprobs=2, echo=True)
        ids = self.complete(prompt=self.ids, logprobs=2, echo=True)
        self.assertEqual(text["choices"], ids["choices"])
        several = self.complete(prompt=[self.ids, self.ids[:20], self.ids[:7]], logprobs=2, echo=True)
        self.assertEqual(several["choices"][0], text["choices"][0])
        self.assertEqual([c["index"] for c in several["choices"]], [0, 1, 2])
        for choice, length in zip(several["choices"][1:], [20, 7]):
            # Prompts of other lengths are multiplied in other slices, whose sums round differently.
            for short, long in zip(choice["logprobs"]["token_logprobs"][1:length], text["choices"][0]["logprobs"]["token_logprobs"][1:]):
                self.assertAlmostEqual(short, long, delta=0.01)

    def test_no_tokens_are_drawn_for_max_tokens_0(self):
        for logprobs in [None, 1]:
            reply = self.complete(prompt=self.prompt, echo=True, max_tokens=0, logprobs=logprobs)
            choice = reply["choices"][0]
            self.assertEqual(choice["text"], self.prompt)
            self.assertEqual(choice["finish_reason"], "length")
            self.assertEqual(reply["usage"]["completion_tokens"], 0)
            if logprobs is None:
                self.assertIsNone(choice["logprobs"])
            else:
                self.assertEqual(len(choice["logprobs"]["tokens"]), len(self.ids))
        events = self.server.stream("/v1/completions", {"prompt": "x", "echo": True, "max_tokens": 0})
        self.assertEqual("".join(e["choices"][0]["text"] for e in events), "x")
        self.assertEqual(events[-1]["choices"][0]["finish_reason"], "length")

    def test_streams_and_samples(self):
        fields = {"prompt": [self.prompt, "\u00e9\u4e2d x"], "n": 2, "echo": True, "logprobs": 1, "max_tokens": 5,
                  "temperature": 1, "seed": 3}
        whole = self.complete(**fields)
        events = self.server.stream("/v1/completions", fields)
        for choice in whole["choices"]:
            mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
            self.assertEqual("".join(one["text"] for one in mine), choice["text"])
            for key in ["tokens", "token_logprobs", "text_offset"]:
                self.assertEqual([x for one in mine if one["logprobs"] for x in one["logprobs"][key]], choice["logprobs"][key])
        self.assertTrue(whole["choices"][3]["text"].startswith("\u00e9\u4e2d x"))

    def test_echo_without_logprobs(self):
        plain = self.complete(prompt=self.prompt, max_tokens=9)["choices"][0]
        echoed = self.complete(prompt=self.prompt, max_tokens=9, echo=True)["choices"][0]
        self.assertEqual(echoed["text"], self.prompt + plain["text"])
        self.assertIsNone(echoed["logprobs"])

    def test_prompt_logprobs(self):
        echoed = self.complete(prompt=self.prompt, logprobs=2, echo=True)["choices"][0]["logprobs"]
        for found in [self.complete(prompt=self.prompt, prompt_logprobs=2)["choices"][0],
                      self.post("/v1/chat/completions", **chat(max_tokens=1, prompt_logprobs=2))]:
            entries = found["prompt_logprobs"]
            self.assertIsNone(entries[0])
            self.assertEqual([entry[str(i)]["logprob"] for i, entry in zip(self.ids[1:], entries[1:])],
                             echoed["token_logprobs"][1:len(self.ids)])
            for entry in entries[1:]:
                self.assertEqual(sorted(one["rank"] for one in entry.values() if "rank" in one), [1, 2])

    def test_refusals(self):
        for fields, param in [({"max_tokens": 0}, "max_tokens"), ({"logprobs": 21, "echo": True}, "logprobs"),
                              ({"echo": "yes"}, "echo"), ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs")]:
            status, reply = self.server.post("/v1/completions", {"prompt": "x", **fields})
            self.assertEqual((status, reply["error"]["param"]), (400, param))


if __name__ == "__main__":
    main()
