#!/usr/bin/env python3
"""What goes wrong outside of `pmkvq serve`, with figures: lost clients, slow ones, many, no descriptors, a full disk, kill -9.

Usage: faults.py PROGRAM MODEL [TEST...]. Takes some five minutes; part of ./run test-server, not of the basic tests.
"""
import json
import os
import random
import resource
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import unittest

from served import EVERYWHERE, MODEL, PROGRAM, Server, chat, main, wait_until

MANY = ["--max-connections", "4096", "--per-address", "4096"]


def raise_file_limit():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def resident_bytes(server):
    with open(f"/proc/{server.process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def request_bytes(path="/v1/chat/completions", body=None, **fields):
    text = json.dumps(body if body is not None else chat(**fields)).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
            .encode() + text)


def connect(server, data=b"", receive_bytes=None):
    client = server.connect(receive_bytes=receive_bytes)
    client.sendall(data)
    return client


def health_seconds(server, count=300):
    seconds = []
    for _ in range(count):
        began = time.monotonic()
        assert server.get("/health")[0] == 200
        seconds.append(time.monotonic() - began)
    return sorted(seconds)


class Faults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise_file_limit()

    def idle(self, server):
        for name in ["pmkvq_requests_running", "pmkvq_requests_waiting", "pmkvq_kv_used_bytes"]:
            server.wait_for_metric(name, 0, 20)

    def test_many_connections(self):
        with Server(*MANY, "--max-sequences", "1", "--queue-size", "2000", "--max-len", "8192", "--kv-budget", "16MiB") as server:
            server.post("/v1/chat/completions", chat(max_tokens=5))
            before = resident_bytes(server)
            clients = [connect(server) for _ in range(1000)]
            clients += [connect(server, request_bytes(stream=True, max_tokens=8000, ignore_eos=True)) for _ in range(1000)]
            end = time.monotonic() + 60
            while server.metric("pmkvq_requests_waiting") < 900:  # A few have been answered meanwhile.
                self.assertLess(time.monotonic(), end)
            seconds = health_seconds(server)
            grown = resident_bytes(server) - before
            print(f"1,000 idle connections and 1,000 silent streams: {grown / 2**20:.1f} MiB more, "
                  f"/health p50 {seconds[150] * 1e3:.1f} ms, p99 {seconds[297] * 1e3:.1f} ms")
            self.assertLess(grown, 64 << 20)
            self.assertLess(seconds[297], 0.05)
            for client in clients:
                client.close()
            self.idle(server)
            self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=5))[0], 200)

    def test_a_running_request_among_idle_connections(self):
        """CPU time of the engine's thread, which is the busiest: wall time says more of what else the machine does."""
        with Server(*MANY, "--max-sequences", "1", "--max-len", "2048", "--threads", "1") as server:
            def seconds():
                before = server.thread_seconds()
                self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=1500, ignore_eos=True))[0], 200)
                return max(one - before.get(task, 0) for task, one in server.thread_seconds().items())
            seconds()
            alone, among = [], []
            for _ in range(7):
                alone.append(seconds())
                idle = [connect(server) for _ in range(1000)]
                among.append(seconds())
                for client in idle:
                    client.close()
            ratio = statistics.median(among) / statistics.median(alone)
            print(f"1,500 tokens among 1,000 idle connections: {100 * (ratio - 1):+.1f} % of the time of the engine's thread, "
                  f"{statistics.median(alone):.2f} s")
            self.assertLess(ratio, 1.02)

    def test_a_thousand_clients_that_vanish(self):
        rng = random.Random(1)
        with Server(*MANY, "--max-sequences", "4", "--queue-size", "64", "--max-len", "8192", "--kv-budget", "16MiB") as server:
            sizes = []
            long_prompt = {"prompt": [1] * 7000, "max_tokens": 1000}
            for i in range(1000):
                kind = i % 4
                data = (request_bytes("/v1/completions", long_prompt) if kind == 0
                        else request_bytes(stream=kind == 1, max_tokens=8000, ignore_eos=True, n=8 if kind == 3 else 1))
                client = connect(server, data)
                time.sleep(rng.uniform(0, 0.02))
                client.close()
                if i % 250 == 249:
                    began = time.monotonic()
                    self.idle(server)
                    sizes.append(resident_bytes(server))
            print(f"1,000 vanished clients: idle after {time.monotonic() - began:.2f} s, resident MiB after each 250: "
                  + ", ".join(f"{size / 2**20:.1f}" for size in sizes))
            self.assertLess(sizes[-1] - sizes[0], 8 << 20)
            self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=5))[0], 200)

    def test_stalled_readers(self):
        with Server("--max-sequences", "4", "--max-len", "8192", "--kv-budget", "16MiB") as server:
            data = request_bytes("/v1/completions", {"prompt": "x", "stream": True, "max_tokens": 8000, "ignore_eos": True,
                                                     "logprobs": 20, "temperature": 1})
            stalled = [connect(server, data, receive_bytes=4096) for _ in range(3)]
            time.sleep(2)
            began = time.monotonic()
            status, reply = server.post("/v1/chat/completions", chat(max_tokens=1000, ignore_eos=True))
            self.assertEqual(status, 200)
            print(f"beside 3 stalled readers 1,000 tokens take {time.monotonic() - began:.1f} s", end="; ")
            server.wait_for_metric("pmkvq_slow_readers_cancelled_total", 3, 150)
            print(f"they are cancelled after {time.monotonic() - began + 2:.0f} s")
            self.idle(server)
            for client in stalled:
                client.close()

    def test_slow_senders(self):
        with Server(*MANY) as server:
            ends = {}

            def drip(name, head, data):
                client = connect(server, head)
                began = time.monotonic()
                client.settimeout(1)
                answer = b""
                for byte in data:
                    try:
                        client.sendall(bytes([byte]))
                        answer = client.recv(4096)
                        break
                    except TimeoutError:
                        continue
                    except OSError:
                        break
                ends[name] = (time.monotonic() - began, answer.split(b"\r\n")[0].decode())
                client.close()

            whole = request_bytes(max_tokens=5)
            cut = whole.index(b"\r\n\r\n") + 4
            threads = [threading.Thread(target=drip, args=(f"header {i}", b"", whole)) for i in range(20)]
            threads += [threading.Thread(target=drip, args=(f"body {i}", whole[:cut], whole[cut:])) for i in range(20)]
            for thread in threads:
                thread.start()
            seconds = health_seconds(server, 100)
            for thread in threads:
                thread.join()
            for name, (end, line) in ends.items():
                self.assertIn(" 408 ", line, name)
                self.assertLess(end, 12, name)
            print(f"20 headers and 20 bodies at 1 byte/s: 408 after {max(e for n, (e, _) in ends.items() if n[0] == 'h'):.1f} s and "
                  f"{max(e for n, (e, _) in ends.items() if n[0] == 'b'):.1f} s; /health p99 meanwhile {seconds[98] * 1e3:.1f} ms")

    def test_malformed_bodies(self):
        rng = random.Random(2)
        with Server(*MANY) as server:
            server.post("/v1/chat/completions", chat(max_tokens=2))
            before = resident_bytes(server)
            statuses = {}
            base = json.dumps(chat(max_tokens=2, tools=[], response_format={"type": "json_object"}, stop=["x"], logit_bias={"1": 2})).encode()
            bodies = [b'{"messages":' * 1000, b"[" * 1000000, b'{"a":"\\ud800"}', b'{"a":1e999}', b'"' + b"x" * 4000000 + b'"', b"\xff" * 100]
            while len(bodies) < 300:
                data = bytearray(base)
                for _ in range(rng.randint(1, 8)):
                    place = rng.randrange(len(data))
                    data[place:place + rng.choice([0, 1, 1, 5])] = rng.choice([b"", b"{", b"]", b"\x00", b"\xc3", b'"', b"null", b"9" * 30, b"-"])
                bodies.append(bytes(data))
            for body in bodies:
                response, text = server.request("POST", "/v1/chat/completions", raw=body)
                statuses[response.status] = statuses.get(response.status, 0) + 1
                json.loads(text)
            grown = resident_bytes(server) - before
            print(f"300 malformed bodies: {dict(sorted(statuses.items()))}, {grown / 2**20:.1f} MiB more")
            self.assertLessEqual(set(statuses), {200, 400, 404, 413})
            self.assertGreater(statuses[400], 200)
            self.assertLess(grown, 32 << 20)
            self.assertEqual(server.get("/live")[0], 200)

    def test_few_descriptors(self):
        script = f"import resource,os,sys; resource.setrlimit(resource.RLIMIT_NOFILE,(64,64)); os.execv(sys.argv[1], sys.argv[1:])"
        server = Server.__new__(Server)
        server.use_tls(EVERYWHERE)
        process = subprocess.Popen(["python3", "-c", script, PROGRAM, "serve", "--model", MODEL, "--port", "0", "--max-len", "512",
                                    *server.tls_options], stderr=subprocess.PIPE, text=True)
        server.process, server.lines, server.port, server.is_ready = process, [], None, threading.Event()
        server.reader = threading.Thread(target=server.read, daemon=True)
        server.reader.start()
        with server:
            self.assertTrue(server.is_ready.wait(60) and server.port)
            clients = [server.connect(greet=False) for _ in range(200)]  # The kernel takes those that the server cannot.
            time.sleep(1)
            self.assertIsNone(process.poll())
            for client in clients:
                client.close()
            time.sleep(1)
            self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=3))[0], 200)
            print("64 descriptors, 200 connections: it serves again when they are closed")

    def test_full_disk_for_the_log(self):
        with Server("--log-file", "/dev/full") as server:
            for _ in range(5):
                self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=2))[0], 200)
            wait_until(lambda: server.metric("pmkvq_log_dropped_total") >= 5)
            dropped = server.metric("pmkvq_log_dropped_total")
            print(f"a log on a full disk: requests are served, {dropped:.0f} lines dropped")

    def test_kill_and_restart(self):
        began = time.monotonic()
        with Server() as server:
            load_seconds = time.monotonic() - began
            clients = [connect(server, request_bytes(stream=True, max_tokens=1900, ignore_eos=True)) for _ in range(8)]
            time.sleep(0.3)
            server.process.kill()
            server.process.wait()
            for client in clients:
                try:
                    while client.recv(65536):
                        pass
                except ConnectionResetError:
                    pass
                client.close()
            port = server.port
        began = time.monotonic()
        with Server("--port", str(port)) as server:
            seconds = time.monotonic() - began
            self.assertEqual(server.post("/v1/chat/completions", chat(max_tokens=2))[0], 200)
            print(f"killed under load: serves again on the same port after {seconds:.1f} s (loading takes {load_seconds:.1f} s)")
            self.assertLess(seconds, load_seconds + 2)

    def test_two_signals(self):
        with Server("--shutdown-timeout", "30", "--max-len", "8192", "--kv-budget", "16MiB") as server:
            client = connect(server, request_bytes(stream=True, max_tokens=8000, ignore_eos=True))
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(10)
            print(f"a second SIGTERM ends it after {time.monotonic() - began:.2f} s")
            client.close()


CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
/* Seconds that the clock of the day is wrong: the text of the file CLOCK_OFFSET. Steady clocks are right. */
static long offset(void) {
  char text[32] = {0};
  const int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
  if (file < 0) return 0;
  if (read(file, text, sizeof(text) - 1) < 0) text[0] = 0;
  close(file);
  return atol(text);
}
int clock_gettime(clockid_t id, struct timespec* now) {
  static int (*real)(clockid_t, struct timespec*);
  if (!real) real = (int (*)(clockid_t, struct timespec*))dlsym(RTLD_NEXT, "clock_gettime");
  const int result = real(id, now);
  if (id == CLOCK_REALTIME) now->tv_sec += offset();
  return result;
}
time_t time(time_t* out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
"""


class ClockJump(unittest.TestCase):
    def test_the_clock_of_the_day_may_jump(self):
        with tempfile.TemporaryDirectory() as folder:
            source, library, offset = (os.path.join(folder, name) for name in ["clock.c", "clock.so", "offset"])
            for path, text in [(source, CLOCK), (offset, "0")]:
                with open(path, "w") as file:
                    file.write(text)
            subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
            with Server("--max-len", "8192", "--kv-budget", "16MiB", "--queue-timeout", "600", "--request-timeout", "600", "--max-sequences", "1",
                        env={"LD_PRELOAD": library, "CLOCK_OFFSET": offset}) as server:
                jumps = [86400, -86400, 10**9, 0]
                for jump in jumps:
                    results = []
                    threads = [threading.Thread(target=lambda: results.append(server.post("/v1/chat/completions", chat(max_tokens=400, ignore_eos=True))))
                               for _ in range(3)]  # Two of them wait.
                    for thread in threads:
                        thread.start()
                    time.sleep(0.1)
                    with open(offset, "w") as file:
                        file.write(str(jump))
                    idle = server.connect()
                    for thread in threads:
                        thread.join(120)
                    self.assertEqual([(status, reply["usage"]["completion_tokens"]) for status, reply in results], [(200, 400)] * 3)
                    idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    self.assertIn(b" 200 ", idle.recv(4096).split(b"\r\n")[0])
                    idle.close()
                    _, reply = server.post("/v1/chat/completions", chat(max_tokens=1))
                    self.assertLess(abs(reply["created"] - time.time() - jump), 60, "the server's clock has jumped")
                self.idle_metrics(server)
            print(f"the clock jumps by {', '.join(str(jump) for jump in jumps)} s: running, waiting and idle ones go on")

    def idle_metrics(self, server):
        for name in ["pmkvq_requests_running", "pmkvq_requests_waiting", "pmkvq_kv_used_bytes"]:
            server.wait_for_metric(name, 0, 20)


if __name__ == "__main__":
    main()
