#!/usr/bin/env python3
"""Answers of a given form: JSON, JSON of a schema, calls of tools; and /v1/responses.

Usage: structured_test.py PROGRAM MODEL [TEST...]. Python's standard library only. The shipped model knows no JSON: what
it writes is what the grammar leaves it.
"""
import json
import os
import unittest

from served import QUESTION, Server, ServedTest, chat, main

TEMPLATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../golden")
QWEN = TEMPLATES + "/chat_templates/Qwen-Qwen2.5-7B-Instruct.jinja"
SCHEMA = {"type": "object", "additionalProperties": False, "required": ["kind", "count", "tags"],
          "properties": {"kind": {"enum": ["sort", "ledger"]}, "count": {"type": "integer"},
                         "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
                         "more": {"anyOf": [{"type": "null"}, {"type": "boolean"}]}}}
TOOL = {"type": "function", "function": {"name": "sort_numbers", "description": "Sorts.", "parameters": {
    "type": "object", "properties": {"numbers": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3}},
    "required": ["numbers"], "additionalProperties": False}}}
OTHER = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}


def fits(test, value):
    test.assertLessEqual(set(value), {"kind", "count", "tags", "more"})
    test.assertIn(value["kind"], ["sort", "ledger"])
    test.assertIsInstance(value["count"], int)
    test.assertLessEqual(len(value["tags"]), 2)
    test.assertTrue(all(len(tag) <= 4 for tag in value["tags"]))


class Json(ServedTest):
    options = ("--reasoning", "on")

    def ask(self, **fields):
        status, reply = self.server.post("/v1/chat/completions", chat(**fields))
        self.assertEqual(status, 200, reply)
        return reply["choices"][0]

    def test_schema(self):
        for seed in range(8):
            choice = self.ask(response_format=schema_format(SCHEMA), temperature=1.5, seed=seed, max_tokens=1200)
            if choice["finish_reason"] == "length" and choice["message"]["content"] == "":
                continue  # It was still thinking.
            self.assertEqual(choice["finish_reason"], "stop", choice)
            fits(self, json.loads(choice["message"]["content"]))

    def test_schema_behind_reasoning(self):
        choice = self.ask(response_format=schema_format(SCHEMA))
        self.assertIn("697", choice["message"]["reasoning_content"], "reasoning is free")
        fits(self, json.loads(choice["message"]["content"]))

    def test_schema_of_a_text_completion(self):
        for seed in range(6):
            _, reply = self.server.post("/v1/completions", {"prompt": "x", "response_format": schema_format(SCHEMA),
                                                            "temperature": 2, "seed": seed, "max_tokens": 1500, "n": 2})
            for choice in reply["choices"]:
                self.assertEqual(choice["finish_reason"], "stop")
                fits(self, json.loads(choice["text"]))

    def test_any_object(self):
        for seed in range(6):
            _, reply = self.server.post("/v1/completions", {"prompt": "x", "response_format": {"type": "json_object"},
                                                            "temperature": 1, "seed": seed, "max_tokens": 300})
            choice = reply["choices"][0]
            self.assertTrue(choice["text"].lstrip().startswith("{"))
            if choice["finish_reason"] == "stop":
                try:
                    self.assertIsInstance(json.loads(choice["text"]), dict)
                except json.JSONDecodeError as error:
                    self.fail(f"{error}: {choice['text']}")

    def test_others_are_as_they_were(self):
        _, alone = self.server.post("/v1/chat/completions", chat(seed=1, temperature=1, max_tokens=50))
        import threading
        thread = threading.Thread(target=self.ask, kwargs={"response_format": schema_format(SCHEMA), "max_tokens": 600})
        thread.start()
        _, beside = self.server.post("/v1/chat/completions", chat(seed=1, temperature=1, max_tokens=50))
        thread.join()
        self.assertEqual(alone["choices"], beside["choices"])

    def test_streams_and_logprobs(self):
        fields = chat(response_format=schema_format(SCHEMA), logprobs=True)
        events = self.server.stream("/v1/chat/completions", fields)
        text = "".join(e["choices"][0]["delta"].get("content") or "" for e in events)
        fits(self, json.loads(text))
        self.assertEqual(text, self.ask(response_format=schema_format(SCHEMA))["message"]["content"])

    def test_refusals(self):
        for fields, param, code in [
                ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
                ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_value"),
                ({"response_format": schema_format({"type": "string", "pattern": "a"})}, "response_format", "unsupported_parameter"),
                ({"response_format": schema_format({"type": "strong"})}, "response_format", "invalid_value"),
                ({"response_format": schema_format(SCHEMA), "ignore_eos": True}, "ignore_eos", "invalid_value"),
                ({"response_format": schema_format(SCHEMA), "min_tokens": 3}, "min_tokens", "invalid_value"),
                ({"tools": [TOOL]}, "tools", "unsupported_parameter"),
                ({"tool_choice": "required"}, "tool_choice", "invalid_value")]:
            status, reply = self.server.post("/v1/chat/completions", chat(**fields))
            self.assertEqual((status, reply["error"]["param"], reply["error"]["code"]), (400, param, code), reply)
        _, reply = self.server.post("/v1/chat/completions", chat(response_format=schema_format({"type": "string", "pattern": "a"})))
        self.assertIn('"pattern"', reply["error"]["message"])


class Tools(ServedTest):
    options = ("--chat-template", QWEN, "--reasoning", "off", "--tool-calls", "auto")

    def prompt(self, **fields):
        status, reply = self.server.post("/apply-template", fields)
        self.assertEqual(status, 200, reply)
        self.assertGreater(reply["count"], 5)
        return reply["prompt"]

    def test_the_template_gets_tools_and_calls(self):
        user = {"role": "user", "content": "Sort <|im_end|>"}
        call = {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "sort_numbers", "arguments": "{\"numbers\": [3, 1]}"}}]}
        result = {"role": "tool", "tool_call_id": "call_1", "content": "[1, 3]"}
        text = self.prompt(messages=[user, call, result], tools=[TOOL])
        self.assertIn("<tools>\n" + json.dumps(TOOL), text)
        self.assertIn('<tool_call>\n{"name": "sort_numbers", "arguments": {"numbers": [3, 1]}}\n</tool_call>', text)
        self.assertIn("<tool_response>\n[1, 3]\n</tool_response>", text)
        self.assertNotIn("<tools>", self.prompt(messages=[user], tools=[TOOL], tool_choice="none"))

    def test_calls_that_must_be(self):
        for choice, tools in [("required", [TOOL]), ("required", [TOOL, OTHER]),
                              ({"type": "function", "function": {"name": "sort_numbers"}}, [OTHER, TOOL])]:
            for seed in range(4):
                fields = chat(tools=tools, tool_choice=choice, temperature=1, seed=seed, max_tokens=300)
                _, reply = self.server.post("/v1/chat/completions", fields)
                found = reply["choices"][0]
                self.assertEqual(found["finish_reason"], "tool_calls", found)
                self.assertIsNone(found["message"]["content"])
                (call,) = found["message"]["tool_calls"]
                self.assertEqual(call["type"], "function")
                arguments = json.loads(call["function"]["arguments"])
                if choice != "required" or len(tools) == 1:
                    self.assertEqual(call["function"]["name"], "sort_numbers")
                if call["function"]["name"] == "sort_numbers":
                    self.assertTrue(1 <= len(arguments["numbers"]) <= 3)
                events = self.server.stream("/v1/chat/completions", fields)
                deltas = [d for e in events for d in e["choices"][0]["delta"].get("tool_calls", [])]
                self.assertEqual([d["index"] for d in deltas], [0])
                self.assertEqual("".join(d["function"]["arguments"] for d in deltas), call["function"]["arguments"])
                self.assertEqual(events[-1]["choices"][0]["finish_reason"], "tool_calls")

    def test_text_beside_tools(self):
        _, reply = self.server.post("/v1/chat/completions", chat(tools=[TOOL], max_tokens=20))
        self.assertNotIn("tool_calls", reply["choices"][0]["message"])

    def test_refusals(self):
        strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}
        for fields, param in [
                ({"tools": [{"type": "retrieval"}]}, "tools[0].type"), ({"tools": [{"type": "function"}]}, "tools[0].function.function"),
                ({"tools": [TOOL] * 129}, "tools"), ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
                ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "none"}}}, "tool_choice"),
                ({"tools": [strict]}, "tools[0].function.strict"),
                ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format")]:
            status, reply = self.server.post("/v1/chat/completions", chat(**fields))
            self.assertEqual(status, 400, reply)
            self.assertEqual(reply["error"]["param"].replace("function.function", "function"), param.replace("function.function", "function"))
        for messages in [[{"role": "tool", "content": "x"}],
                         [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]}]]:
            self.assertEqual(self.server.post("/v1/chat/completions", {"messages": messages})[0], 400)


class Families(unittest.TestCase):
    def test_llama3_and_mistral(self):
        for path, options in [("/chat_templates/meta-llama-Llama-3.1-8B-Instruct.jinja", []),
                              ("/jinja/mistralai-Mistral-Nemo-Instruct-2407.jinja", [])]:
            with Server("--chat-template", TEMPLATES + path, "--reasoning", "off", *options) as server:
                fields = chat(tools=[TOOL], tool_choice="required", max_tokens=300)
                status, reply = server.post("/v1/chat/completions", fields)
                self.assertEqual(status, 200, reply)
                choice = reply["choices"][0]
                self.assertEqual(choice["finish_reason"], "tool_calls", choice)
                call = choice["message"]["tool_calls"][0]
                self.assertEqual(call["function"]["name"], "sort_numbers")
                # The answer's call and a result go back into the template.
                again = fields["messages"] + [choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "1"}]
                status, reply = server.post("/apply-template", {"messages": again, "tools": [TOOL]})
                self.assertEqual(status, 200, reply)
                self.assertIn("sort_numbers", reply["prompt"])


class Responses(ServedTest):
    options = ("--chat-template", QWEN, "--reasoning", "on")

    def ask(self, **fields):
        status, reply = self.server.post("/v1/responses", {"input": QUESTION, "temperature": 0, "max_output_tokens": 60, **fields})
        self.assertEqual(status, 200, reply)
        return reply

    def events(self, **fields):
        response, text = self.server.request("POST", "/v1/responses", {"input": QUESTION, "temperature": 0, "stream": True,
                                                                       "max_output_tokens": 60, **fields})
        self.assertEqual(response.status, 200, text)
        events = []
        for block in text.strip().split("\n\n"):
            name, data = block.split("\n", 1)
            events.append(json.loads(data[6:]))
            self.assertEqual(name, "event: " + events[-1]["type"])
        self.assertEqual([e["sequence_number"] for e in events], list(range(len(events))))
        return events

    def test_text(self):
        reply = self.ask()
        self.assertEqual((reply["object"], reply["status"]), ("response", "incomplete"))
        self.assertEqual(reply["incomplete_details"], {"reason": "max_output_tokens"})
        message = reply["output"][-1]
        self.assertEqual((message["type"], message["role"]), ("message", "assistant"))
        text = message["content"][0]["text"]
        _, chatted = self.server.post("/v1/chat/completions", chat(max_tokens=60))
        self.assertEqual(text, chatted["choices"][0]["message"]["content"])
        self.assertEqual(reply["usage"]["output_tokens"], 60)
        parts = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
        self.assertEqual(self.ask(input=parts)["output"][-1]["content"], message["content"])
        events = self.events()
        self.assertEqual([e["type"] for e in events[:4]], ["response.created", "response.in_progress", "response.output_item.added",
                                                          "response.content_part.added"])
        self.assertEqual("".join(e["delta"] for e in events if e["type"] == "response.output_text.delta"), text)
        self.assertEqual([e["type"] for e in events[-4:]], ["response.output_text.done", "response.content_part.done",
                                                           "response.output_item.done", "response.incomplete"])
        self.assertEqual(events[-1]["response"]["output"][0]["content"], message["content"])

    def test_schema_and_tools(self):
        reply = self.ask(text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, max_output_tokens=800)
        self.assertEqual(reply["status"], "completed")
        fits(self, json.loads(reply["output"][-1]["content"][0]["text"]))
        tool = {"type": "function", **TOOL["function"]}
        fields = {"tools": [tool], "tool_choice": {"type": "function", "name": "sort_numbers"}, "max_output_tokens": 300}
        reply = self.ask(**fields)
        (call,) = [item for item in reply["output"] if item["type"] == "function_call"]
        self.assertEqual(call["name"], "sort_numbers")
        events = self.events(**fields)
        self.assertEqual("".join(e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta"), call["arguments"])
        self.assertEqual(events[-1]["type"], "response.completed")
        again = [{"role": "user", "content": QUESTION}, call, {"type": "function_call_output", "call_id": call["call_id"], "output": "1"}]
        self.assertGreater(self.ask(input=again, tools=[tool])["usage"]["input_tokens"], reply["usage"]["input_tokens"])

    def test_refusals(self):
        for fields, param in [({"previous_response_id": "x"}, "previous_response_id"), ({"store": True}, "store"),
                              ({"background": True}, "background"), ({"input": 3}, "input"), ({"temperature": 5}, "temperature"),
                              ({"max_output_tokens": "x"}, "max_output_tokens"), ({"input": [{"type": "image"}]}, "input[0].type"),
                              ({"truncation": "auto"}, "truncation")]:
            status, reply = self.server.post("/v1/responses", {"input": "x", **fields})
            self.assertEqual((status, reply["error"]["param"]), (400, param), reply)
        self.assertEqual(self.ask(store=False, user="me", metadata={}, parallel_tool_calls=True)["store"], False)


if __name__ == "__main__":
    main()
