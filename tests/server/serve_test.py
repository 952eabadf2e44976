#!/usr/bin/env python3
"""Talks to `pmkvq serve` as clients do: replies, streams, errors, limits, lost clients, shutdown.

Usage: serve_test.py PROGRAM MODEL [TEST...]. Python's standard library only.
"""
import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import unittest

from served import (KEY, LONG, LONG_TOKENS, MODEL, PATIENCE_S, PIPELINED, PROGRAM, QUESTION, Holder, Server, ServedTest, chat, main,
                    post_bytes)


class Replies(ServedTest):
    options = ("--reasoning", "on")

    def test_chat_answers_as_run_does(self):
        status, reply = self.server.post("/v1/chat/completions", chat())
        self.assertEqual(status, 200, reply)
        choice = reply["choices"][0]
        self.assertEqual(choice["finish_reason"], "stop")
        self.assertIn("103, 156, 406, 697", choice["message"]["content"])
        self.assertNotIn("think>", choice["message"]["content"] + choice["message"]["reasoning_content"])
        self.assertEqual(choice["message"]["reasoning"], choice["message"]["reasoning_content"])
        run = subprocess.run([PROGRAM, "run", "--model", MODEL, "--temperature", "0", "--kv", "pm-kvq",
                              "--kv-budget", "4MiB", "--max-len", "2048", "--threads", "2", "--json", "-", QUESTION],
                             capture_output=True, text=True, check=True)
        answer = json.loads(run.stdout)["sequences"][0]
        self.assertEqual(reply["usage"]["completion_tokens"], len(answer["output_ids"]))
        self.assertEqual(reply["usage"]["prompt_tokens"], len(answer["prompt_ids"]))
        both = choice["message"]["reasoning_content"] + choice["message"]["content"]
        strip = lambda text: re.sub(r"</?think>|\n", "", text)
        self.assertEqual(strip(both), strip(answer["text"]))

    def test_stream_equals_whole(self):
        for fields in [{}, {"logprobs": True, "top_logprobs": 2}, {"n": 3, "temperature": 1, "seed": 7}]:
            _, whole = self.server.post("/v1/chat/completions", chat(**fields))
            events = self.server.stream("/v1/chat/completions", chat(**fields, stream_options={"include_usage": True}))
            self.assertEqual(events[-1]["choices"], [])
            self.assertEqual(events[-1]["usage"], whole["usage"])
            self.assertEqual(len({event["id"] for event in events}), 1)
            for choice in whole["choices"]:
                mine = [e["choices"][0] for e in events if e["choices"] and e["choices"][0]["index"] == choice["index"]]
                self.assertEqual(mine[0]["delta"], {"role": "assistant", "content": ""})
                for field in ["content", "reasoning_content"]:
                    joined = "".join(one["delta"].get(field) or "" for one in mine)
                    self.assertEqual(joined, choice["message"].get(field, ""))
                self.assertEqual(mine[-1]["finish_reason"], choice["finish_reason"])
                if "logprobs" in fields:
                    tokens = [t for one in mine if one["logprobs"] for t in one["logprobs"]["content"]]
                    self.assertEqual(tokens, choice["logprobs"]["content"])
                    self.assertEqual(len(tokens), whole["usage"]["completion_tokens"])

    def test_same_seed_same_text_whatever_else_runs(self):
        body = chat(temperature=1, seed=11, max_tokens=100)
        _, alone = self.server.post("/v1/chat/completions", body)
        results = [None] * 12
        def ask(i):
            results[i] = self.server.post("/v1/chat/completions", body if i % 2 else chat(temperature=1, max_tokens=60))
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(results))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, (status, reply) in enumerate(results):
            self.assertEqual(status, 200, reply)
            if i % 2:
                self.assertEqual(reply["choices"], alone["choices"])

    def test_metrics_count_no_request_that_was_answered(self):
        for _ in range(50):
            self.assertEqual(self.server.post("/v1/chat/completions", chat(max_tokens=2))[0], 200)
            text = self.server.get("/metrics")[1]
            self.assertIn("pmkvq_requests_running 0\n", text)
            self.assertIn("pmkvq_kv_used_bytes 0\n", text)

    def prompt(self):
        """What the chat template makes of the question: the model answers nothing else."""
        return self.server.post("/apply-template", {"messages": [{"role": "user", "content": QUESTION}]})[1]["prompt"]

    def test_completions_take_text_and_ids(self):
        _, tokens = self.server.post("/tokenize", {"prompt": self.prompt()})
        _, text = self.server.post("/v1/completions", {"prompt": self.prompt(), "temperature": 0, "max_tokens": 20, "logprobs": 2})
        _, ids = self.server.post("/v1/completions", {"prompt": tokens["tokens"], "temperature": 0, "max_tokens": 20, "logprobs": 2})
        self.assertEqual(text["choices"], ids["choices"])
        logprobs = text["choices"][0]["logprobs"]
        self.assertEqual("".join(logprobs["tokens"]), text["choices"][0]["text"])
        self.assertEqual(len(logprobs["token_logprobs"]), 20)
        for token, value, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]):
            self.assertEqual(value, max(top.values()), "greedy draws the likeliest")
            self.assertIn(token, top)
        _, several = self.server.post("/v1/completions", {"prompt": [self.prompt(), "Hello"], "n": 2,
                                                          "temperature": 0, "max_tokens": 5})
        self.assertEqual([c["index"] for c in several["choices"]], [0, 1, 2, 3])
        self.assertEqual(several["choices"][0]["text"], several["choices"][1]["text"])

    def test_stops(self):
        _, plain = self.server.post("/v1/completions", {"prompt": self.prompt(), "temperature": 0, "max_tokens": 60})
        stop = plain["choices"][0]["text"][20:24]
        _, cut = self.server.post("/v1/completions", {"prompt": self.prompt(), "temperature": 0, "max_tokens": 60, "stop": stop})
        text = plain["choices"][0]["text"]
        self.assertEqual(cut["choices"][0]["text"], text[:text.index(stop)])
        self.assertEqual(cut["choices"][0]["stop_reason"], stop)
        self.assertEqual(cut["choices"][0]["finish_reason"], "stop")
        _, kept = self.server.post("/v1/completions", {"prompt": self.prompt(), "temperature": 0, "max_tokens": 60, "stop": [stop],
                                                       "include_stop_str_in_output": True})
        self.assertEqual(kept["choices"][0]["text"], text[:text.index(stop)] + stop)

    def test_stop_strings_count_in_the_answer_only(self):
        _, reply = self.server.post("/v1/chat/completions", chat(stop="697"))
        message = reply["choices"][0]["message"]
        self.assertIn("697", message["reasoning_content"])
        self.assertNotIn("697", message["content"])
        self.assertEqual(reply["choices"][0]["stop_reason"], "697")

    def test_length_cuts_inside_reasoning(self):
        _, reply = self.server.post("/v1/chat/completions", chat(max_tokens=9))
        self.assertEqual(reply["choices"][0]["finish_reason"], "length")
        self.assertEqual(reply["choices"][0]["message"]["content"], "")
        self.assertEqual(reply["usage"]["completion_tokens_details"]["reasoning_tokens"], 9)

    def test_tokenize_and_back(self):
        for text in [QUESTION, "a\u00e9\u4e2d\U0001f600 z", " x "]:
            _, tokens = self.server.post("/tokenize", {"prompt": text, "with_pieces": True})
            self.assertEqual(tokens["count"], len(tokens["tokens"]))
            ids = [token["id"] for token in tokens["tokens"]]
            _, back = self.server.post("/detokenize", {"tokens": ids})
            self.assertEqual(back["prompt"], text)
        _, prompt = self.server.post("/apply-template", {"messages": [{"role": "user", "content": "hi"}]})
        self.assertIn("hi", prompt["prompt"])

    def test_models_and_states(self):
        status, text = self.server.get("/v1/models")
        name = json.loads(text)["data"][0]["id"]
        self.assertEqual((status, name), (200, os.path.basename(MODEL)))
        self.assertEqual(self.server.get("/v1/models/" + name)[0], 200)
        self.assertEqual(self.server.get("/v1/models/other")[0], 404)
        for path in ["/health", "/live", "/version", "/tokenizer_info", "/metrics"]:
            self.assertEqual(self.server.get(path)[0], 200, path)
        info = json.loads(self.server.get("/tokenizer_info")[1])
        props = json.loads(self.server.get("/props")[1])
        self.assertIn("message.role", info["chat_template"])
        self.assertEqual(info["eos_token"], "<|im_end|>")
        self.assertEqual(props["chat_template"], info["chat_template"])
        self.assertEqual((props["total_slots"], props["default_generation_settings"]["n_ctx"]), (4, 2048))
        slots = json.loads(self.server.get("/slots")[1])
        self.assertEqual([slot["id"] for slot in slots], [0, 1, 2, 3])
        response, text = self.server.request("HEAD", "/health")
        self.assertEqual((response.status, text), (200, ""))


class Refusals(ServedTest):
    options = ("--max-body", "64KiB")

    def refused(self, body, status, code, param=None, path="/v1/chat/completions"):
        found, reply = self.server.post(path, body)
        error = reply["error"]
        self.assertEqual((found, error["code"]), (status, code), error)
        if param is not None:
            self.assertEqual(error["param"], param)
            self.assertIn(param.split("[")[0], error["message"])
        self.assertNotIn("/", error["message"].replace("/v1/completions", "").replace("a-z", ""), "no paths")

    def test_fields(self):
        self.refused(chat(temperature=3), 400, "invalid_value", "temperature")
        self.refused(chat(temperature="hot"), 400, "invalid_value", "temperature")
        self.refused(chat(n=0), 400, "invalid_value", "n")
        self.refused(chat(n=1e3), 400, "invalid_value", "n")
        self.refused(chat(top_logprobs=3), 400, "invalid_value", "top_logprobs")
        self.refused(chat(logprobs=True, top_logprobs=21), 400, "invalid_value", "top_logprobs")
        self.refused(chat(stream_options={}), 400, "invalid_value", "stream_options")
        self.refused(chat(stop=["a"] * 17), 400, "invalid_value", "stop")
        self.refused(chat(stop=[""]), 400, "invalid_value", "stop")
        self.refused(chat(logit_bias={"x": 1}), 400, "invalid_value", "logit_bias")
        self.refused(chat(logit_bias={"1": 101}), 400, "invalid_value", "logit_bias")
        self.refused(chat(tools=[{"type": "function"}]), 400, "unsupported_parameter", "tools")
        self.refused(chat(best_of=2), 400, "unsupported_parameter", "best_of")
        self.refused(chat(model="gpt-4"), 404, "model_not_found", "model")
        self.refused({"messages": []}, 400, "invalid_value", "messages")
        self.refused({"messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_value", "messages[0].role")
        self.refused({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "unsupported_parameter",
                     "messages[0].content[0]")
        self.refused({"prompt": [99999]}, 400, "invalid_value", "prompt", "/v1/completions")
        self.refused({"prompt": "x", "suffix": "y"}, 400, "unsupported_parameter", "suffix", "/v1/completions")
        self.refused({"prompt": [1] * 2048}, 400, "context_length_exceeded", "prompt", "/v1/completions")
        status, _ = self.server.post("/v1/chat/completions", chat(tools=[], tool_choice="none", store=False, user="me",
                                                                  max_tokens=1, temperature=None))
        self.assertEqual(status, 200)

    def test_bodies(self):
        for raw in ["", "{", "[]", "nul", '{"messages": 1}', '{"a": ' + "[" * 200 + "]" * 200 + "}", '{"a": 1, "a": 2}']:
            response, text = self.server.request("POST", "/v1/chat/completions", raw=raw)
            self.assertEqual(response.status, 400, raw)
            self.assertIn(json.loads(text)["error"]["code"], ["invalid_json", "invalid_value"])
        response, text = self.server.request("POST", "/v1/chat/completions", raw=b'{"x": "\xff"}')
        self.assertEqual(json.loads(text)["error"]["code"], "invalid_utf8")
        response, _ = self.server.request("POST", "/v1/chat/completions", raw=" " * 70000)
        self.assertEqual(response.status, 413)

    def test_methods_and_types(self):
        response, text = self.server.request("GET", "/v1/chat/completions")
        self.assertEqual((response.status, response.getheader("Allow")), (405, "POST"))
        self.assertEqual(self.server.get("/nothing")[0], 404)
        self.assertEqual(self.server.request("POST", "/v1/embeddings", {})[0].status, 404)
        response, _ = self.server.request("POST", "/tokenize", raw="x=1", headers={"Content-Type": "text/plain"})
        self.assertEqual(response.status, 415)
        response, _ = self.server.request("POST", "/tokenize", {}, headers={"Content-Encoding": "gzip"})
        self.assertEqual(response.status, 415)
        for host in ("127.evil.example", "127.0.0.1.evil.example", "127.0.0.1x"):
            response, _ = self.server.request("GET", "/v1/models", headers={"Host": host})
            self.assertEqual(response.status, 403, host)
        response, _ = self.server.request("GET", "/v1/models", headers={"Host": "evil.example"})
        self.assertEqual(response.status, 403)

    def test_headers(self):
        head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        body = '{"prompt":"x"}'
        for more, status in [
                ("Content-Length: 14\r\nTransfer-Encoding: chunked\r\n", "400"),
                ("Content-Length: 14\r\nContent-Length: 15\r\n", "400"),
                ("Content-Length: 14\r\nX: a\r\n b\r\n", "400"),
                ("Content-Length: 14\r\nX: a\0b\r\n", "400"),
                ("Content-Length: 14\r\nX: a\nY: b\r\n", "400"),
                ("Content-Length: 14\r\n" + "X: y\r\n" * 200, "400"),
                ("Content-Length: 14\r\nX: " + "y" * 17000 + "\r\n", "431"),
                ("Content-Length: 5368709120\r\n", "413"),
                ("Content-Length: 14\r\nHost: other\r\n", "400"),
                ("Content-Length: -1\r\n", "400")]:
            answer = self.server.raw((head + more + "\r\n" + body).encode())
            self.assertIn(" " + status + " ", answer.split("\r\n")[0], (more[:60], answer[:200]))
        chunked = (head + "Transfer-Encoding: chunked\r\n\r\n").encode()
        with self.server.connect() as client:
            client.sendall(chunked)
            for part in [b"5\r", b"\n{\"pro", b"\r\n9;x=y\r\nmpt\":\"x\"}", b"\r\n0\r\n", b"\r\n"]:
                time.sleep(0.02)
                client.sendall(part)
            self.assertTrue(client.recv(4096).startswith(b"HTTP/1.1 200"), "chunks, cut anywhere")
        for bad in [b"5;" + b"x" * 1000000, b"z\r\n", b"2\r\n{}xx\r\n", b"1" * 1000 + b"\r\n"]:
            self.assertIn(" 400 ", self.server.raw(chunked + bad).split("\r\n")[0], bad[:20])
        answer = self.server.raw(chunked + b"fffffffff\r\n{")
        self.assertIn(" 413 ", answer.split("\r\n")[0])
        answer = self.server.raw(PIPELINED)
        self.assertEqual(answer.count("HTTP/1.1 200"), 3, "pipelined requests, in order")
        answer = self.server.raw(b"GET /live HTTP/1.0\r\n\r\n")
        self.assertIn("200", answer.split("\r\n")[0])
        answer = self.server.raw((head + "Connection: close\r\nExpect: 100-continue\r\nContent-Length: 14\r\n\r\n" + body).encode())
        self.assertTrue(answer.startswith("HTTP/1.1 100"), answer)
        self.assertIn("HTTP/1.1 200", answer)

    def test_request_ids(self):
        response, _ = self.server.request("GET", "/live", headers={"X-Request-Id": "mine-1"})
        self.assertEqual(response.getheader("X-Request-Id"), "mine-1")
        response, _ = self.server.request("GET", "/live", headers={"X-Request-Id": "a b"})
        self.assertTrue(response.getheader("X-Request-Id").startswith("req-"))


class Keys(unittest.TestCase):
    def test_keys(self):
        with Server(env={"PMKVQ_API_KEY": KEY}) as server:
            self.assertEqual(server.get("/v1/models")[0], 401)
            self.assertEqual(server.get("/v1/models", headers={"Authorization": "Bearer wrong"})[0], 401)
            self.assertEqual(server.get("/metrics")[0], 401)
            self.assertEqual(server.get("/health")[0], 200)
            for headers in [{"Authorization": "Bearer " + KEY}, {"X-Api-Key": KEY}]:
                self.assertEqual(server.get("/v1/models", headers=headers)[0], 200)
            self.assertNotIn(KEY, "".join(server.lines))

    def test_other_addresses_need_keys(self):
        with Server("--host", "0.0.0.0", wait=False) as server:
            self.assertEqual(server.process.wait(PATIENCE_S), 1)
        self.assertIn("--api-key-file", "".join(server.lines))


class Limits(unittest.TestCase):
    def test_a_full_queue_is_429(self):
        with Server("--queue-size", "2", "--max-sequences", "1", *LONG) as server, concurrent.futures.ThreadPoolExecutor(2) as clients:
            with Holder(server, max_tokens=LONG_TOKENS):
                two = [clients.submit(server.post, "/v1/chat/completions", chat(max_tokens=3)) for _ in range(2)]
                server.wait_for_metric("pmkvq_requests_waiting", 2)
                for _ in range(5):
                    full, _ = server.request("POST", "/v1/chat/completions", chat(max_tokens=3))
                    self.assertEqual(full.status, 429)
                    self.assertGreaterEqual(int(full.getheader("Retry-After")), 1)
            self.assertEqual([one.result()[0] for one in two], [200, 200])
            server.wait_for_metric("pmkvq_requests_running", 0)
            self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=3))[0], 200)

    def test_a_burst_that_the_queue_can_hold_is_taken(self):
        """Also while its prompts are being read: each takes some time, and all come at once."""
        count = 150
        body = json.dumps({"prompt": "a word and another " * 40, "max_tokens": 1}).encode()
        data = (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body)
        with Server("--queue-size", "200", "--max-sequences", "8", "--per-address", "300", "--kv-budget", "16MiB") as server:
            clients = [server.connect() for _ in range(count)]
            for client in clients:
                client.sendall(data[:-1])
            for client in clients:
                client.sendall(data[-1:])
            answers = []
            for client in clients:
                answer = b""
                while part := client.recv(65536):
                    answer += part
                client.close()
                answers.append(answer.split(b"\r\n")[0])
            self.assertEqual(answers, [b"HTTP/1.1 200 OK"] * count)

    def test_clients_that_go_free_their_place(self):
        with Server("--max-sequences", "2", "--queue-size", "8", *LONG) as server:
            for stream in [True, False]:
                for _ in range(6):
                    client = server.connect()
                    client.sendall(post_bytes(chat(max_tokens=LONG_TOKENS, ignore_eos=True, stream=stream)))
                    server.wait_for_metric("pmkvq_requests_running", 1)
                    client.close()
                    server.wait_for_metric("pmkvq_requests_running", 0)
                server.wait_for_metric("pmkvq_requests_running", 0)
                server.wait_for_metric("pmkvq_requests_waiting", 0)
                server.wait_for_metric("pmkvq_kv_used_bytes", 0)
            self.assertEqual(server.metric("pmkvq_clients_gone_total"), 12)
            self.assertLess(server.metric("pmkvq_generated_tokens_total"), 12 * LONG_TOKENS / 2, "their work has ended with them")
            self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=3))[0], 200)

    def test_the_budget_ends_an_answer_with_length(self):
        with Server("--kv-budget", "1MiB") as server:
            _, reply = server.post("/v1/chat/completions", chat(max_tokens=1500, ignore_eos=True))
            self.assertEqual(reply["choices"][0]["finish_reason"], "length")
            self.assertEqual(reply["choices"][0]["stop_reason"], "kv_budget")
            self.assertEqual(reply["kv"]["min_bits"], 2)
            self.assertNotEqual(reply["kv"]["history"], "")


class Shutdown(unittest.TestCase):
    def test_sigterm_lets_answers_end(self):
        with Server("--shutdown-timeout", str(PATIENCE_S)) as server, server.connect() as client:
            client.sendall(post_bytes(chat(max_tokens=1500, ignore_eos=True, stream=True, stream_options={"include_usage": True})))
            answer = client.recv(1)  # Running.
            server.process.send_signal(signal.SIGTERM)
            while part := client.recv(65536):
                answer += part
            self.assertTrue(answer.startswith(b"HTTP/1.1 200"), answer[:200])
            self.assertIn(b'"completion_tokens":1500', answer.replace(b" ", b""))
            self.assertIn(b"[DONE]", answer)
            self.assertEqual(server.process.wait(PATIENCE_S), 0)

    def test_the_time_for_it_is_bounded(self):
        with Server("--shutdown-timeout", "0", *LONG) as server:
            result = []
            thread = threading.Thread(target=lambda: result.append(
                server.request("POST", "/v1/chat/completions", chat(max_tokens=LONG_TOKENS, ignore_eos=True))))
            thread.start()
            server.wait_for_metric("pmkvq_requests_running", 1)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(PATIENCE_S), 0)
            thread.join()
            self.assertEqual(result[0][0].status, 503, "the answer has not come to its end")
            self.assertEqual(json.loads(result[0][1])["error"]["code"], "draining")

    def test_a_port_in_use_is_said_before_loading(self):
        with Server() as server:
            second = subprocess.run([PROGRAM, "serve", "--model", MODEL, "--port", str(server.port)],
                                    capture_output=True, text=True, timeout=PATIENCE_S)
            self.assertEqual(second.returncode, 1)
            self.assertIn("cannot be listened on", second.stderr)


if __name__ == "__main__":
    main()
