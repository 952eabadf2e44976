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
        called = [{"id": "1", "function": {"name": "f", "arguments": "{"}}]
        for message, field in [({"role": "tool", "content": "x"}, "tool_call_id"), ({"role": "assistant", "tool_calls": called},
                                                                                    "tool_calls[0].function.arguments"),
                               *[({"role": "assistant", "content": "x", "tool_calls": calls}, "tool_calls") for calls in (5, "x", {}, True)],
                               ({"role": "assistant", "content": "x", "tool_calls": [5]}, "tool_calls[0]"),
                               ({"role": "user", "content": "x", "tool_calls": called}, "tool_calls"),
                               ({"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": "{}"}}, "function_call"),
                               ({"role": "assistant", "content": "x", "audio": {"id": "1"}}, "audio")]:
            status, reply = self.server.post("/v1/chat/completions", {"messages": [message]})
            self.assertEqual(status, 400, (message, reply))
            self.assertTrue(reply["error"]["param"].startswith("messages[0]." + field), (message, reply))
            self.assertIn("messages[0]." + field, reply["error"]["message"])
        for nothing in (None, []):
            message = {"role": "user", "content": "x", "tool_calls": nothing, "function_call": None, "audio": None}
            self.assertEqual(self.server.post("/v1/chat/completions", {"messages": [message], "max_tokens": 1})[0], 200)


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

    def test_errors_name_what_the_client_sent(self):
        """Not what the chat request has in its place, which it is read as."""
        user = {"role": "user", "content": "x"}
        call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
        output = {"type": "function_call_output", "call_id": "1", "output": "y"}
        tool = {"type": "function", "name": "f"}
        pattern = {"type": "object", "properties": {"x": {"type": "string", "pattern": "a"}}}

        def schema(**fields):
            return {"text": {"format": {"type": "json_schema", "name": "x", **fields}}}
        for fields, param in [
                ({"input": []}, "input"), ({"input": {}}, "input"), ({"input": [user] * 5000}, "input"), ({"input": "x " * 5000}, "input"),
                ({"input": ""}, None), ({"instructions": 5}, "instructions"), ({"input": [5]}, "input[0]"),
                ({"input": [user, {"role": "user"}]}, "input[1].content"),
                ({"input": [user, {"role": "user", "content": 5}]}, "input[1].content"),
                ({"input": [user, {"role": "robot", "content": "x"}]}, "input[1].role"),
                ({"input": [{"role": 5, "content": "x"}]}, "input[0].role"),
                ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
                ({"input": [user, {"role": "user", "content": [{"type": "input_image"}]}]}, "input[1].content[0].type"),
                ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}, 5]}]}, "input[0].content[1]"),
                ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
                ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]}, "input[0].content[0].text"),
                ({"input": [user, {"type": "function_call", "call_id": "1"}]}, "input[1].name"),
                ({"input": [user, {"type": "function_call", "name": "f"}]}, "input[1].call_id"),
                # Calls become one message, reasoning none, and instructions another in front.
                ({"instructions": "i", "input": [user, {"type": "reasoning"}, call, {**call, "arguments": "{"}, output]}, "input[3].arguments"),
                ({"instructions": "i", "input": [user, {**call, "arguments": "[]"}, output]}, "input[1].arguments"),
                ({"input": [user, call, output, {**call, "arguments": 5}]}, "input[3].arguments"),
                ({"input": [user] + [call] * 129}, "input[1]"),
                ({"input": [{**output, "output": 5}]}, "input[0].output"), ({"input": [{**output, "call_id": None}]}, "input[0].call_id"),
                ({"input": [{**output, "output": [{"type": "input_file"}]}]}, "input[0].output[0].type"),
                ({"max_output_tokens": 0}, "max_output_tokens"), ({"max_output_tokens": -1}, "max_output_tokens"),
                ({"model": "other"}, "model"), ({"stream": 5}, "stream"), ({"top_p": 0}, "top_p"), ({"kv_report": "x"}, "kv_report"),
                ({"reasoning": 5}, "reasoning"), ({"reasoning": {"effort": 5}}, "reasoning.effort"),
                ({"chat_template_kwargs": {"A": 1}}, "chat_template_kwargs"),
                ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs"),
                ({"text": 5}, "text"), ({"text": {"format": 5}}, "text.format"), ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
                ({"text": {"verbosity": "low"}}, "text.verbosity"), (schema(), "text.format.schema"), (schema(schema=5), "text.format"),
                (schema(schema=pattern), "text.format"), (schema(schema={"type": "strong"}), "text.format"),
                ({"tools": [tool], "text": {"format": {"type": "json_object"}}}, "text.format"),
                ({"tools": 5}, "tools"), ({"tools": {"a": 1}}, "tools"), ({"tools": [5]}, "tools[0]"), ({"tools": [{}]}, "tools[0].type"),
                ({"tools": [tool, {"type": "web_search"}]}, "tools[1].type"), ({"tools": [tool, {"type": "function"}]}, "tools[1].name"),
                ({"tools": [tool, {**tool, "name": "a b"}]}, "tools[1].name"), ({"tools": [{**tool, "strict": True}]}, "tools[0].strict"),
                ({"tools": [{**tool, "parameters": 5}]}, "tools[0].parameters"), ({"tools": [tool] * 129}, "tools"),
                ({"tools": [{**tool, "parameters": pattern}], "tool_choice": "required"}, "tools[0].parameters"),
                ({"tools": [tool], "tool_choice": "sometimes"}, "tool_choice"), ({"tool_choice": "required"}, "tool_choice"),
                ({"tools": [tool], "tool_choice": {"type": "file_search"}}, "tool_choice"),
                ({"tools": [tool], "tool_choice": {"type": "function", "name": 5}}, "tool_choice.name"),
                ({"tools": [tool], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
                ({"include": ["x"]}, "include"), ({"top_logprobs": 3}, "top_logprobs")]:
            with self.subTest(str(fields)[:300]):
                status, reply = self.server.post("/v1/responses", {"input": "x", "max_output_tokens": 1, **fields})
                if param is None:  # An empty text is a prompt by its template.
                    self.assertEqual(status, 200, reply)
                    continue
                self.assertEqual((status, reply["error"]["param"]), (404 if param == "model" else 400, param), reply)
                message = reply["error"]["message"]
                self.assertTrue(message.startswith(param), message)
                for word in ["messages", "response_format", "json_schema.", "function.", "max_completion_tokens", "max_tokens", "reasoning_effort"]:
                    self.assertNotIn(word, message.replace('"messages"', ""))

    def test_outputs_of_calls_may_be_parts(self):
        texts = []
        for output in ["y1", [{"type": "input_text", "text": "y"}, {"type": "input_text", "text": "1"}]]:
            call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
            texts.append(self.ask(input=[{"role": "user", "content": "x"}, call, {"type": "function_call_output", "call_id": "1", "output": output}]))
        self.assertEqual(texts[0]["usage"], texts[1]["usage"])
        self.assertEqual(texts[0]["output"][-1]["content"], texts[1]["output"][-1]["content"])


class TemplateThatRefuses(ServedTest):
    options = ("--chat-template", TEMPLATES + "/jinja/mistralai-Mistral-Nemo-Instruct-2407.jinja")

    def test_its_file_is_in_no_reply(self):
        twice = [{"role": "user", "content": "x"}] * 2
        for path, field in [("/v1/chat/completions", "messages"), ("/v1/responses", "input"), ("/apply-template", "messages"), ("/tokenize", "messages")]:
            status, reply = self.server.post(path, {field: twice})
            error = reply["error"]
            self.assertEqual((status, error["param"], error["code"]), (400, field, "invalid_value"), reply)
            self.assertTrue(error["message"].startswith(field + ": the chat template, line "), error)
            self.assertIn("must alternate", error["message"])
            self.assertNotIn("jinja", error["message"])
        for arguments in ["{", "[]"]:
            call = {"role": "assistant", "tool_calls": [{"id": "123456789", "function": {"name": "f", "arguments": arguments}}]}
            _, reply = self.server.post("/v1/chat/completions", {"messages": [twice[0], call]})
            self.assertEqual(reply["error"]["param"], "messages[1].tool_calls[0].function.arguments", reply)


if __name__ == "__main__":
    main()
