#!/usr/bin/env python3
"""The log of `pmkvq serve`: which fields a request's line has, and that texts are in it with --log-content only.

Usage: log_test.py PROGRAM MODEL [TEST...]. Python's standard library only.
"""
import collections
import hashlib
import json
import os
import re
import signal
import unittest

from served import FILES, KEY, LONG, LONG_TOKENS, QUESTION, Holder, Server, begun_together, chat, main, post_bytes, wait_until

RESPONSE = {"input": QUESTION, "temperature": 0, "max_output_tokens": 400, "store": False}


def read_text(line):
    """The fields of a line of --log-format text: name=value, strings that need it in quotes, lists as JSON."""
    fields, rest = {}, line
    while rest:
        name, rest = rest.split("=", 1)
        assert re.fullmatch("[a-z_]+", name), line
        if rest[0] in '"[{':
            fields[name], end = json.JSONDecoder().raw_decode(rest)
        else:
            end = (rest + " ").index(" ")
            try:
                fields[name] = json.loads(rest[:end])
            except ValueError:
                fields[name] = rest[:end]
        assert rest[end:end + 1] in ("", " "), line
        rest = rest[end + 1:]
    return fields


def read_lines(path):
    try:
        with open(path) as file:
            return file.read().split("\n")[:-1]
    except FileNotFoundError:
        return []


def events(server, event="request", count=None):
    """The log's lines of this kind; waits until there are `count`. A line comes behind the reply."""
    def now():
        lines = [line for line in list(server.lines) if line.startswith("{")]
        return [found for found in map(json.loads, lines) if found["event"] == event]
    if count is not None:
        wait_until(lambda: len(now()) >= count)
    return now()


def prompt(server):
    return server.post("/apply-template", {"messages": [{"role": "user", "content": QUESTION}]})[1]["prompt"]


def ask_everything(server):
    """Each endpoint, whole and streamed: (endpoint, texts of the answer)."""
    text = prompt(server)
    ids = server.post("/tokenize", {"prompt": text})[1]["tokens"]
    asked = []
    for body in [{"prompt": text}, {"prompt": ids}]:
        body = {**body, "temperature": 0, "max_tokens": 400}
        _, reply = server.post("/v1/completions", body)
        asked.append(("/v1/completions", [reply["choices"][0]["text"]]))
        got = server.stream("/v1/completions", body)
        asked.append(("/v1/completions", ["".join(event["choices"][0]["text"] for event in got if event["choices"])]))
    _, reply = server.post("/v1/chat/completions", chat())
    message = reply["choices"][0]["message"]
    asked.append(("/v1/chat/completions", [message["reasoning_content"], message["content"]]))
    deltas = [event["choices"][0]["delta"] for event in server.stream("/v1/chat/completions", chat())]
    asked.append(("/v1/chat/completions", ["".join(delta.get(field) or "" for delta in deltas)
                                           for field in ("reasoning_content", "content")]))
    _, reply = server.post("/v1/responses", RESPONSE)
    texts = [part["text"] for item in reply["output"] for part in item["content"]]
    asked.append(("/v1/responses", texts))
    response, text = server.request("POST", "/v1/responses", {**RESPONSE, "stream": True})
    assert response.status == 200, text
    done = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
    asked.append(("/v1/responses", [event["text"] for event in done if event["type"].endswith("_text.done")]))
    for endpoint, texts in asked:
        assert texts and all(len(text) > 10 for text in texts), (endpoint, texts)
    return asked


class Content(unittest.TestCase):
    def test_no_text_without_the_option(self):
        with Server("--reasoning", "on") as server:
            asked = ask_everything(server)
            found = events(server, count=len(asked))
            self.assertEqual([event["endpoint"] for event in found], [endpoint for endpoint, _ in asked])
        log = "".join(line for line in server.lines if line.startswith("{"))
        private = [QUESTION] + [text for _, texts in asked for text in texts]
        for text in private:
            for word in re.findall(r"[A-Za-z]{4,}|\d+, \d+", text):
                self.assertNotIn(word, log.replace("completion", "").replace("request", ""), word)
        for event in found:
            self.assertNotIn("prompts", event)
            self.assertNotIn("answers", event)

    def test_texts_with_the_option(self):
        with Server("--reasoning", "on", "--log-content", *LONG) as server:
            asked = ask_everything(server)
            found = events(server, count=len(asked))
            self.assertEqual([event["endpoint"] for event in found], [endpoint for endpoint, _ in asked])
            for event, (_, texts) in zip(found, asked):
                self.assertEqual(event["prompts"], [prompt(server)])
                self.assertEqual(len(event["answers"]), 1)
                for text in texts:
                    self.assertIn(text.strip(), event["answers"][0])
                self.assertNotIn("cut", event)
            # All choices of all prompts, and what a client that goes away has got.
            server.post("/v1/completions", {"prompt": ["Sort these", "Multiply"], "n": 2, "max_tokens": 5})
            event = events(server, count=len(asked) + 1)[-1]
            self.assertEqual(event["prompts"], ["Sort these", "Multiply"])
            self.assertEqual(len(event["answers"]), 4)
            client = server.connect()
            client.sendall(post_bytes(chat(stream=True, max_tokens=LONG_TOKENS, ignore_eos=True)))
            text = b""
            while b"reasoning_content" not in text or len(text) < 2000:
                text += client.recv(65536)
            client.close()
            event = events(server, count=len(asked) + 2)[-1]
            self.assertEqual((event["status"], event["finish"]), (499, "client_gone"))
            self.assertGreater(len(event["answers"][0]), 0)

    def test_long_texts_are_cut(self):
        with Server("--log-content") as server:
            # 64 prompts share 64 KiB of the line, in which control characters take six bytes each.
            prompts = [f"\x01{i}\x7f\n" * 80 for i in range(64)]
            self.assertEqual(server.post("/v1/completions", {"prompt": prompts, "max_tokens": 1})[0], 200)
            event = events(server, count=1)[0]
            self.assertTrue(event["cut"])
            self.assertEqual(len(event["prompts"]), 64)
            for text, front in zip(prompts, event["prompts"]):
                self.assertTrue(text.startswith(front))
                self.assertGreater(len(json.dumps(front)), 1000)
            line = next(line for line in server.lines if '"prompts"' in line)
            self.assertLess(len(line.encode()), 256 << 10)


class Fields(unittest.TestCase):
    def test_a_request_without_keys(self):
        with Server() as server:
            headers = {"X-Request-Id": "mine-1"}
            _, reply = server.post("/v1/chat/completions", chat(), headers=headers)
            event = events(server, count=1)[0]
            self.assertEqual(event["request"], "mine-1")
            self.assertEqual(event["id"], reply["id"])
            self.assertEqual(event["client"], "127.0.0.1")
            self.assertNotIn("key", event)
            self.assertEqual((event["level"], event["endpoint"], event["status"], event["finish"]),
                             ("info", "/v1/chat/completions", 200, "stop"))
            self.assertEqual(event["prompt_tokens"], reply["usage"]["prompt_tokens"])
            self.assertEqual(event["completion_tokens"], reply["usage"]["completion_tokens"])
            self.assertEqual(event["kv_min_bits"], reply["kv"]["min_bits"])
            self.assertAlmostEqual(event["kv_mean_bits"], reply["kv"]["mean_bits"], delta=0.001)
            self.assertGreaterEqual(event["waited_seconds"], 0)
            self.assertLess(event["waited_seconds"], event["first_token_seconds"])
            self.assertLess(event["first_token_seconds"], event["seconds"])

    def test_waiting_and_halved_pages(self):
        with Server("--max-sequences", "1", "--kv-budget", "1.5MiB") as server:
            ids = {reply["id"] for _, reply in begun_together(server, [chat(max_tokens=600, ignore_eos=True) for _ in range(3)], 1)}
            wait_until(lambda: ids <= {event["id"] for event in events(server)})
            found = [event for event in events(server) if event["id"] in ids]  # In the order of their ends.
            for earlier, later in zip(found, found[1:]):
                # It has had its place when the earlier one had ended: all of that time it waited.
                self.assertGreater(later["waited_seconds"], 0.5 * (earlier["seconds"] - earlier["waited_seconds"]))
            for event in found:
                self.assertGreater(event["waited_seconds"], 0)
                self.assertLess(event["waited_seconds"], event["first_token_seconds"])
                self.assertLess(event["kv_mean_bits"], 16)
                self.assertIn(event["kv_min_bits"], (2, 4, 8))

    def test_keys_and_refused_answers(self):
        keys = os.path.join(FILES.name, "keys")
        with open(keys, "w") as file:
            file.write(KEY + "\n")
        with Server("--api-key-file", keys, "--queue-timeout", "1", "--max-sequences", "1", *LONG) as server:
            key = {"Authorization": "Bearer " + KEY}
            with Holder(server, max_tokens=LONG_TOKENS, headers=key):
                self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=3), headers=key)[0], 503)
            found = events(server, count=2)
            for event in found:
                self.assertEqual(event["key"], hashlib.sha256(KEY.encode()).hexdigest()[:8])
                self.assertNotIn("client", event)
            self.assertNotIn(KEY, "".join(server.lines))
            self.assertEqual((found[0]["status"], found[0]["finish"]), (503, "queue_timeout"))
            self.assertNotIn("kv_min_bits", found[0])
            self.assertNotIn("first_token_seconds", found[0])
            self.assertEqual(found[0]["waited_seconds"], found[0]["seconds"])

    def test_refused_requests(self):
        keys = os.path.join(FILES.name, "keys")
        with open(keys, "w") as file:
            file.write(KEY + "\n")
        with Server("--api-key-file", keys) as server:
            key = {"Authorization": "Bearer " + KEY}
            short = hashlib.sha256(KEY.encode()).hexdigest()[:8]
            chats = "/v1/chat/completions"
            self.assertEqual(server.post(chats, chat(), headers={"X-Request-Id": "mine-2"})[0], 401)
            self.assertEqual(server.post(chats, chat(n=5000), headers=key)[0], 400)
            self.assertEqual(server.post(chats, chat(temperature="private words"), headers=key)[0], 400)
            self.assertEqual(server.get("/private/words", headers=key)[0], 404)
            self.assertEqual(server.get(chats, headers=key)[0], 405)
            server.raw(b"GET /private HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n")
            found = events(server, "refused", 6)
            self.assertEqual([(event["status"], event["endpoint"]) for event in found],
                             [(401, chats), (400, chats), (400, chats), (404, "other"), (405, chats), (400, "other")])
            self.assertEqual(found[0]["request"], "mine-2")
            self.assertEqual([event["code"] for event in found],
                             ["invalid_api_key", "invalid_value", "invalid_value", "not_found", "method_not_allowed", "invalid_request"])
            self.assertEqual([event.get("client") for event in found], ["127.0.0.1", None, None, "127.0.0.1", "127.0.0.1", "127.0.0.1"])
            self.assertEqual([event.get("key") for event in found], [None, short, short, None, None, None])
            self.assertNotIn("private", "".join(server.lines))
            self.assertEqual(events(server), [])
            # No line where there was no error, or where a line of its own tells it.
            self.assertEqual(server.post(chats, chat(max_tokens=3), headers=key)[0], 200)
            self.assertEqual((len(events(server, count=1)), len(events(server, "refused"))), (1, 6))

    def test_a_flood_of_refused_requests(self):
        with Server() as server:
            for _ in range(400):  # Faster than 50 a second wherever this takes less than 8 s.
                self.assertEqual(server.get("/no/such/path")[0], 404)
            def counted():
                found = events(server, "refused")
                return len(found) + sum(event.get("not_logged", 0) for event in found)
            def one_more():
                server.get("/no/such/path")
                one_more.asked += 1
                return counted() >= 400
            one_more.asked = 400
            wait_until(one_more)  # A line of a later second says how many were left out.
            self.assertLessEqual(counted(), one_more.asked)
            in_second = collections.Counter(event["ts"][:19] for event in events(server, "refused"))
            self.assertLessEqual(max(in_second.values()), 2 * 50, "the log's seconds begin at another time than the clock's")

    def test_text_and_a_file_that_is_moved_away(self):
        path = os.path.join(FILES.name, "log")
        with Server("--log-format", "text", "--log-file", path, "--log-content") as server:
            for body in [chat(), {**chat(), "no such\nfield=\"1\"": 1}]:
                self.assertEqual(server.post("/v1/chat/completions", body)[0], 200)
            wait_until(lambda: len(read_lines(path)) == 3)
            first, warning, second = map(read_text, read_lines(path))
            self.assertEqual((first["level"], first["event"], first["status"], first["finish"]), ("info", "request", 200, "stop"))
            self.assertEqual((warning["event"], warning["field"]), ("unknown_field", "no such\nfield=\"1\""))
            self.assertEqual(second["event"], "request")
            os.rename(path, path + ".1")
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: os.path.exists(path))
            server.post("/v1/chat/completions", chat(max_tokens=3))
            wait_until(lambda: len(read_lines(path)) == 1)
            self.assertEqual(read_text(read_lines(path)[0])["finish"], "length")
            self.assertEqual(len(read_lines(path + ".1")), 3)
        # The end of the server is in the log: its last line is not lost.
        self.assertEqual(read_text(read_lines(path)[-1])["event"], "draining")


if __name__ == "__main__":
    main()
