"""A `pmkvq serve` for tests, and what they ask of it. Programs that import it are called with PROGRAM MODEL [TEST...]."""
import concurrent.futures
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest

PROGRAM, MODEL = sys.argv[1], sys.argv[2]
QUESTION = "Sort these 04 numbers from small to large with merge sort: 697, 103, 406, 156. What is the sorted list?"
KEY = "a-key-of-twenty-bytes"
# Longer than anything takes on a busy machine: a test waits for a state, and fails where it does not come.
PATIENCE_S = 600
PIPELINED = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2 + b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def certificate(name="server", *options, hosts="DNS:localhost,IP:127.0.0.1"):
    """Files of a new certificate for `hosts`, and of its key."""
    paths = [os.path.join(FILES.name, f"{name}.{kind}") for kind in ("pem", "key")]
    subprocess.run(["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=" + name, "-out", paths[0], "-keyout", paths[1],
                    *(options or ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]),
                    "-addext", "subjectAltName=" + hosts], check=True, capture_output=True)
    return paths


FILES = tempfile.TemporaryDirectory()
# With PMKVQ_TEST_TLS set, every server speaks TLS, and so do the clients here.
EVERYWHERE = certificate() if os.environ.get("PMKVQ_TEST_TLS") else None


# Names of files and folders of the server that no client need know.
SECRET_PATHS = {os.path.realpath(MODEL), os.path.dirname(os.path.realpath(MODEL)), os.path.realpath(PROGRAM), os.getcwd(),
                os.path.dirname(os.path.abspath(__file__)), FILES.name}
if os.path.dirname(MODEL):  # The name of the folder alone is the model's name for clients.
    SECRET_PATHS.add(MODEL)
ANY_PATH = re.compile(r"(?<![\w.])/(?:home|usr|var|etc|tmp|root|opt|srv|mnt|proc|sys|dev)/|\.(?:cc|h|py|safetensors|gguf|jinja)\b")


def model_without_end():
    """The model, with room for more tokens than it was trained for."""
    folder = os.path.join(FILES.name, "without-end")
    os.mkdir(folder)
    for name in os.listdir(MODEL):
        os.symlink(os.path.join(os.path.realpath(MODEL), name), os.path.join(folder, name))
    with open(os.path.join(MODEL, "config.json")) as file:
        config = json.load(file)
    os.remove(os.path.join(folder, "config.json"))
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump({**config, "max_position_embeddings": 1 << 20}, file)
    return folder


# For requests that somebody ends: on no machine do they come to their own end before.
LONG_MODEL = ("--model", model_without_end(), "--max-len", "32768")
LONG = (*LONG_MODEL, "--kv-budget", "64MiB")
LONG_TOKENS = 32000


def check_for_paths(text):
    """Every reply of the tests comes by here."""
    found = [path for path in SECRET_PATHS if path in text] + ANY_PATH.findall(text)
    assert not found, f"a reply names files of the server, {found}: {text[:500]}"


def wait_until(holds, seconds=PATIENCE_S, otherwise=lambda: "waited in vain"):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, otherwise()
        time.sleep(0.02)


class Server:
    """A server on a free port, until `with` ends. `tls`: files of a certificate and its key; `command`: in place of all options."""

    def __init__(self, *options, env=None, wait=True, tls=EVERYWHERE, command=None):
        self.use_tls(None if "--unix-socket" in options else tls)
        defaults = {"--model": MODEL, "--port": "0", "--kv": "pm-kvq", "--kv-budget": "4MiB", "--max-len": "2048", "--max-sequences": "4",
                    "--threads": "2"}
        if "--kv-pool" in options:  # In place of a budget for each request.
            del defaults["--kv-budget"]
        if command is None:
            given = [text for name, value in defaults.items() if name not in options for text in (name, value)]
            command = [PROGRAM, "serve", *given, *options, *self.tls_options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, **(env or {})})
        self.lines = []
        self.port = None
        self.is_ready = threading.Event()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        if wait and (not self.is_ready.wait(PATIENCE_S) or self.port is None):
            raise RuntimeError("not ready: " + "".join(self.lines))

    def use_tls(self, files):
        self.tls = files and ssl.create_default_context(cafile=files[0])
        self.tls_options = files and ["--tls-cert", files[0], "--tls-key", files[1]] or []

    def connect(self, timeout=PATIENCE_S, receive_bytes=None, greet=True, source=None):
        """A socket that is connected, from the address `source`; with TLS after the handshake, unless `greet` is false."""
        client = socket.socket()
        if source is not None:
            client.bind((source, 0))
        if receive_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.settimeout(timeout)
        client.connect(("127.0.0.1", self.port))
        return self.tls.wrap_socket(client, server_hostname="127.0.0.1") if self.tls and greet else client

    def read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"ready: (?:https?://[^:]+:(\d+)|unix:)", line)
            if found:
                self.port = found.group(1) and int(found.group(1))
                self.is_ready.set()
        self.is_ready.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.reader.join(10)
        self.process.stderr.close()

    def request(self, method, path, body=None, headers=None, raw=None):
        connection = (http.client.HTTPSConnection("127.0.0.1", self.port, timeout=PATIENCE_S, context=self.tls) if self.tls
                      else http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S))
        sent = {"Content-Type": "application/json"} if body is not None or raw is not None else {}
        sent.update(headers or {})
        connection.request(method, path, raw if raw is not None else body and json.dumps(body), sent)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        check_for_paths(text)
        return response, text

    def post(self, path, body, **more):
        response, text = self.request("POST", path, body, **more)
        return response.status, json.loads(text)

    def get(self, path, **more):
        response, text = self.request("GET", path, **more)
        return response.status, text

    def stream(self, path, body, **more):
        """The events of a stream, [DONE] checked and left out."""
        response, text = self.request("POST", path, {**body, "stream": True}, **more)
        assert response.status == 200, text
        assert response.getheader("Content-Type").startswith("text/event-stream")
        events = [line[6:] for line in text.split("\n\n") if line.startswith("data: ")]
        assert events[-1] == "[DONE]", events[-3:]
        return [json.loads(event) for event in events[:-1]]

    def raw(self, data):
        """What the server answers to these bytes, until it closes: by an error, or as the last request asks."""
        with self.connect() as client:
            client.sendall(data)
            answer = b""
            try:
                while part := client.recv(65536):
                    answer += part
            except (ConnectionResetError, ssl.SSLError):
                pass
            text = answer.decode(errors="replace")
            check_for_paths(text)
            return text

    def metric(self, name):
        _, text = self.get("/metrics")
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
        return float(found.group(1)) if found else None

    def thread_seconds(self):
        """CPU time of each thread."""
        seconds = {}
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            with open(f"/proc/{self.process.pid}/task/{task}/schedstat") as file:
                seconds[task] = int(file.read().split()[0]) * 1e-9
        return seconds

    def wait_for_status(self, path, status, seconds=PATIENCE_S):
        end = time.monotonic() + seconds
        found = None
        while found != status:
            assert time.monotonic() < end, f"{path} answers {found}, expected {status}"
            time.sleep(0.02)
            try:
                found = self.get(path)[0]
            except OSError as error:  # Refused before a handshake.
                found = error

    def wait_for_metric(self, name, value, seconds=PATIENCE_S):
        wait_until(lambda: self.metric(name) == value, seconds, lambda: f"{name} is {self.metric(name)}, expected {value}")


def post_bytes(body, path="/v1/chat/completions", headers=None):
    data = json.dumps(body)
    head = {"Host": "localhost", "Content-Type": "application/json", "Connection": "close", "Content-Length": len(data), **(headers or {})}
    return (f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in head.items()) + "\r\n" + data).encode()


class Holder:
    """A request that runs until `with` ends, or for `max_tokens`: others wait for its `places`."""

    def __init__(self, server, places=1, max_tokens=1900, headers=None):
        self.client = server.connect()
        self.client.sendall(post_bytes(chat(n=places, max_tokens=max_tokens, ignore_eos=True, stream=True), headers=headers))
        self.client.recv(1)  # Its first token: it runs.

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()


def many(server, bodies, path="/v1/chat/completions"):
    """All at once; statuses and replies, in order."""
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as clients:
        return list(clients.map(lambda body: server.post(path, body), bodies))


def begun_together(server, bodies, places, holder_tokens=1900, path="/v1/chat/completions"):
    """As many(), but none begins before all have come, however late a client's thread runs: one request holds all `places` until
    the others wait. Where it ends before that, all is done once more."""
    waiting = sum(body.get("n", 1) for body in bodies)
    for _ in range(20):
        with Holder(server, places, holder_tokens) as holder, concurrent.futures.ThreadPoolExecutor(1) as asking:
            replies = asking.submit(many, server, bodies, path)
            while not replies.done():
                text = server.get("/metrics")[1]
                if f"requests_running {places}\n" in text and f"requests_waiting {waiting}\n" in text:
                    holder.client.close()
                    return replies.result()
    raise AssertionError(f"{waiting} choices never waited at the same time")


def chat(**fields):
    return {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 400, **fields}


class ServedTest(unittest.TestCase):
    """Tests that share one server, which is started with `options` and `server_env`."""
    options = ()
    server_env = None

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.options, env=cls.server_env)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()


def main():
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=1)
