#!/usr/bin/env python3
"""The official Python client against `pmkvq serve`. Usage: openai_client.py PROGRAM MODEL [TEST...]"""
import json
import os
import sys
import typing
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
import openai
import pydantic
from served import KEY, QUESTION, Server, main


class Client(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--reasoning", "on", env={"PMKVQ_API_KEY": KEY})
        cls.client = openai.OpenAI(base_url=f"http://127.0.0.1:{cls.server.port}/v1", api_key=KEY)
        cls.model = cls.client.models.list().data[0].id
        cls.messages = [{"role": "user", "content": QUESTION}]

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def chat(self, **fields):
        return self.client.chat.completions.create(
            **{"model": self.model, "messages": self.messages, "temperature": 0, "max_tokens": 400, **fields})

    def test_models(self):
        self.assertEqual(self.client.models.retrieve(self.model).id, self.model)
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("gpt-4")

    def test_chat_and_stream(self):
        whole = self.chat(seed=1)
        message = whole.choices[0].message
        self.assertIn("103, 156, 406, 697", message.content)
        self.assertTrue(message.reasoning_content)
        self.assertEqual(whole.choices[0].finish_reason, "stop")
        self.assertGreater(whole.usage.completion_tokens_details.reasoning_tokens, 0)
        self.assertEqual(whole.kv["seed"], "1")
        stream = list(self.chat(seed=1, stream=True, stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
        self.assertEqual(text, message.content)
        self.assertEqual(stream[-1].usage, whole.usage)
        with self.client.chat.completions.stream(model=self.model, messages=self.messages, temperature=0,
                                                 max_completion_tokens=400) as events:
            self.assertEqual(events.get_final_completion().choices[0].message.content, message.content)

    def test_fields(self):
        several = self.chat(n=3, temperature=1, seed=5, max_tokens=20)
        self.assertEqual([c.index for c in several.choices], [0, 1, 2])
        logprobs = self.chat(logprobs=True, top_logprobs=2, max_tokens=5).choices[0].logprobs.content
        self.assertEqual(len(logprobs), 5)
        self.assertEqual(logprobs[0].logprob, logprobs[0].top_logprobs[0].logprob)
        self.assertEqual(bytes(logprobs[0].bytes).decode(), logprobs[0].token)
        stopped = self.chat(stop=["697"])
        self.assertEqual(stopped.choices[0].stop_reason, "697")

    def test_completions(self):
        reply = self.client.completions.create(model=self.model, prompt=["Sort", [1, 2, 3]], max_tokens=3, echo=True,
                                               logprobs=2, temperature=0)
        self.assertTrue(reply.choices[0].text.startswith("Sort"))
        self.assertIsNone(reply.choices[0].logprobs.token_logprobs[0])
        self.assertEqual(len(reply.choices[1].logprobs.tokens), 6)
        chunks = list(self.client.completions.create(model=self.model, prompt="Sort", max_tokens=3, stream=True, temperature=0))
        self.assertEqual("Sort" + "".join(c.choices[0].text for c in chunks), reply.choices[0].text)

    def test_responses(self):
        fields = {"model": self.model, "input": QUESTION, "temperature": 0, "max_output_tokens": 400}
        whole = self.client.responses.create(**fields)
        self.assertIn("103, 156, 406, 697", whole.output_text)
        self.assertEqual(whole.status, "completed")
        text = "".join(e.delta for e in self.client.responses.create(**fields, stream=True) if e.type == "response.output_text.delta")
        self.assertEqual(text, whole.output_text)
        with self.client.responses.stream(**fields) as stream:
            self.assertEqual(stream.get_final_response().output_text, whole.output_text)

    def test_schema(self):
        class Answer(pydantic.BaseModel):
            kind: typing.Literal["sort", "ledger"]
            count: int
            sorted: bool

        parsed = self.client.chat.completions.parse(model=self.model, messages=self.messages, temperature=0, max_tokens=600,
                                                    response_format=Answer)
        self.assertIsInstance(parsed.choices[0].message.parsed, Answer)

    def test_tools(self):
        template = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../golden/chat_templates/Qwen-Qwen2.5-7B-Instruct.jinja")
        tool = {"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}}}
        with Server("--chat-template", template, "--reasoning", "off") as server:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")
            fields = {"model": self.model, "messages": self.messages, "tools": [tool], "tool_choice": "required", "max_tokens": 200}
            reply = client.chat.completions.create(**fields)
            (call,) = reply.choices[0].message.tool_calls
            self.assertIsInstance(json.loads(call.function.arguments)["x"], int)
            with client.chat.completions.stream(**fields) as stream:
                final = stream.get_final_completion().choices[0]
            self.assertEqual((final.finish_reason, final.message.tool_calls[0].function.name), ("tool_calls", "f"))
            again = self.messages + [reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "7"}]
            self.assertTrue(client.chat.completions.create(**{**fields, "messages": again, "tool_choice": "auto"}).choices)

    def test_errors(self):
        for kind, fields in [(openai.BadRequestError, {"temperature": 3}), (openai.BadRequestError, {"stop": ["x"] * 20}),
                             (openai.NotFoundError, {"model": "gpt-4"})]:
            with self.assertRaises(kind) as found:
                self.chat(**fields)
            self.assertIn(next(iter(fields)), str(found.exception))
        with self.assertRaises(openai.NotFoundError):
            self.client.embeddings.create(model=self.model, input="x")
        with self.assertRaises(openai.AuthenticationError):
            openai.OpenAI(base_url=str(self.client.base_url), api_key="wrong").models.list()


if __name__ == "__main__":
    print("openai", openai.__version__)
    main()
