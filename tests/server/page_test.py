#!/usr/bin/env python3
"""The web page in headless Chromium: a chat under pressure, the cache stepping down, widths and colours; /v1/kv.

Usage: page_test.py PROGRAM MODEL [TEST...]. PMKVQ_SCREENSHOTS names a folder for pictures.
"""
import json
import os
import re
import socket
import threading
import unittest

from browser import Browser
from served import KEY, PATIENCE_S, QUESTION, Server, chat, main

PROBLEM = ("Sort these 26 numbers from small to large with merge sort: 521, 146, 882, 307, 650, 233, 914, 478, 765, 109, 342, 587, 696, 831, "
           "254, 973, 418, 129, 706, 365, 840, 592, 217, 653, 988, 471. What is the sorted list?")


class Cache(unittest.TestCase):
    def test_snapshot_and_stream(self):
        with Server("--kv-budget", "3MiB", "--max-len", "4096", env={"PMKVQ_API_KEY": KEY}) as server:
            headers = {"Authorization": "Bearer " + KEY}
            self.assertEqual(server.get("/v1/kv")[0], 401)
            self.assertEqual(server.get("/v1/kv/stream")[0], 401)
            thread = threading.Thread(target=server.post, args=("/v1/chat/completions", chat(
                messages=[{"role": "user", "content": "Of zebras: " + QUESTION}], max_tokens=3500, ignore_eos=True)),
                                      kwargs={"headers": headers})
            client = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
            client.sendall(f"GET /v1/kv/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
            thread.start()
            text = b""
            while thread.is_alive():
                text += client.recv(65536)
            client.close()
            thread.join()
            events = [json.loads(line) for line in re.findall(rb"^data: (.*)$", text, re.M) if line.endswith(b"}")]
            seen = [event["requests"][0] for event in events if event["requests"]]
            self.assertGreater(len(seen), 3)
            least = 16
            for one in seen:
                ages = one["bits_by_age"]
                self.assertEqual(ages, sorted(ages), "the oldest pages are the narrowest")
                self.assertLessEqual(one["bytes"], one["budget_bytes"])
                self.assertLessEqual(min(ages, default=16), least + 1e-9, "no page gets wider")
                least = min([least, *ages])
            self.assertLess(least, 16)
            # Words: digits may be those of a count, or of the request's id.
            for word in ("zebra", "think"):  # Of the question, and of every answer.
                self.assertNotIn(word, text.decode(), "no text of anyone")
            _, now = server.get("/v1/kv", headers=headers)
            self.assertEqual(json.loads(now)["requests"], [])

    def test_page_is_closed_to_others(self):
        with Server() as server:
            response, text = server.request("GET", "/")
            self.assertEqual(response.status, 200)
            policy = response.getheader("Content-Security-Policy")
            self.assertIn("default-src 'none'", policy)
            self.assertEqual(len(re.findall("sha256-", policy)), 2)
            self.assertNotRegex(text, r"https?://", "nothing from elsewhere")
            self.assertNotIn("innerHTML", text)
            self.assertEqual(server.request("HEAD", "/")[0].status, 200)
        with Server("--no-ui") as server:
            self.assertEqual(server.get("/")[0], 404)


class Page(unittest.TestCase):
    def test_a_run_under_pressure(self):
        pictures = os.environ.get("PMKVQ_SCREENSHOTS")
        with Server("--reasoning", "on", "--kv-budget", "3MiB", "--max-len", "4096") as server:
            stop = threading.Event()

            def others():
                while not stop.is_set():
                    server.post("/v1/chat/completions", chat(messages=[{"role": "user", "content": PROBLEM}], max_tokens=2500))
            threads = [threading.Thread(target=others) for _ in range(2)]
            for thread in threads:
                thread.start()
            try:
                for width, height, dark in [(1280, 900, False), (1280, 900, True), (390, 844, False), (390, 844, True)]:
                    name = f"{width}-{'dark' if dark else 'light'}"
                    with self.subTest(view=name), Browser(f"http://127.0.0.1:{server.port}/", width, height, dark) as page:
                        page.wait_for("document.documentElement?.dataset.rendered")
                        page.evaluate("document.getElementById('temperature').value = '0';"
                                      f"document.getElementById('message').value = {json.dumps(PROBLEM)};"
                                      "document.getElementById('form').requestSubmit()")
                        page.wait_for("!!document.querySelector('details')")
                        page.wait_for("Number(document.documentElement.dataset.leastBits) < 5")
                        if pictures:
                            page.evaluate("document.querySelector('details').open = true")
                            page.screenshot(os.path.join(pictures, name + ".png"))
                        # Nothing is wider than the screen; text can be read on its ground.
                        self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), width)
                        for selector in ["body", ".muted", ".turn.user", "button.main", ".facts"]:
                            self.assertGreater(page.evaluate(CONTRAST % json.dumps(selector)), 4.5, (name, selector))
                        page.evaluate("document.getElementById('stop').click()")
                        page.wait_for("document.documentElement.dataset.answered === 'stopped'")
                        page.evaluate("document.getElementById('clear').click();"
                                      f"document.getElementById('message').value = {json.dumps(QUESTION)};"
                                      "document.getElementById('form').requestSubmit()")
                        page.wait_for("document.documentElement.dataset.answered === 'stop'")
                        answer = page.evaluate("document.querySelector('.turn.assistant').textContent")
                        self.assertIn("103, 156, 406, 697", answer)
                        self.assertEqual(page.log, [])
            finally:
                stop.set()
                for thread in threads:
                    thread.join()

    def test_errors_are_shown(self):
        with Server(env={"PMKVQ_API_KEY": KEY}) as server, Browser(f"http://127.0.0.1:{server.port}/", 800, 600) as page:
            page.wait_for("document.getElementById('state')?.textContent.includes('API key')")
            page.evaluate(f"document.getElementById('key').value = {json.dumps(KEY)}")
            page.wait_for("document.documentElement.dataset.rendered")
            page.evaluate("document.getElementById('tokens').value = '999999999999999';"
                          "document.getElementById('message').value = 'x';"
                          "document.getElementById('form').requestSubmit()")
            self.assertIn("max_tokens", page.wait_for("document.querySelector('.turn.error')?.textContent"))


# Contrast of an element's text with what is behind it (WCAG 2).
CONTRAST = """(() => {
  const numbers = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => { const [r, g, b] = numbers(c).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  let node = document.querySelector(%s);
  const text = light(getComputedStyle(node).color);
  let ground = "rgba(0, 0, 0, 0)";
  for (; node && numbers(ground)[3] === 0; node = node.parentElement) ground = getComputedStyle(node).backgroundColor;
  const both = [text, light(ground)].sort((a, b) => b - a);
  return (both[0] + 0.05) / (both[1] + 0.05);
})()"""


if __name__ == "__main__":
    main()
