"""--kv-mode pool: all requests share one pool."""
import concurrent.futures
import json
import subprocess
import time
import unittest

from served import LONG_MODEL, LONG_TOKENS, MODEL, PROGRAM, Holder, Server, ServedTest, begun_together, chat, main, many, wait_until


class Pool(ServedTest):
    # 300 tokens take 4 MiB at 16 bits and 1.4 at 4.
    options = ("--kv-mode", "pool", "--kv-pool", "8MiB", "--max-sequences", "8", "--plan", f"{MODEL}/plan.json",
               "--priorities")

    def test_more_at_once_than_16_bits_would_hold(self):
        bodies = [chat(max_tokens=500, ignore_eos=True, seed=i, temperature=1, kv_report="events") for i in range(8)]
        for status, reply in many(self.server, bodies):
            self.assertEqual(status, 200, reply)
            self.assertEqual(reply["usage"]["completion_tokens"], 500)
            self.assertEqual(reply["choices"][0]["finish_reason"], "length")
            self.assertIsNone(reply["choices"][0]["stop_reason"])
            kv = reply["kv"]
            self.assertGreaterEqual(kv["min_bits"], 4)
            self.assertEqual(len(kv["history"]), 16 if kv["events"] else 0)
        self.assertLessEqual(self.server.metric("pmkvq_kv_peak_bytes"), 8 * 2**20)
        self.assertGreater(self.server.metric("pmkvq_kv_halved_bytes_total"), 0)
        self.assertGreater(self.server.metric("pmkvq_kv_water_level"), 0)
        self.server.wait_for_metric("pmkvq_kv_used_bytes", 0)

    def test_equal_seed_and_history_are_equal_text(self):
        """Alone nothing is halved: the text is that of any other time when nothing was."""
        texts = set()
        for _ in range(2):
            status, reply = self.server.post("/v1/chat/completions", chat(seed=5, temperature=1, max_tokens=200))
            self.assertEqual((status, reply["kv"]["history"], reply["kv"]["halved_pages"]), (200, "", 0))
            texts.add(json.dumps(reply["choices"]))
        self.assertEqual(len(texts), 1)

    def test_kv_min_bits_is_kept(self):
        bodies = [chat(max_tokens=500, ignore_eos=True, seed=i, temperature=1) for i in range(6)]
        bodies[0]["kv_min_bits"] = 16
        bodies[1]["kv_min_bits"] = 8
        replies = many(self.server, bodies)
        self.assertEqual([status for status, _ in replies], [200] * 6)
        self.assertEqual(replies[0][1]["kv"]["min_bits"], 16)
        self.assertEqual(replies[0][1]["kv"]["halved_pages"], 0)
        self.assertGreaterEqual(replies[1][1]["kv"]["min_bits"], 8)

    def test_fields_of_the_pool(self):
        for fields, param in [({"kv_min_bits": 2}, "kv_min_bits"), ({"kv_min_bits": 5}, "kv_min_bits"),
                              ({"priority": 101}, "priority")]:
            status, reply = self.server.post("/v1/chat/completions", chat(**fields))
            self.assertEqual((status, reply["error"]["param"], reply["error"]["code"]), (400, param, "invalid_value"))
        status, _ = self.server.post("/v1/chat/completions", chat(priority=-5, max_tokens=5))
        self.assertEqual(status, 200)

    def test_v1_kv_says_the_mode_and_the_level(self):
        _, text = self.server.get("/v1/kv")
        cache = json.loads(text)
        self.assertEqual((cache["mode"], cache["pool_bytes"], cache["used_bytes"]), ("pool", 8 * 2**20, 0))
        self.assertGreaterEqual(cache["water_level"], 0)


class Fairness(unittest.TestCase):
    def test_requests_of_one_length_end_with_the_same_bits(self):
        """One water level for all pages: side by side, none pays for another."""
        with Server("--kv-mode", "pool", "--kv-pool", "20MiB", "--max-sequences", "6", "--plan", f"{MODEL}/plan.json") as server:
            # Prompts of one token: longer ones take turns with the tokens of those that began before, by the clock.
            bodies = [{"prompt": [1], "max_tokens": 760, "ignore_eos": True, "seed": i, "temperature": 1} for i in range(6)]
            replies = begun_together(server, bodies, 6, 700, "/v1/completions")
            self.assertEqual([status for status, _ in replies], [200] * 6)
            self.assertEqual([reply["kv"]["preemptions"] for _, reply in replies], [0] * 6)
            bits = [reply["kv"]["mean_bits"] for _, reply in replies]
            print("mean bits of six requests of 760 tokens:", ", ".join(f"{one:.2f}" for one in bits))
            self.assertLess(max(bits), 12, "the pool is too large for this test")
            self.assertLessEqual(max(bits) - min(bits), 0.5)


class Priorities(unittest.TestCase):
    def test_they_delay_and_do_not_starve(self):
        """Of one client: a priority is as so many seconds later, also while more urgent requests keep coming."""
        with Server("--kv-mode", "pool", "--kv-pool", "64MiB", "--max-sequences", "1", "--priorities", "--queue-size", "100",
                    *LONG_MODEL) as server:
            for attempt in range(20):
                came_in_time, order = self.order_of_ends(server, f"{attempt}-")
                if came_in_time:
                    break
            self.assertTrue(came_in_time, "nothing came within 5 s of the late one")
            # The one that came first is with the engine already, so that no place stays empty for a step.
            self.assertEqual(order[:6], ["before-0", "urgent", *[f"before-{i}" for i in range(1, 5)]])
            self.assertIn("later-0", order[:order.index("late")], "some that came later went before it")

    def order_of_ends(self, server, prefix):
        """Whether later-0 came within 5 s of "late", and all names in the order in which their requests ended."""
        def ask(name, **fields):
            status, reply = server.post("/v1/chat/completions", chat(max_tokens=60, ignore_eos=True, **fields),
                                        headers={"X-Request-Id": prefix + name})
            assert status == 200, reply

        with concurrent.futures.ThreadPoolExecutor(200) as clients:
            waits = {}
            with Holder(server, max_tokens=LONG_TOKENS):  # None begins before all wait.
                for name, priority in [*[(f"before-{i}", 0) for i in range(5)], ("late", 5), ("urgent", -50), ("later-0", 0)]:
                    if name == "late":
                        began = time.monotonic()
                    waits[name] = clients.submit(ask, name, priority=priority)
                    server.wait_for_metric("pmkvq_requests_waiting", len(waits))
                came_in_time = time.monotonic() - began < 5
            while not waits["late"].done():  # More than it can answer.
                if sum(not one.done() for one in waits.values()) < 20:
                    name = f"later-{len(waits)}"
                    waits[name] = clients.submit(ask, name)
                time.sleep(0.002)
            for one in waits.values():
                one.result()

        def ended():
            events = [json.loads(line) for line in list(server.lines) if line.startswith("{")]
            return [event["request"][len(prefix):] for event in events
                    if event["event"] == "request" and event["request"].startswith(prefix)]
        wait_until(lambda: len(ended()) == len(waits))
        return came_in_time, ended()


class ReadLimit(unittest.TestCase):
    def test_more_than_the_limit_is_halved_to_8_bits_though_there_is_room(self):
        body = chat(max_tokens=500, ignore_eos=True, seed=1, temperature=1)
        for options, bits in [((), 16), (("--kv-read-limit", "2MiB"), 8)]:
            with Server("--kv-mode", "pool", "--kv-pool", "64MiB", *options) as server:
                status, reply = server.post("/v1/chat/completions", body)
                self.assertEqual((status, reply["kv"]["min_bits"]), (200, bits))
                self.assertEqual(reply["kv"]["halved_pages"] > 0, bits == 8)


class SmallPool(unittest.TestCase):
    def test_what_never_fits_is_refused_and_what_outgrows_it_ends(self):
        with Server("--kv-mode", "pool", "--kv-pool", "1500KiB", "--max-sequences", "4") as server:
            long = "Sort these numbers: " + ", ".join(str(100 + i) for i in range(150))
            status, reply = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]})
            self.assertEqual((status, reply["error"]["code"]), (400, "kv_pool_too_small"), reply)
            self.assertIn("--kv-pool of at least", reply["error"]["message"])
            status, reply = server.post("/v1/chat/completions", chat(max_tokens=1500, ignore_eos=True))
            self.assertEqual(status, 200)
            choice = reply["choices"][0]
            self.assertEqual((choice["finish_reason"], choice["stop_reason"]), ("length", "kv_budget"))
            self.assertGreater(reply["usage"]["completion_tokens"], 200)

    def test_a_pool_for_one_serves_eight(self):
        """Nothing is lost where requests have to give up their places."""
        with Server("--kv-mode", "pool", "--kv-pool", "2MiB", "--max-sequences", "8") as server:
            bodies = [chat(max_tokens=400, ignore_eos=True, seed=i, temperature=1) for i in range(8)]
            for status, reply in many(server, bodies):
                self.assertEqual(status, 200, reply)
                self.assertEqual(reply["usage"]["completion_tokens"], 400)
            self.assertLessEqual(server.metric("pmkvq_kv_peak_bytes"), 2 * 2**20)


class Defaults(unittest.TestCase):
    def kv(self, *options):
        """What /v1/kv says of a server with these options and --model alone."""
        with Server(command=[PROGRAM, "serve", "--model", MODEL, "--port", "0", *options]) as server:
            status, reply = server.post("/v1/chat/completions", chat(max_tokens=40))
            self.assertEqual((status, reply["kv"]["history"]), (200, ""))
            return json.loads(server.get("/v1/kv")[1]), "".join(server.lines)

    def test_a_pool_for_all_requests(self):
        """No more than 16 requests of 8,192 tokens can need at 16 bits, and that only where the memory is there."""
        kv, lines = self.kv()
        self.assertEqual(kv["mode"], "pool")
        of_all = 16 * 8192 * 12 * 2 * 128 * 2
        self.assertLess(kv["pool_bytes"], 1.3 * of_all)
        self.assertGreater(kv["pool_bytes"], min(of_all, 1 << 28))
        self.assertNotIn("warning", lines)

    def test_fewer_requests_need_less(self):
        self.assertLess(self.kv("--max-sequences", "2", "--max-len", "2048")[0]["pool_bytes"], 1.3 * 2 * 2048 * 12 * 2 * 128 * 2)

    def test_a_budget_is_isolated(self):
        kv, lines = self.kv("--kv-budget", "4MiB")
        self.assertEqual(kv["mode"], "isolated")
        self.assertNotIn("warning", lines)

    def test_isolated_without_a_budget(self):
        self.assertEqual(self.kv("--kv-mode", "isolated", "--max-len", "512")[0]["mode"], "isolated")


class Options(unittest.TestCase):
    def test_options_that_do_not_go_together(self):
        isolated = ["--kv-mode", "isolated"]
        for options, name in [([*isolated, "--kv-pool", "1GiB"], "--kv-pool"), ([*isolated, "--kv-target", "6"], "--kv-target"),
                              (["--kv-budget", "1MiB", "--kv-read-limit", "1GiB"], "--kv-read-limit"),
                              (["--kv-pool", "1GiB", "--kv-target", "4"], "--kv-floor"),
                              (["--kv-mode", "pool", "--kv-pool", "1GiB", "--kv-budget", "1MiB"], "--kv-budget"),
                              (["--kv-budget", "1MiB", "--kv-pool", "1GiB"], "--kv-pool"), (["--kv-pool", "1000"], "--kv-pool")]:
            done = subprocess.run([PROGRAM, "serve", "--model", MODEL, "--port", "0", *options], capture_output=True, text=True,
                                  timeout=60)
            self.assertNotEqual(done.returncode, 0, options)
            self.assertIn(name, done.stderr.strip().splitlines()[-1], done.stderr)


if __name__ == "__main__":
    main()
