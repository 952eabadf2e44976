"""--prefix-cache: prompts of a pool that begin alike are computed once, for each API key."""
import json
import os
import subprocess
import time
import unittest

from served import FILES, KEY, MODEL, PROGRAM, Server, ServedTest, chat, main

NUMBERS = ", ".join(str(100 + 7 * i) for i in range(60))
QUESTION = f"Sort these 60 numbers from small to large with merge sort: {NUMBERS}. What is the sorted list?"
POOL = ("--kv-mode", "pool", "--kv-pool", "64MiB", "--chunk", "128")


def ask(text=QUESTION, **fields):
    return {"messages": [{"role": "user", "content": text}], "temperature": 1, "seed": 3, "max_tokens": 40, **fields}


def cached(reply):
    return reply["usage"]["prompt_tokens_details"]["cached_tokens"]


class Prefix(ServedTest):
    options = POOL

    def text(self, body, **more):
        status, reply = self.server.post("/v1/chat/completions", body, **more)
        self.assertEqual(status, 200, reply)
        self.assertEqual(reply["kv"]["cached_tokens"], cached(reply))
        self.assertEqual(reply["kv"]["history"], "")
        return reply["choices"][0]["message"]["content"] + reply["choices"][0]["message"].get("reasoning_content", ""), reply

    def test_on_and_off_are_bit_equal_and_counted(self):
        with Server(*POOL, "--prefix-cache", "off") as off:
            for number, body in enumerate([ask(), ask(), ask(seed=4), ask(QUESTION[:-30], n=2), ask(cache_salt="on_and_off")]):
                _, reply = self.text(body)
                _, expected = off.post("/v1/chat/completions", body)
                self.assertEqual(json.dumps(reply["choices"]), json.dumps(expected["choices"]))
                whole = (reply["usage"]["prompt_tokens"] - 1) // 128 * 128
                self.assertEqual(cached(expected), 0)
                self.assertEqual(cached(reply), 0 if number in (0, 4) else whole, body)
                self.assertGreater(whole, 128)
        kept = json.loads(self.server.get("/v1/kv")[1])["prefix"]
        self.assertGreater(kept["bytes"], 0)
        self.assertGreaterEqual(kept["hits"], 3)
        self.assertEqual(kept["hits"], self.server.metric("pmkvq_prefix_hits_total"))
        self.assertEqual(kept["hit_tokens"], self.server.metric("pmkvq_cached_tokens_total"))
        self.assertEqual(kept["bytes"], self.server.metric("pmkvq_kv_prefix_bytes"))
        self.assertEqual(self.server.metric("pmkvq_kv_used_bytes"), 0)

    def test_other_endpoints_and_streams(self):
        body = {"prompt": QUESTION + "?", "max_tokens": 8, "temperature": 0}
        for cached_before in (False, True):
            status, reply = self.server.post("/v1/completions", body)
            self.assertEqual((status, cached(reply) > 0), (200, cached_before))
        events = self.server.stream("/v1/completions", {**body, "stream_options": {"include_usage": True}})
        self.assertEqual(cached(events[-1]), cached(reply))
        status, reply = self.server.post("/v1/completions", {**body, "echo": True, "logprobs": 0})
        self.assertEqual((status, cached(reply)), (200, 0), "log-probabilities of the prompt are computed")
        for _ in range(2):
            status, reply = self.server.post("/v1/responses", {"input": QUESTION + " Say it.", "max_output_tokens": 8})
            self.assertEqual(status, 200, reply)
        self.assertGreater(reply["usage"]["input_tokens_details"]["cached_tokens"], 0)


class Keys(unittest.TestCase):
    def hits(self, *options):
        path = os.path.join(FILES.name, "keys")
        with open(path, "w") as keys:
            keys.write(f"{KEY}\n{KEY}-2\n")
        with Server(*POOL, "--api-key-file", path, *options) as server:
            return [cached(server.post("/v1/chat/completions", ask(), headers={"Authorization": f"Bearer {key}"})[1])
                    for key in (KEY, KEY + "-2", KEY, KEY + "-2")]

    def test_keys_share_nothing_unless_asked(self):
        first, second, third, fourth = self.hits()
        self.assertEqual((first, second), (0, 0))
        self.assertTrue(third == fourth > 0)
        first, second, _, _ = self.hits("--prefix-shared")
        self.assertTrue(first == 0 < second)


class Widths(unittest.TestCase):
    """--prefix-min-bits: what nobody has used for 10 s is halved before it is dropped."""
    def questions(self):
        """Prompts that share no chunk."""
        return [ask(f"{i}{QUESTION}", max_tokens=40, kv_report="events") for i in range(6)]

    def crowded(self, server, *kept):
        """Asks `kept`, waits until they are idle, and asks for so much that not all of them have room at 16 bits."""
        for body in kept:
            status, reply = server.post("/v1/chat/completions", body)
            self.assertEqual((status, reply["kv"]["history"], cached(reply)), (200, "", 0))
        before = server.metric("pmkvq_kv_prefix_bytes")
        time.sleep(10.1)  # This is the time that has to pass; more of it changes nothing.
        status, reply = server.post("/v1/chat/completions", chat(max_tokens=900, ignore_eos=True))
        self.assertEqual((status, reply["kv"]["history"]), (200, ""), "what is kept goes before a page of a request")
        self.assertLess(server.metric("pmkvq_kv_prefix_bytes"), before)

    def test_hit_at_16_then_at_8_and_a_miss_of_16(self):
        questions = self.questions()
        with Server(*self.pool(), "--allow-replay") as server:
            self.crowded(server, *questions)
            halved = []
            for body in questions:
                status, reply = server.post("/v1/chat/completions", body)
                self.assertEqual(status, 200, reply)
                if reply["kv"]["history"] and cached(reply):
                    halved.append((body, reply))
                    self.assertEqual(reply["kv"]["min_bits"], 8)
                    self.assertEqual({event["tokens"] for event in reply["kv"]["events"]}, {cached(reply)})
            self.assertGreater(len(halved), 1)
            body, first = halved[0]
            for tokens in (0, cached(first)):  # Then it is kept at 16 bits.
                status, reply = server.post("/v1/chat/completions", {**body, "kv_min_bits": 16})
                self.assertEqual((status, reply["kv"]["history"], cached(reply)), (200, "", tokens))
            for body, first in halved:
                status, reply = server.post("/v1/chat/completions", {**body, "kv_replay": first["kv"]["events"]})
                self.assertEqual((status, cached(reply)), (200, 0))
                self.assertEqual(reply["choices"], first["choices"])
                self.assertEqual((reply["kv"]["history"], reply["kv"]["events"]), (first["kv"]["history"], first["kv"]["events"]))

    def test_at_16_nothing_is_halved_and_what_has_no_room_is_a_miss(self):
        questions = self.questions()
        with Server(*self.pool(), "--prefix-min-bits", "16") as server:
            self.crowded(server, *questions)
            replies = [server.post("/v1/chat/completions", body)[1] for body in questions]
            self.assertTrue(all(reply["kv"]["history"] == "" for reply in replies))
            self.assertEqual(cached(replies[0]), 0, "the oldest one")

    @staticmethod
    def pool():
        # Without a sink a page is a chunk.
        return ("--kv-mode", "pool", "--kv-pool", "13MiB", "--chunk", "128", "--n-sink-token", "0")


class Options(unittest.TestCase):
    def test_what_cannot_keep_prompts_says_so(self):
        isolated = ["--kv-mode", "isolated"]
        for options, names in [([*isolated, "--prefix-cache", "on"], ["--prefix-cache", "--kv-mode pool"]),
                               ([*isolated, "--prefix-shared"], ["--prefix-shared", "--kv-mode pool"]),
                               ([*isolated, "--prefix-min-bits", "8"], ["--prefix-min-bits", "--kv-mode pool"]),
                               ([*POOL, "--prefix-min-bits", "8", "--prefix-cache", "off"], ["--prefix-min-bits", "--prefix-cache off"]),
                               ([*POOL, "--prefix-min-bits", "3"], ["--prefix-min-bits", "3", "16"]),
                               ([*POOL, "--prefix-min-bits", "4", "--kv", "static-4"], ["--prefix-cache", "4 bits"]),
                               ([*POOL, "--prefix-cache", "maybe"], ["--prefix-cache", "maybe"]),
                               ([*POOL, "--prefix-cache", "on", "--kv", "static-4"], ["--prefix-cache", "4 bits"])]:
            kv = [] if "--kv" in options else ["--kv", "pm-kvq"]
            done = subprocess.run([PROGRAM, "serve", "--model", MODEL, "--port", "0", *kv, *options],
                                  capture_output=True, text=True, timeout=60)
            self.assertNotEqual(done.returncode, 0, options)
            for name in names:
                self.assertIn(name, done.stderr.strip().splitlines()[-1], done.stderr)

    def test_less_than_the_floor_is_the_floor_and_is_said(self):
        for options, word in [(["--prefix-min-bits", "2"], "--prefix-min-bits 2 is as 4"), (["--prefix-min-bits", "4"], None)]:
            with Server(*POOL, *options) as server:
                notes = [line for line in server.lines if "--prefix-min-bits" in line]
                self.assertEqual(len(notes), 1 if word else 0)
                self.assertTrue(not word or word in notes[0], notes)

    def test_it_is_off_by_itself_where_it_cannot_be(self):
        with Server(*POOL, "--kv", "static-4") as server:
            for _ in range(2):
                status, reply = server.post("/v1/chat/completions", ask())
                self.assertEqual((status, cached(reply)), (200, 0))


if __name__ == "__main__":
    main()
