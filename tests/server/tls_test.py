#!/usr/bin/env python3
"""`pmkvq serve` with TLS: handshakes, files, certificates that are read again, and `pmkvq chat` as its client.

Usage: tls_test.py PROGRAM MODEL [TEST...]. Python's standard library and openssl. That the limits hold with TLS as well is tested by
limits_test.py and faults.py with PMKVQ_TEST_TLS=1.
"""
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import unittest
import warnings

from served import (FILES, LONG, LONG_TOKENS, MODEL, PATIENCE_S, PIPELINED, PROGRAM, Server, ServedTest, certificate, chat, main,
                    post_bytes, wait_until)

CERTIFICATE = certificate("one")


def file_of(name, text):
    path = os.path.join(FILES.name, name)
    with open(path, "w") as file:
        file.write(text)
    return path


def serial_of(server):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(server.connect(greet=False)) as client:
        return client.getpeercert(binary_form=True)


class Tls(ServedTest):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(*LONG, tls=CERTIFICATE)

    def test_answers(self):
        status, whole = self.server.post("/v1/chat/completions", chat())
        self.assertEqual(status, 200, whole)
        events = self.server.stream("/v1/chat/completions", chat())
        joined = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
        self.assertEqual(joined, whole["choices"][0]["message"]["content"])
        long_text = "word " * 40000
        _, tokens = self.server.post("/tokenize", {"prompt": long_text, "with_pieces": True})
        self.assertGreater(len(json.dumps(tokens)), 1 << 20, "a reply of many records")

    def test_versions_and_protocols(self):
        warnings.simplefilter("ignore", DeprecationWarning)  # Of TLS 1.1, by name.
        for version, works in [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)]:
            context = ssl.create_default_context(cafile=CERTIFICATE[0])
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, version
            try:
                with context.wrap_socket(self.server.connect(greet=False), server_hostname="127.0.0.1") as client:
                    self.assertTrue(works, "TLS 1.1 is refused")
                    client.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    self.assertTrue(client.recv(100).startswith(b"HTTP/1.1 200"))
            except (ssl.SSLError, ConnectionResetError):
                self.assertFalse(works, version)
        for offered, chosen in [(["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), ([], None)]:
            context = ssl.create_default_context(cafile=CERTIFICATE[0])
            if offered:
                context.set_alpn_protocols(offered)
            with context.wrap_socket(self.server.connect(greet=False), server_hostname="127.0.0.1") as client:
                self.assertEqual(client.selected_alpn_protocol(), chosen)

    def test_the_end_of_a_connection_is_said(self):
        """A client can tell a reply that is whole from one that somebody has cut."""
        with self.server.connect() as client:
            client.suppress_ragged_eofs = False
            client.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            while client.recv(4096):
                pass

    @unittest.skipIf(shutil.which("curl") is None, "curl is not installed")
    def test_curl(self):
        url = f"https://127.0.0.1:{self.server.port}/v1/models"
        done = subprocess.run(["curl", "-sS", "--cacert", CERTIFICATE[0], url], capture_output=True, text=True, timeout=PATIENCE_S)
        self.assertEqual(json.loads(done.stdout)["object"], "list", done.stderr)
        done = subprocess.run(["curl", "-sS", url], capture_output=True, text=True, timeout=PATIENCE_S)
        self.assertEqual(done.returncode, 60, "an unknown authority is refused")

    def test_http_on_the_port_of_https(self):
        with self.server.connect(greet=False) as client:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100000)
            answer = b""
            while part := client.recv(4096):
                answer += part
        self.assertTrue(answer.startswith(b"HTTP/1.1 400 "), answer)
        self.assertEqual(json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"], "tls_expected")

    def test_other_bytes_close_the_connection(self):
        for data in [b"\0" * 100, b"SSH-2.0-x\r\n", b"\x16\x03\x01\xff\xff" + b"\1" * 70000, os.urandom(5000)]:
            for _ in range(20):
                began = time.monotonic()
                with self.server.connect(greet=False) as client:
                    try:
                        client.sendall(data)
                        while client.recv(4096):
                            pass
                    except (ConnectionResetError, BrokenPipeError):
                        pass
                if time.monotonic() - began < 8:  # Before the time for a handshake is up. A stalled machine gets more tries.
                    break
            else:
                self.fail(f"stays open: {data[:20]}")
        self.assertEqual(self.server.get("/live")[0], 200)

    def test_half_open_handshakes_end(self):
        before = self.server.metric("pmkvq_tls_failures_total")
        began = time.monotonic()
        clients = [self.server.connect(greet=False) for _ in range(50)]
        for client in clients[:25]:
            client.sendall(b"\x16\x03\x01\x02\x00\x01")  # The beginning of a ClientHello.
        self.assertEqual(self.server.post("/v1/chat/completions", chat(max_tokens=5))[0], 200)
        for client in clients:
            self.assertEqual(client.recv(10), b"")
            client.close()
        self.assertGreater(time.monotonic() - began, 9)
        self.server.wait_for_metric("pmkvq_tls_failures_total", before + 50)

    def test_clients_that_go_end_their_requests(self):
        for stream in [True, False]:
            for says_goodbye in [True, False]:
                gone = self.server.metric("pmkvq_clients_gone_total")
                tokens = self.server.metric("pmkvq_generated_tokens_total")
                client = self.server.connect()
                client.sendall(post_bytes(chat(max_tokens=LONG_TOKENS, ignore_eos=True, stream=stream)))
                self.server.wait_for_metric("pmkvq_requests_running", 1)
                if says_goodbye:
                    client.setblocking(False)
                    try:
                        client.unwrap()  # Only says that it ends: the socket stays open.
                    except (ssl.SSLError, BlockingIOError):
                        pass
                else:
                    client.close()
                self.server.wait_for_metric("pmkvq_clients_gone_total", gone + 1)
                self.server.wait_for_metric("pmkvq_requests_running", 0)
                self.assertLess(self.server.metric("pmkvq_generated_tokens_total") - tokens, LONG_TOKENS, "its work has ended, too")
                client.close()

    def test_pipelined_requests(self):
        answer = self.server.raw(PIPELINED)
        self.assertEqual(answer.count("HTTP/1.1 200"), 3)


class ChatCommand(unittest.TestCase):
    def chat(self, server, host, *options):
        return subprocess.run([PROGRAM, "chat", "--url", f"https://{host}:{server.port}/v1", "--max-tokens", "3", *options, "Hi"],
                              capture_output=True, text=True, timeout=PATIENCE_S)

    def refused(self, server, host, word, *options):
        done = self.chat(server, host, *options)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn(word, done.stderr)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)

    def test_names_and_addresses(self):
        by_name = certificate("by_name", hosts="DNS:localhost,DNS:127.0.0.1")  # An address is no name.
        by_address = certificate("by_address", hosts="IP:127.0.0.1")
        for files, good, bad, word in [(by_name, "localhost", "127.0.0.1", "IP address mismatch"),
                                       (by_address, "127.0.0.1", "localhost", "hostname mismatch")]:
            with Server(tls=files) as server:
                done = self.chat(server, good, "--ca-cert", files[0])
                self.assertEqual(done.returncode, 0, done.stderr)
                self.refused(server, bad, word, "--ca-cert", files[0])
                self.refused(server, good, "not trusted")
                self.refused(server, good, "not trusted", "--ca-cert", CERTIFICATE[0])
                self.refused(server, good, files[1], "--ca-cert", files[1])


class TlsFiles(unittest.TestCase):
    def refused(self, cert, key, code=1):
        done = subprocess.run([PROGRAM, "serve", "--model", MODEL, "--port", "0", "--tls-cert", cert, *(["--tls-key", key] if key else [])],
                              capture_output=True, text=True, timeout=PATIENCE_S)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stderr.strip()

    def test_errors(self):
        cert, key = CERTIFICATE
        other = certificate("other", "-newkey", "rsa:2048")
        weak = certificate("weak", "-newkey", "rsa:1024")
        locked = os.path.join(FILES.name, "locked.key")
        subprocess.run(["openssl", "ec", "-in", key, "-aes128", "-passout", "pass:x", "-out", locked], check=True, capture_output=True)
        unreadable = file_of("unreadable.pem", "x")
        os.chmod(unreadable, 0)
        cases = [("nothing.pem", key, "nothing.pem"), (cert, "nothing.key", "nothing.key"), (FILES.name, key, "is a folder"),
                 (file_of("empty.pem", ""), key, "empty.pem"), (file_of("text.pem", "no certificate"), key, "text.pem"),
                 (cert, file_of("text.key", "no key"), "text.key"), (key, key, key), (cert, cert, cert),
                 (cert, other[1], "is not the key of " + cert), (other[0], key, "is not the key of " + other[0]),
                 (cert, locked, "passphrase"), (weak[0], weak[1], "too small")]
        if os.geteuid() != 0:
            cases.append((unreadable, key, unreadable))
        for one in cases:
            message = self.refused(one[0], one[1])
            self.assertIn(one[2], message)
            self.assertEqual(len(message.splitlines()), 1, message)
        self.assertIn("--tls-key", self.refused(cert, None, 2))
        done = subprocess.run([PROGRAM, "serve", "--model", MODEL, "--unix-socket", os.path.join(FILES.name, "s"), "--tls-cert", cert,
                               "--tls-key", key], capture_output=True, text=True, timeout=PATIENCE_S)
        self.assertEqual(done.returncode, 1)
        self.assertIn("--unix-socket", done.stderr)

    def test_a_hangup_reads_them_again(self):
        first, second = certificate("first"), certificate("second")
        with Server(tls=first) as server:
            with server.connect() as kept:
                before = serial_of(server)
                for i in (0, 1):
                    os.replace(second[i], first[i])
                server.process.send_signal(signal.SIGHUP)
                wait_until(lambda: serial_of(server) != before)
                after = serial_of(server)
                file_of("first.key", "no key")
                server.process.send_signal(signal.SIGHUP)
                wait_until(lambda: any("first.key" in line for line in server.lines))
                self.assertEqual(serial_of(server), after, "the former certificate stays")
                self.assertEqual(len([line for line in server.lines if "first.key" in line]), 1, server.lines)
                kept.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                self.assertTrue(kept.recv(100).startswith(b"HTTP/1.1 200"), "open connections go on")


class WithoutTls(unittest.TestCase):
    def test_https_on_the_port_of_http(self):
        with Server(tls=None) as server:
            context = ssl.create_default_context()
            with self.assertRaises(ssl.SSLError), socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as client:
                context.wrap_socket(client, server_hostname="localhost")
            self.assertEqual(server.get("/live")[0], 200)


if __name__ == "__main__":
    main()
