#!/usr/bin/env python3
"""Bounds of `pmkvq serve`: times in the queue and of a request, tokens in the queue, connections, wrong keys, UNIX sockets.

Usage: limits_test.py PROGRAM MODEL [TEST...]. Python's standard library only.
"""
import concurrent.futures
import json
import os
import resource
import signal
import socket
import tempfile
import time
import unittest

from served import KEY, LONG, LONG_TOKENS, PATIENCE_S, Holder, Server, chat, main, post_bytes, wait_until


def in_parallel(*calls):
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as clients:
        return [one.result() for one in [clients.submit(call) for call in calls]]


def cpu_seconds(server):
    """Processor time of the server so far, in steps of 10 ms."""
    with open(f"/proc/{server.process.pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Times(unittest.TestCase):
    def test_queue_timeout(self):
        with Server("--max-sequences", "1", "--queue-timeout", "2", *LONG) as server:
            def ask(**fields):
                began = time.monotonic()
                response, text = server.request("POST", "/v1/chat/completions", chat(max_tokens=10, **fields))
                return response, json.loads(text), time.monotonic() - began
            with Holder(server, max_tokens=LONG_TOKENS):
                for response, reply, seconds in in_parallel(*[ask] * 3, lambda: ask(stream=True)):
                    self.assertEqual((response.status, reply["error"]["code"]), (503, "queue_timeout"))
                    self.assertGreaterEqual(int(response.getheader("Retry-After")), 1)
                    self.assertGreater(seconds, 1.9)
            server.wait_for_metric("pmkvq_requests_running", 0)
            server.wait_for_metric("pmkvq_requests_waiting", 0)
            self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=2))[0], 200)

    def test_request_timeout_keeps_what_there_is(self):
        with Server("--request-timeout", "1", *LONG) as server:
            body = chat(max_tokens=LONG_TOKENS, ignore_eos=True)
            for _ in range(20):  # Until the machine lets it have some tokens in its second.
                status, reply = server.post("/v1/chat/completions", body)
                self.assertEqual(status, 200, reply)
                choice = reply["choices"][0]
                self.assertEqual((choice["finish_reason"], choice["stop_reason"]), ("length", "timeout"))
                if reply["usage"]["completion_tokens"] > 10:
                    break
            self.assertGreater(reply["usage"]["completion_tokens"], 10)
            events = server.stream("/v1/chat/completions", body)
            self.assertEqual(events[-1]["choices"][0]["stop_reason"], "timeout")
            server.wait_for_metric("pmkvq_requests_running", 0)
            server.wait_for_metric("pmkvq_kv_used_bytes", 0)

    def test_request_timeout_in_the_queue(self):
        with Server("--max-sequences", "1", "--request-timeout", "1", *LONG) as server:
            body = chat(max_tokens=LONG_TOKENS, ignore_eos=True, n=2, logprobs=True)
            for status, reply in in_parallel(*[lambda: server.post("/v1/chat/completions", body)] * 3):
                self.assertEqual(status, 200, reply)
                self.assertEqual([(c["finish_reason"], c["stop_reason"]) for c in reply["choices"]], [("length", "timeout")] * 2)
                # One choice waits until the time of both is up.
                self.assertEqual(min(len((c["logprobs"] or {}).get("content", [])) for c in reply["choices"]), 0, reply["usage"])
            server.wait_for_metric("pmkvq_requests_waiting", 0)
            self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=2))[0], 200)

    def test_a_connection_that_stays_does_not_hold_up_the_end(self):
        with Server("--shutdown-timeout", "3000") as server, server.connect() as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           b"Content-Length: 100\r\n\r\n{")
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(PATIENCE_S), 0, server.lines)

    def test_drain_delay(self):
        with Server("--drain-delay", "3000") as server:
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_status("/health", 503)
            self.assertIn("draining", server.get("/health")[1])
            self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=2))[0], 200)
            self.assertIsNone(server.process.poll())
            server.process.send_signal(signal.SIGTERM)  # At once.
            self.assertEqual(server.process.wait(PATIENCE_S), 0)
        with Server("--drain-delay", "2") as server:
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(PATIENCE_S), 0)
            self.assertGreater(time.monotonic() - began, 1.9)


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
                codes.append(server.process.wait(PATIENCE_S))
                self.assertIn(codes[-1], (0, -signal.SIGTERM), server.lines)
        with Server() as server:
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(PATIENCE_S), 0, server.lines)


class SecondSignal(unittest.TestCase):
    """At once: neither the running step nor --drain-delay is waited for."""

    def test_the_running_step_is_not_waited_for(self):
        for _ in range(20):
            second, end = self.end_in_a_step()
            if second < 0.6:  # Else this test has come too late for its step.
                self.assertLess(end, second + 0.3)
                return
        self.fail("no second signal came inside of a step")

    def end_in_a_step(self):
        """The parts of a step that were done when the second signal came and when the server ended: of its processor time, since
        time by the clock says nothing of a server on a busy machine."""
        prompt = {"prompt": [1] * 6000, "max_tokens": 1}  # One chunk, so one step.
        with Server("--chunk", "8000", "--max-len", "8192", "--kv-budget", "64MiB", "--threads", "1") as server:
            began = cpu_seconds(server)
            self.assertEqual(server.post("/v1/completions", prompt)[0], 200)
            step = cpu_seconds(server) - began
            with server.connect() as client:
                began = cpu_seconds(server)
                reaped = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])

                def part():
                    """The part of the step that is done; what had been used in all once the server has ended."""
                    if server.process.poll() is None:
                        return (cpu_seconds(server) - began) / step
                    return (sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - reaped - began) / step
                client.sendall(post_bytes(prompt, "/v1/completions"))
                wait_until(lambda: part() > 0.1)
                server.process.send_signal(signal.SIGTERM)
                wait_until(lambda: part() > 0.2 or server.process.poll() is not None)
                self.assertGreater(part(), 0.2, "the first signal lets it end")
                server.process.send_signal(signal.SIGTERM)
                second = part()
                self.assertEqual(server.process.wait(PATIENCE_S), 0)
                print(f"signals in a step of {step:.2f} s: the second when {second:.0%} was done, the end at {part():.0%}")
                return second, part()

    def test_the_socket_is_removed(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "socket")
            with Server("--unix-socket", path, "--drain-delay", "60", wait=False) as server:
                self.assertTrue(server.is_ready.wait(PATIENCE_S))
                self.assertTrue(os.path.exists(path))
                end = time.monotonic() + PATIENCE_S
                while server.process.poll() is None and time.monotonic() < end:
                    server.process.send_signal(signal.SIGTERM)
                    time.sleep(0.2)  # Two signals that wait together are one.
                self.assertEqual(server.process.wait(1), 0)
            self.assertFalse(os.path.exists(path))


class Counts(unittest.TestCase):
    def test_tokens_in_the_queue(self):
        with Server("--queue-tokens", "60", *LONG) as server:
            with Holder(server, max_tokens=LONG_TOKENS):
                for _ in range(3):
                    status, reply = server.post("/v1/chat/completions", chat(max_tokens=3))
                    self.assertEqual((status, reply["error"]["code"]), (429, "queue_full"))
            server.wait_for_metric("pmkvq_requests_running", 0)
            self.assertEqual(server.post("/v1/completions", {"prompt": [1] * 500, "max_tokens": 1})[0], 200,
                             "alone, a long one is taken")

    def test_connections(self):
        with Server("--per-address", "5") as server:
            idle = [server.connect() for _ in range(5)]  # They are accepted in order.
            if server.tls:
                with self.assertRaises(OSError):  # Closed before the handshake.
                    server.connect()
            else:
                answer = server.raw(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
                self.assertIn(" 503 ", answer.split("\r\n")[0])
                self.assertIn("too_many_connections", answer)
            for client in idle:
                client.close()
            server.wait_for_status("/live", 200)

    def test_idle_connections_end(self):
        with Server("--idle-timeout", "1") as server:
            with server.connect() as client:
                self.assertEqual(client.recv(1), b"")

    def test_wrong_keys_are_counted(self):
        with Server(env={"PMKVQ_API_KEY": KEY}) as server:
            def try_key():
                return server.request("GET", "/v1/models", headers={"Authorization": "Bearer wrong"})[0].status
            statuses = set()
            for _ in range(20):  # Until more than 20 come in one second.
                statuses |= set(in_parallel(*[try_key] * 60))
                if 429 in statuses:
                    break
            self.assertEqual(statuses, {401, 429})
            time.sleep(1.1)
            self.assertEqual(server.get("/v1/models", headers={"Authorization": "Bearer " + KEY})[0], 200)


class Fairness(unittest.TestCase):
    def test_few_requests_do_not_wait_for_many(self):
        """Two addresses are two clients, and take turns."""
        with Server("--max-sequences", "8", "--queue-size", "300", "--per-address", "300", *LONG) as server:
            def ask(address):
                with server.connect(source=address) as client:
                    client.sendall(post_bytes(chat(max_tokens=100, ignore_eos=True)))
                    data = b""
                    while part := client.recv(65536):
                        data += part
                self.assertIn(b" 200 ", data.split(b"\r\n")[0], data)

            with concurrent.futures.ThreadPoolExecutor(205) as clients:
                with Holder(server, places=8, max_tokens=LONG_TOKENS):  # None begins before all wait.
                    replies = [clients.submit(ask, "127.0.0.1") for _ in range(200)]
                    server.wait_for_metric("pmkvq_requests_waiting", 200)
                    replies += [clients.submit(ask, "127.0.0.2") for _ in range(5)]
                    server.wait_for_metric("pmkvq_requests_waiting", 205)
                for one in replies:
                    one.result()
            # In the order of their ends; times depend on the machine.
            wait_until(lambda: sum('"event":"request"' in line for line in list(server.lines)) == 206)
            ended = [line for line in server.lines if '"event":"request"' in line and "client_gone" not in line]
            few = [i for i, line in enumerate(ended) if '"client":"127.0.0.2"' in line]
            self.assertEqual(len(few), 5)
            print(f"5 requests behind 200 are answered as number {', '.join(str(i + 1) for i in few)}")
            # They take turns with the others, and 8 run beside the last one.
            self.assertLessEqual(few[-1] + 1 - 5, 24, "waits for more than two others")


class UnixSocket(unittest.TestCase):
    def ask(self, path, data):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
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
                    self.assertTrue(server.is_ready.wait(PATIENCE_S))
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
                self.assertTrue(server.is_ready.wait(PATIENCE_S))
                with Server("--unix-socket", path, wait=False) as second:
                    self.assertEqual(second.process.wait(PATIENCE_S), 1)
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
