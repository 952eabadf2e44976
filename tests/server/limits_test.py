#!/usr/bin/env python3
"""Bounds of `pmkvq serve`: times in the queue and of a request, tokens in the queue, connections, wrong keys, UNIX sockets.

Usage: limits_test.py PROGRAM MODEL [TEST...]. Python's standard library only.
"""
import concurrent.futures
import json
import os
import signal
import socket
import tempfile
import threading
import time
import unittest

from served import KEY, Server, chat, main


def long_chat(**fields):
    return chat(max_tokens=2000, ignore_eos=True, **fields)


def in_parallel(*calls):
    results = [None] * len(calls)
    threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, calls[i]())) for i in range(len(calls))]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    return results


class Times(unittest.TestCase):
    def test_queue_timeout(self):
        with Server("--max-sequences", "1", "--queue-timeout", "1", "--max-len", "8192", "--kv-budget", "16MiB") as server:
            def ask(path="/v1/chat/completions", **fields):
                began = time.monotonic()
                response, text = server.request("POST", path, chat(max_tokens=8000, ignore_eos=True, **fields))
                return response, json.loads(text) if text.startswith("{") else text, time.monotonic() - began
            results = in_parallel(*[ask] * 3, lambda: ask(stream=True))
            ran, *waited = sorted(results, key=lambda result: result[0].status)  # Any of them may come first.
            self.assertEqual(ran[0].status, 200)
            self.assertGreater(ran[2], 1.5, "the others had to wait")
            for response, reply, seconds in waited:
                self.assertEqual((response.status, reply["error"]["code"]), (503, "queue_timeout"))
                self.assertGreaterEqual(int(response.getheader("Retry-After")), 1)
                self.assertGreater(seconds, 0.9)
            server.wait_for_metric("pmkvq_requests_waiting", 0)
            self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=2))[0], 200)

    def test_request_timeout_keeps_what_there_is(self):
        with Server("--request-timeout", "1", "--max-len", "8192", "--kv-budget", "16MiB") as server:
            body = chat(max_tokens=8000, ignore_eos=True)
            status, reply = server.post("/v1/chat/completions", body)
            self.assertEqual(status, 200, reply)
            choice = reply["choices"][0]
            self.assertEqual((choice["finish_reason"], choice["stop_reason"]), ("length", "timeout"))
            self.assertGreater(reply["usage"]["completion_tokens"], 10)
            events = server.stream("/v1/chat/completions", body)
            self.assertEqual(events[-1]["choices"][0]["stop_reason"], "timeout")
            server.wait_for_metric("pmkvq_requests_running", 0)
            server.wait_for_metric("pmkvq_kv_used_bytes", 0)

    def test_request_timeout_in_the_queue(self):
        with Server("--max-sequences", "1", "--request-timeout", "1", "--max-len", "8192", "--kv-budget", "16MiB") as server:
            body = chat(max_tokens=8000, ignore_eos=True, n=2)
            tokens = []
            for status, reply in in_parallel(*[lambda: server.post("/v1/chat/completions", body)] * 3):
                self.assertEqual(status, 200, reply)
                tokens.append(reply["usage"]["completion_tokens"])
                self.assertEqual([(c["finish_reason"], c["stop_reason"]) for c in reply["choices"]], [("length", "timeout")] * 2)
            self.assertLess(min(tokens), max(tokens) / 2, "one has waited")
            server.wait_for_metric("pmkvq_requests_waiting", 0)
            self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=2))[0], 200)

    def test_a_connection_that_stays_does_not_hold_up_the_end(self):
        with Server() as server, server.connect() as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           b"Content-Length: 100\r\n\r\n{")
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(10), 0, server.lines)

    def test_drain_delay(self):
        with Server("--drain-delay", "4") as server:
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_status("/health", 503)
            self.assertIn("draining", server.get("/health")[1])
            self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=2))[0], 200)
            self.assertEqual(server.process.wait(30), 0)
            self.assertGreater(time.monotonic() - began, 3.9)


class FirstSignal(unittest.TestCase):
    def test_any_moment(self):
        """From the first instruction on a signal ends the process; from when the port is taken on, as one that has shut down."""
        began = time.monotonic()
        with Server():
            seconds = time.monotonic() - began
        codes = []
        for moment in range(60):
            with Server(wait=False) as server:
                time.sleep(1.2 * seconds * moment / 60)
                server.process.send_signal(signal.SIGTERM)
                codes.append(server.process.wait(30))
                self.assertIn(codes[-1], (0, -signal.SIGTERM), server.lines)
        self.assertIn(0, codes)


class SecondSignal(unittest.TestCase):
    """At once: neither the running step nor --drain-delay is waited for."""

    def test_the_running_step_is_not_waited_for(self):
        # The prompt is one chunk, so one step.
        with Server("--chunk", "8000", "--max-len", "8192", "--kv-budget", "64MiB", "--threads", "1") as server:
            def ask():
                return server.post("/v1/completions", {"prompt": [1] * 6000, "max_tokens": 1})
            began = time.monotonic()
            self.assertEqual(ask()[0], 200)
            step_seconds = time.monotonic() - began
            with server.connect() as client:
                body = json.dumps({"prompt": [1] * 6000, "max_tokens": 1}).encode()
                client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                               b"Content-Length: %d\r\n\r\n" % len(body) + body)
                time.sleep(0.1 * step_seconds)
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.05 * step_seconds)
                self.assertIsNone(server.process.poll(), "the first signal lets it end")
                began = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                self.assertEqual(server.process.wait(30), 0)
                seconds = time.monotonic() - began
            print(f"a second SIGTERM in a step of {step_seconds:.2f} s: the end after {seconds:.3f} s")
            self.assertLess(seconds, 0.3 * step_seconds)

    def test_the_socket_is_removed(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "socket")
            with Server("--unix-socket", path, "--drain-delay", "60", wait=False) as server:
                self.assertTrue(server.is_ready.wait(60))
                self.assertTrue(os.path.exists(path))
                end = time.monotonic() + 40
                while server.process.poll() is None and time.monotonic() < end:
                    server.process.send_signal(signal.SIGTERM)
                    time.sleep(0.2)  # Two signals that wait together are one.
                self.assertEqual(server.process.wait(1), 0)
            self.assertFalse(os.path.exists(path))


class Counts(unittest.TestCase):
    def test_tokens_in_the_queue(self):
        with Server("--queue-tokens", "100") as server:
            results = in_parallel(*[lambda: server.post("/v1/chat/completions", long_chat())] * 3)
            statuses = [status for status, _ in results]
            self.assertIn(200, statuses)
            self.assertIn(429, statuses)
            refused = next(reply for status, reply in results if status == 429)
            self.assertEqual(refused["error"]["code"], "queue_full")
            self.assertEqual(server.post("/v1/completions", {"prompt": [1] * 500, "max_tokens": 1})[0], 200,
                             "alone, a long one is taken")

    def test_connections(self):
        with Server("--per-address", "5") as server:
            idle = [server.connect() for _ in range(5)]
            time.sleep(0.2)
            if server.tls:
                with self.assertRaises(OSError):  # Closed before the handshake.
                    server.connect(timeout=2)
            else:
                answer = server.raw(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n", wait=2)
                self.assertIn(" 503 ", answer.split("\r\n")[0])
                self.assertIn("too_many_connections", answer)
            for client in idle:
                client.close()
            server.wait_for_status("/live", 200)

    def test_idle_connections_end(self):
        with Server("--idle-timeout", "1") as server:
            with server.connect(timeout=60) as client:
                began = time.monotonic()
                self.assertEqual(client.recv(1), b"")
                self.assertLess(time.monotonic() - began, 30)

    def test_wrong_keys_are_counted(self):
        with Server(env={"PMKVQ_API_KEY": KEY}) as server:
            def try_key():
                return server.request("GET", "/v1/models", headers={"Authorization": "Bearer wrong"})[0].status
            results = [None] * 60
            threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, try_key())) for i in range(60)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(set(results), {401, 429})
            time.sleep(1.1)
            self.assertEqual(server.get("/v1/models", headers={"Authorization": "Bearer " + KEY})[0], 200)


class Fairness(unittest.TestCase):
    def test_few_requests_do_not_wait_for_many(self):
        """Two addresses are two clients, and take turns."""
        with Server("--max-sequences", "8", "--queue-size", "300", "--per-address", "300") as server:
            def ask(address):
                """When the answer came."""
                body = json.dumps(chat(max_tokens=100, ignore_eos=True)).encode()
                with server.connect(source=address) as client:
                    client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                                   b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                    data = b""
                    while part := client.recv(65536):
                        data += part
                self.assertIn(b" 200 ", data.split(b"\r\n")[0], data)
                return time.monotonic()

            with concurrent.futures.ThreadPoolExecutor(205) as clients:
                began = time.monotonic()
                many = [clients.submit(ask, "127.0.0.1") for _ in range(200)]
                while server.metric("pmkvq_requests_waiting") < 150:  # All have come.
                    time.sleep(0.02)
                came = time.monotonic()
                few = sorted(one.result() for one in [clients.submit(ask, "127.0.0.2") for _ in range(5)])
                ends = [one.result() for one in many]
            service = 8 * (max(ends) - began) / 205
            print(f"5 requests behind 200 are answered after {', '.join(f'{one - came:.2f}' for one in few)} s; one takes {service:.2f} s, all take "
                  f"{max(ends) - began:.1f} s")
            # 8 run when they come, 5 take turns with them, and 8 run beside the last one. A count: times depend on the machine's load.
            before = sum(came < end < few[-1] for end in ends)
            self.assertLessEqual(before, 24, "waits for more than two others")


class UnixSocket(unittest.TestCase):
    def ask(self, path, data):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(path)
            client.sendall(data)
            answer = b""
            while part := client.recv(65536):
                answer += part
            return answer.decode()

    def test_requests(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "socket")
            for _ in range(2):  # The second time in place of one that a killed server has left.
                with Server("--unix-socket", path, wait=False) as server:
                    self.assertTrue(server.is_ready.wait(60))
                    self.assertEqual(os.stat(path).st_mode & 0o777, 0o660)
                    body = json.dumps(chat(max_tokens=3)).encode()
                    answer = self.ask(path, b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                                      b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                    self.assertIn(" 200 ", answer.split("\r\n")[0])
                    self.assertIn("choices", answer)
                    server.process.kill()
                    server.process.wait()
                self.assertTrue(os.path.exists(path))
            with Server("--unix-socket", path, wait=False) as server:
                self.assertTrue(server.is_ready.wait(60))
                with Server("--unix-socket", path, wait=False) as second:
                    self.assertEqual(second.process.wait(30), 1)
                self.assertIn("cannot be listened on", "".join(second.lines))
            self.assertFalse(os.path.exists(path), "removed at the end")


class VllmNames(unittest.TestCase):
    def test_metrics(self):
        with Server("--vllm-metrics", "--served-model-name", "m") as server:
            server.post("/v1/chat/completions", chat(max_tokens=5))
            server.wait_for_metric("pmkvq_requests_running", 0)
            _, text = server.get("/metrics")
            for line in ['vllm:generation_tokens_total{model_name="m"} 5', 'vllm:num_requests_running{model_name="m"} 0',
                         'vllm:request_success_total{model_name="m",finished_reason="length"} 1',
                         'vllm:e2e_request_latency_seconds_count{model_name="m"} 1']:
                self.assertIn(line + "\n", text)


if __name__ == "__main__":
    main()
