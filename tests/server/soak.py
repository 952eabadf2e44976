"""`pmkvq serve` under more requests than it can answer, for a long time.

Called with PROGRAM MODEL [SECONDS] (120). Requests of all kinds arrive at random, at 1.2 times the rate at which the server
ends them; one in six or so is turned away with 429. One in five clients vanishes at a random time. Fails where a reply has
a status of 5xx, a stream breaks off, a request is stuck, resident memory grows in the second half (by 1 % or 1 MiB where
that is 25 minutes or more, else by 8 MiB; by 10 % with a sanitizer, whose runtime keeps stacks of allocations and threads
and gives nothing back), the pool is exceeded or not empty at the end, or the server does not end in order. With a program
that was built with a sanitizer its findings count as well.
"""
import http.client
import json
import mmap
import os
import random
import re
import signal
import socket
import statistics
import sys
import threading
import time

SECONDS = float(sys.argv.pop(3)) if len(sys.argv) > 3 else 120.0

from served import MODEL, PROGRAM, Server  # noqa: E402  (reads sys.argv)

OPTIONS = ["--kv-mode", "pool", "--kv-pool", "8MiB", "--max-sequences", "8", "--queue-size", "16", "--queue-timeout", "0",
           "--priorities", "--threads", "1", "--plan", f"{MODEL}/plan.json"]
OVERLOAD = 1.2
CANCELLED_PART = 0.2
# Of the server's processor time: other work on the machine may leave it little. A ThreadSanitizer build is some 20 times
# slower, and the queue holds three turns.
STUCK_CPU_SECONDS = 900.0
HUNG_SECONDS = 900.0  # Without a token of anyone.
RATE_EVERY_SECONDS = 20.0
FINDING = re.compile(r"ERROR: \w+Sanitizer|WARNING: ThreadSanitizer|runtime error:|SUMMARY: \w+Sanitizer|CHECK failed")


def has_sanitizer():
    with open(PROGRAM, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return any(data.find(b"\0" + name + b"\0") >= 0 for name in (b"__asan_init", b"__tsan_init"))


def make_request(rng):
    """A path and a body; all are valid."""
    body = {"temperature": rng.choice([0, 0.7, 1]), "seed": rng.randrange(1 << 30), "max_tokens": rng.choice([10, 50, 200, 600]),
            "ignore_eos": rng.random() < 0.5, "stream": rng.random() < 0.5, "n": rng.choice([1, 1, 1, 2])}
    if rng.random() < 0.2:
        body["priority"] = rng.randint(-100, 100)
    if rng.random() < 0.1:
        body["kv_min_bits"] = rng.choice([4, 8])
    if rng.random() < 0.2:
        body["kv_report"] = "events"
    if rng.random() < 0.2:
        body["stop"] = ["9, 9", "\n\n\n"]
    if body["stream"] and rng.random() < 0.5:
        body["stream_options"] = {"include_usage": True}
    numbers = ", ".join(str(rng.randint(100, 999)) for _ in range(rng.choice([4, 12, 60])))
    if rng.random() < 0.5:
        body["messages"] = [{"role": "user", "content": f"Sort these numbers from small to large: {numbers}."}]
        if rng.random() < 0.2:
            body.update(logprobs=True, top_logprobs=rng.choice([0, 5]))
        elif rng.random() < 0.2:
            body.update(response_format={"type": "json_object"}, ignore_eos=False)
        return "/v1/chat/completions", body
    body["prompt"] = numbers
    if rng.random() < 0.2:
        body.update(logprobs=3, echo=True)
    return "/v1/completions", body


class Soak:
    def __init__(self, server):
        self.server = server
        self.lock = threading.Lock()
        self.under_way = {}  # Thread: the server's processor time when its request began.
        self.counts = {"answered": 0, "cancelled": 0, "429": 0}
        self.faults = []
        self.seconds = []
        self.last_tokens, self.last_news = 0, time.monotonic()
        self.tokens = 0

    def count(self, name):
        with self.lock:
            self.counts[name] = self.counts.get(name, 0) + 1

    def fault(self, text):
        with self.lock:
            self.faults.append(text)
        print(f"{PROGRAM}: fault after {time.monotonic() - self.began:.0f} s: {text}", flush=True)

    def ask(self, seed):
        """One client: its request, and what came of it."""
        rng = random.Random(seed)
        path, body = make_request(rng)
        began = time.monotonic()
        with self.lock:
            self.under_way[threading.current_thread()] = self.cpu_seconds()
            mean = statistics.fmean(self.seconds[-100:]) if self.seconds else 1.0
        vanished = threading.Event()
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=SECONDS + 7200)
        timer = None
        try:
            connection.connect()
            sock = connection.sock
            if rng.random() < CANCELLED_PART:
                def vanish():
                    vanished.set()
                    try:
                        sock.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass
                timer = threading.Timer(rng.uniform(0, 1.5 * mean), vanish)
                timer.start()
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            self.look_at(body, response, response.read().decode(), time.monotonic() - began)
        except Exception as error:
            if vanished.is_set():
                self.count("cancelled")
            else:
                self.fault(f"{path} {body}: {error!r} after {time.monotonic() - began:.1f} s")
        finally:
            if timer:
                timer.cancel()
            connection.close()
            with self.lock:
                del self.under_way[threading.current_thread()]

    def look_at(self, body, response, text, seconds):
        if response.status == 429:
            if not response.getheader("Retry-After"):
                self.fault("429 without Retry-After")
            return self.count("429")
        if response.status != 200:
            return self.fault(f"{response.status}: {text[:300]} to {body}")
        if body["stream"]:
            events = [line[6:] for line in text.split("\n\n") if line.startswith("data: ")]
            if events[-1] != "[DONE]":
                raise ConnectionError("a stream without its end")
            events = [json.loads(event) for event in events[:-1]]
            failed = [event for event in events if "error" in event]
            if failed:
                return self.fault(f"{failed[0]} to {body}")
            ends = [choice["finish_reason"] for event in events for choice in event["choices"] if choice["finish_reason"]]
        else:
            reply = json.loads(text)
            ends = [choice["finish_reason"] for choice in reply["choices"]]
            if reply["usage"]["completion_tokens"] > body["max_tokens"] * body["n"]:
                self.fault(f"{reply['usage']} for {body}")
            self.tokens += reply["usage"]["completion_tokens"]
        if len(ends) != body["n"] or not set(ends) <= {"stop", "length"}:
            self.fault(f"choices end with {ends} for {body}")
        with self.lock:
            self.seconds = self.seconds[-1000:] + [seconds]
        self.count("answered")

    def resident_bytes(self):
        with open(f"/proc/{self.server.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self):
        with open(f"/proc/{self.server.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def num_stuck(self):
        """Requests that the server has not answered in STUCK_CPU_SECONDS."""
        now = self.cpu_seconds()
        with self.lock:
            return sum(now - began > STUCK_CPU_SECONDS for began in self.under_way.values())

    def is_stuck(self):
        """Whether a request waits too long, or all do."""
        now, tokens = time.monotonic(), self.server.metric("pmkvq_generated_tokens_total")
        if tokens != self.last_tokens or not self.under_way:
            self.last_tokens, self.last_news = tokens, now
        if now > self.last_news + HUNG_SECONDS:
            self.fault(f"no token in {HUNG_SECONDS:.0f} s, for {len(self.under_way)} requests")
            return True
        if self.num_stuck() > 0:
            self.fault(f"{self.num_stuck()} requests are stuck")
            return True
        return False

    def run(self):
        rng = random.Random(1)
        self.began = now = time.monotonic()
        seed, rate, next_arrival = 0, 4.0, now
        next_rate, ended_before, next_sample = now + RATE_EVERY_SECONDS, 0, now
        resident, health = [], []  # Resident: pairs of a time and bytes.
        most_waiting = 0
        while now < self.began + SECONDS:
            if now >= next_arrival:
                threading.Thread(target=self.ask, args=(seed,), daemon=True).start()
                seed += 1
                next_arrival = max(next_arrival, now - 1) + rng.expovariate(rate)
            if now >= next_sample:
                next_sample = now + 1
                if self.server.process.poll() is not None:
                    self.fault(f"the server has ended with {self.server.process.returncode}")
                    break
                resident.append((now - self.began, self.resident_bytes()))
                status, text = self.server.get("/health")
                health.append(time.monotonic() - now)
                if status != 200:
                    self.fault(f"/health: {status} {text}")
                most_waiting = max(most_waiting, self.server.metric("pmkvq_requests_waiting"))
                if self.is_stuck():
                    break
            if now >= next_rate:
                with self.lock:
                    ended = self.counts["answered"] + self.counts["cancelled"]
                rate = max(0.2, OVERLOAD * (ended - ended_before) / RATE_EVERY_SECONDS)
                ended_before, next_rate = ended, now + RATE_EVERY_SECONDS
            now = time.monotonic()
            time.sleep(max(0.0, min(next_arrival, next_sample, next_rate) - now))
            now = time.monotonic()
        while self.under_way and not self.faults and not self.is_stuck():
            time.sleep(1)
        self.report(seed, resident, sorted(health), most_waiting)

    def report(self, num_requests, resident, health, most_waiting):
        for name in ["pmkvq_requests_running", "pmkvq_requests_waiting", "pmkvq_kv_used_bytes"]:
            try:
                self.server.wait_for_metric(name, 0, 60)
            except AssertionError as error:
                self.fault(str(error))
        of = {name: self.server.metric("pmkvq_" + name) for name in (
            "kv_pool_bytes", "kv_peak_bytes", "preemptions_total", "generated_tokens_total", "kv_halved_bytes_total", "clients_gone_total")}
        if of["kv_peak_bytes"] > of["kv_pool_bytes"]:
            self.fault("the pool was exceeded")
        duration = resident[-1][0]

        def mib_around(part):
            """The median within 5 % of the time around it, 2 s at least."""
            near = [size for at, size in resident if abs(at - part * duration) <= max(0.05 * duration, 2)]
            return statistics.median(near) / 2**20

        marks = [mib_around(part) for part in (0.25, 0.5, 1)]
        # At first buffers still grow to their sizes. Later only the allocator's slack moves, by some hundred KiB.
        most_growth = max((0.1 if has_sanitizer() else 0.01) * marks[1], 1.0) if duration >= 3000 else 8.0
        if marks[2] - marks[1] > most_growth:
            self.fault(f"resident memory grew from {marks[1]:.1f} to {marks[2]:.1f} MiB in the second half")
        self.server.process.send_signal(signal.SIGTERM)
        try:
            code = self.server.process.wait(120)
            if code != 0:
                self.fault(f"the server ended with {code}")
        except Exception as error:
            self.fault(f"SIGTERM: {error!r}")
        findings = [line.strip() for line in self.server.lines if FINDING.search(line)]
        for line in findings:
            self.fault(line)
        ms = [1e3 * health[int(part * (len(health) - 1))] for part in (0.5, 0.99)]
        print(f"{PROGRAM}: soak of {duration:.0f} s: {num_requests} requests, {self.counts['answered']} answered, {self.counts['cancelled']} vanished, "
              f"{self.counts['429']} turned away; {of['generated_tokens_total']:.0f} tokens; at most {most_waiting:.0f} waiting; "
              f"{of['preemptions_total']:.0f} preemptions, {of['kv_halved_bytes_total'] / 2**20:.0f} MiB halved; "
              f"peak {of['kv_peak_bytes'] / 2**20:.2f} of {of['kv_pool_bytes'] / 2**20:.2f} MiB; resident at 25 %, 50 %, 100 %: "
              + ", ".join(f"{mark:.1f}" for mark in marks)
              + f" MiB; /health p50 {ms[0]:.1f} ms, p99 {ms[1]:.1f} ms; {len(findings)} findings, {len(self.faults)} faults", flush=True)


def main():
    with Server(*OPTIONS) as server:
        soak = Soak(server)
        soak.run()
        if soak.faults:
            print("".join(line for line in server.lines if '"level":"info"' not in line)[-20000:])
            sys.exit(1)


main()
