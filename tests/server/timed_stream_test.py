"""Times and ends of streamed answers, from a server that sends what each test says. Called with PROGRAM MODEL [TEST...], which it does not use."""
import asyncio
import json
import socket
import sys
import time
import unittest
import unittest.mock

import timed_stream
from timed_stream import ask_all, chunks

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PROBLEM = {"answer": "12 34"}


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def token(text, finish=None):
    return b"data: " + json.dumps({"choices": [{"text": text, "finish_reason": finish}]}).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\n'
DONE = b"data: [DONE]\n\n"


def results(*replies):
    """What comes of replies, each a list of bytes to send and seconds to wait, asked for one after the other."""
    streams = []

    class Stream(timed_stream.Stream):
        def __init__(self):
            super().__init__()
            streams.append(self)

    async def run():
        left = list(replies)
        sent = 0

        async def serve(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
            nonlocal sent
            for part in left.pop(0):
                if isinstance(part, bytes):
                    sent += len(part)
                    writer.write(part)
                    await writer.drain()
                else:  # Once all is read: on a busy machine a reader may be late.
                    while sum(len(came) for stream in streams for came in stream.parts) < sent:
                        await asyncio.sleep(0.001)
                    await asyncio.sleep(part)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await ask_all(port, [{"prompt": [1]}] * len(replies), 1, time.monotonic() + 280)
    with unittest.mock.patch("timed_stream.Stream", Stream):
        return [stream.result(PROBLEM) for stream in asyncio.run(run())]


class TimedStreamTest(unittest.TestCase):
    def test_gaps_are_those_between_tokens(self):
        (result,) = results([HEAD, 0.1, chunk(token("a")), 0.2, chunk(token("b")) + chunk(token("")), 0.4,
                             chunk(token("\\boxed{1234}")), 0.1, chunk(token("", "stop")) + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n"])
        self.assertEqual((result["end"], result["tokens"], result["text"]), ("solved", 7, "ab\\boxed{1234}"))
        self.assertEqual(len(result["gaps"]), 2)
        self.assertGreater(result["gaps"][0], 0.15)
        self.assertGreater(result["gaps"][1], 0.35)

    def test_an_event_comes_with_its_last_byte(self):
        event = token("a") + token("b")
        cut = len(token("a")) + 5
        sent = chunk(event[:cut]) + chunk(event[cut:])
        inside = len(chunk(event[:cut])) + 9
        (result,) = results([HEAD + sent[:inside], 0.3, sent[inside:] + chunk(token("", "stop") + DONE)])
        self.assertEqual((result["text"], len(result["gaps"])), ("ab", 1))
        self.assertGreater(result["gaps"][0], 0.25)

    def test_two_tokens_at_once_have_no_gap(self):
        (result,) = results([HEAD + chunk(token("a") + token("b") + token("", "stop"))])
        self.assertEqual(result["gaps"], [0])
        self.assertEqual(result["end"], "wrong")

    def test_ends(self):
        error = b'data: {"error": {"message": "full", "code": 500}}\n\n'
        found = results([HEAD + chunk(token("a") + token("", "length"))], [HEAD + chunk(token("a") + error)],
                        [HEAD + chunk(token("a") + b"error: {\"message\": \"full\"}\n\n")], [HEAD + chunk(token("a"))],
                        [HEAD + chunk(token("a"))[:-9]], [b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\n{}"], [])
        self.assertEqual([result["end"] for result in found], ["cut", "lost", "lost", "lost", "lost", "lost", "lost"])
        self.assertEqual([result["error"] for result in found[1:3]], ["full", "full"])
        self.assertIn("503 Busy", found[5]["error"])

    def test_a_body_without_chunks(self):
        (result,) = results([b"HTTP/1.1 200 OK\r\n\r\n", token("a"), 0.2, token("b"), token("", "stop")])
        self.assertEqual((result["text"], result["end"]), ("ab", "wrong"))

    def test_time_that_is_up(self):
        with socket.create_server(("127.0.0.1", 0)) as silent, self.assertRaises(asyncio.TimeoutError):
            asyncio.run(ask_all(silent.getsockname()[1], [{"prompt": [1]}], 1, time.monotonic() + 0.3))

    def test_chunks(self):
        raw = b"head3;x=y\r\nabc\r\n10\r\n0123456789abcdef\r\n5\r\nab"
        self.assertEqual([raw[begin:end] for begin, end in chunks(raw, 4)], [b"abc", b"0123456789abcdef"])


unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
