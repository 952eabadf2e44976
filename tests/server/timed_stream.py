"""Answers of /v1/completions as server-sent events, with the time at which each token came. Standard library only."""
import asyncio
import itertools
import json
import time

from problems import is_solved

SILENCE_S = 900.0  # A stream that says nothing for so long is lost; it may wait for a slot.


class Stream:
    """One answer: the bytes of the reply as they came, and when."""

    def __init__(self):
        self.parts, self.times = [], []

    async def ask(self, port, body):
        body = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                     b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        try:
            while part := await asyncio.wait_for(reader.read(65536), SILENCE_S):
                self.parts.append(part)
                self.times.append(time.monotonic())
        except (asyncio.TimeoutError, ConnectionError):
            pass  # What came is judged; without an end it counts as lost.
        finally:
            writer.close()

    def events(self):
        """[time, data] of all whole events; none of a reply that is no 200. The body is chunked, or goes on to the end of the connection."""
        raw = b"".join(self.parts)
        head, _, _ = raw.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            return []
        came_by = list(itertools.accumulate(len(part) for part in self.parts))
        begin = len(head) + 4
        pieces, ends, size, i = [], [], 0, 0  # `ends`: the end in the body of each piece, and when it had come.
        for begin, end in chunks(raw, begin) if b"chunked" in head.lower() else [(begin, len(raw))]:
            while came_by[i] < end:
                i += 1
            pieces.append(raw[begin:end])
            size += end - begin
            ends.append((size, self.times[i]))
        found, position, i = [], 0, 0
        for event in b"".join(pieces).split(b"\n\n")[:-1]:
            position += len(event) + 2
            while ends[i][0] < position:
                i += 1
            if event.startswith(b"data: "):
                found.append((ends[i][1], event[6:]))
            elif event.startswith(b"error: "):
                found.append((ends[i][1], b'{"error": %s}' % event[7:]))
        return found

    def result(self, problem):
        """How it ended, and the gaps between its tokens in seconds."""
        text, finish, tokens, error, times = "", None, 0, None, []
        for when, data in self.events():
            if data == b"[DONE]":
                continue
            event = json.loads(data)
            error = error or event.get("error")
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event.get("choices") or []:
                if choice["text"]:
                    text += choice["text"]
                    times.append(when)
                finish = choice.get("finish_reason") or finish
        if error or finish is None:
            end, tokens = "lost", len(times)
        elif finish != "stop":
            end = "cut"
        else:
            end = "solved" if is_solved(problem, text) else "wrong"
        head = b"".join(self.parts[:1])[:300].decode(errors="replace") if not times else ""
        return {"end": end, "tokens": tokens, "gaps": [b - a for a, b in zip(times, times[1:])], "text": text,
                "error": error and error.get("message", str(error)) or (end == "lost" and head) or None}


def chunks(raw, at):
    """[begin, end] of the data of each chunk in `raw` from `at` on, as far as it is complete."""
    found = []
    while (line := raw.find(b"\r\n", at)) >= 0:
        size = int(raw[at:line].split(b";")[0] or b"0", 16)
        if size == 0 or line + 2 + size > len(raw):
            break
        found.append((line + 2, line + 2 + size))
        at = line + 2 + size + 2
    return found


async def ask_all(port, bodies, at_once, until):
    """Streams of all requests, `at_once` at a time. TimeoutError at the time `until`."""
    waiting, streams = list(enumerate(bodies))[::-1], [Stream() for _ in bodies]

    async def client():
        while waiting:
            i, body = waiting.pop()
            try:
                await streams[i].ask(port, body)
            except OSError:
                pass  # No connection: lost.

    await asyncio.wait_for(asyncio.gather(*(client() for _ in range(at_once))), until - time.monotonic())
    return streams
