"""kv_replay: what a crowded pool answered is repeated bit for bit, on an idle server and beside other requests.

Called with PROGRAM MODEL [TEST...]; PMKVQ_REPLAYS says how many requests (8).
"""
import os
import unittest

from served import MODEL, Server, ServedTest, chat, main, many, wait_until

COUNT = int(os.environ.get("PMKVQ_REPLAYS", "8"))
POOL = ("--kv-mode", "pool", "--plan", f"{MODEL}/plan.json", "--max-sequences", "8", "--queue-size", "1000")


def body_of(seed, **fields):
    return chat(max_tokens=450 + 10 * (seed % 6), ignore_eos=True, seed=seed, temperature=1, kv_report="events", **fields)


class Replay(ServedTest):
    options = (*POOL, "--kv-pool", "6MiB", "--allow-replay")

    def expect_equal(self, replies, expected):
        for (status, reply), (_, first) in zip(replies, expected):
            self.assertEqual(status, 200, reply)
            self.assertEqual(reply["choices"], first["choices"])
            self.assertEqual(reply["kv"]["history"], first["kv"]["history"])
            self.assertEqual(reply["kv"]["events"], first["kv"]["events"])

    def test_equal_seed_and_history_are_equal_text(self):
        bodies = [body_of(seed, n=2 if seed % 4 == 3 else 1) for seed in range(COUNT)]
        for _ in range(10):  # Until so many run at the same time that the pool is crowded.
            crowd = many(self.server, bodies)
            if sum(bool(reply["kv"]["history"]) for _, reply in crowd) > COUNT // 2:
                break
        for status, reply in crowd:
            self.assertEqual(status, 200, reply)
            self.assertEqual(bool(reply["kv"]["events"]), reply["kv"]["history"] != "")
        self.assertGreater(sum(reply["kv"]["history"] != "" for _, reply in crowd), COUNT // 2)
        again = [{**body, "kv_replay": reply["kv"]["events"]} for body, (_, reply) in zip(bodies, crowd)]
        self.expect_equal([self.server.post("/v1/chat/completions", body) for body in again], crowd)
        with Server(*POOL, "--kv-pool", "40MiB", "--allow-replay") as other:
            self.expect_equal(many(other, again), crowd)
            # Without its history an answer is another one.
            alone = [other.post("/v1/chat/completions", {**body, "kv_replay": []}) for body in again[:4]]
            self.assertTrue(all(reply["kv"]["history"] == "" for _, reply in alone))
            self.assertTrue(any(reply["choices"] != first["choices"] for (_, reply), (_, first) in zip(alone, crowd)))

    def test_requests_that_share_a_prompt(self):
        """Their pages are halved for all of them at once, which each can repeat alone."""
        numbers = ", ".join(str(100 + 7 * i) for i in range(60))
        text = f"Sort these 60 numbers from small to large with merge sort: {numbers}. What is the sorted list?"
        bodies = [{**body_of(seed, n=3 if seed % 4 == 3 else 1), "max_tokens": 300,
                   "messages": [{"role": "user", "content": f"{text} {seed}"}]} for seed in range(COUNT)]
        options = (*POOL, "--chunk", "128", "--n-sink-token", "0", "--kv-target", "4", "--kv-floor", "2", "--allow-replay")
        with Server(*options, "--kv-pool", "6MiB") as server:
            first = server.post("/v1/chat/completions", {**bodies[0], "max_tokens": 1})
            self.assertEqual(first[0], 200, first)
            crowd = many(server, bodies)
            for status, reply in crowd:
                self.assertEqual(status, 200, reply)
            self.assertGreater(sum(reply["kv"]["cached_tokens"] > 0 for _, reply in crowd), 0)
            events = [event for _, reply in crowd for event in reply["kv"]["events"] if event.get("from_bits") == 16]
            self.assertGreater(sum(event.get("k_first", 0) > 0 for event in events), 0)
            wait_until(lambda: server.metric("pmkvq_kv_used_bytes") == 0)
        # What is repeated shares nothing: samples of one prompt take more than they took together.
        again = [{**body, "kv_replay": reply["kv"]["events"]} for body, (_, reply) in zip(bodies, crowd)]
        with Server(*options, "--kv-pool", "40MiB") as other:
            self.expect_equal(many(other, again), crowd)

    def test_what_is_no_history_is_refused(self):
        good = {"choice": 0, "tokens": 400, "layer": 0, "from_bits": 16, "k_pages": 1, "v_pages": 0}
        for events, word in [("x", "kv.events"), ([1], ""), ([{**good, "choice": 1}], "choice 1"), ([{**good, "layer": 99}], "layer"),
                             ([{**good, "from_bits": 4}], "from_bits"), ([{**good, "tokens": -1}], "tokens"),
                             ([{"choice": 0, "tokens": 5}], "layer"), ([{**good, "k_pages": 50}], "not so many pages"),
                             ([good, {**good, "tokens": 399}], "tokens")]:
            status, reply = self.server.post("/v1/chat/completions", body_of(1, kv_replay=events))
            self.assertEqual((status, reply["error"]["code"]), (400, "invalid_value"), reply)
            self.assertIn(word, reply["error"]["message"])


class NotAllowed(unittest.TestCase):
    def test_it_must_be_allowed(self):
        with Server(*POOL, "--kv-pool", "8MiB") as server:
            status, reply = server.post("/v1/chat/completions", body_of(1, kv_replay=[{"choice": 0, "tokens": 5, "resume": True}]))
            self.assertEqual((status, reply["error"]["param"], reply["error"]["code"]), (400, "kv_replay", "unsupported_parameter"))


if __name__ == "__main__":
    main()
