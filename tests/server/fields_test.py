#!/usr/bin/env python3
"""Every field of a body: served, or refused by name. Usage: fields_test.py PROGRAM MODEL [TEST...]"""
import os
import re

from served import Server, ServedTest, chat, main

BOTH = ["/v1/chat/completions", "/v1/completions"]
CHAT, TEXT = BOTH[:1], BOTH[1:]
# (field, endpoints, value, what comes of it): None: served; a code: refused under the field's name.
FIELDS = [
    ("model", BOTH, "longcot-10m", None), ("model", BOTH, "gpt-4", "model_not_found"),
    ("messages", CHAT, 7, "invalid_value"), ("prompt", TEXT, 7, "invalid_value"), ("prompt", TEXT, ["x", [1, 2]], None),
    ("max_completion_tokens", BOTH, 3, None), ("max_tokens", BOTH, 3, None), ("max_tokens", BOTH, 0, "invalid_value"),
    ("min_tokens", BOTH, 2, None), ("ignore_eos", BOTH, True, None),
    ("temperature", BOTH, 0.5, None), ("temperature", BOTH, 2.5, "invalid_value"), ("top_p", BOTH, 0.5, None),
    ("top_p", BOTH, 0, "invalid_value"), ("top_k", BOTH, 5, None), ("top_k", BOTH, -1, None), ("min_p", BOTH, 0.1, None),
    ("seed", BOTH, -5, None), ("seed", BOTH, 1.5, "invalid_value"),
    ("presence_penalty", BOTH, 1, None), ("presence_penalty", BOTH, 3, "invalid_value"), ("frequency_penalty", BOTH, -1, None),
    ("repetition_penalty", BOTH, 1.1, None), ("logit_bias", BOTH, {"5": 3}, None), ("logit_bias", BOTH, {"5": 300}, "invalid_value"),
    ("stop", BOTH, ["x", "y"], None), ("stop", BOTH, "x" * 300, "invalid_value"), ("stop_token_ids", BOTH, [3], None),
    ("stop_token_ids", BOTH, [99999], "invalid_value"), ("include_stop_str_in_output", BOTH, True, None),
    ("stop_in_reasoning", BOTH, True, None), ("n", BOTH, 2, None), ("n", BOTH, 9, "invalid_value"),
    ("stream", BOTH, "yes", "invalid_value"), ("stream_options", BOTH, {"include_usage": True}, "invalid_value"),
    ("logprobs", CHAT, True, None), ("logprobs", TEXT, 5, None), ("logprobs", TEXT, 21, "invalid_value"),
    ("top_logprobs", CHAT, 2, "invalid_value"), ("echo", TEXT, True, None), ("echo", CHAT, True, "unsupported_parameter"),
    ("prompt_logprobs", BOTH, 1, None), ("prompt_logprobs", BOTH, 21, "invalid_value"),
    ("add_special_tokens", TEXT, False, None), ("response_format", CHAT, {"type": "text"}, None),
    ("response_format", BOTH, {"type": "json_object"}, None), ("tools", BOTH, [], None), ("tools", BOTH, [{}], "unsupported_parameter"),
    ("tool_choice", CHAT, "none", None), ("tool_choice", CHAT, "required", "invalid_value"),
    ("reasoning_effort", CHAT, "low", None), ("chat_template_kwargs", CHAT, {"enable_thinking": False}, None),
    ("chat_template_kwargs", CHAT, {"a": [1]}, "invalid_value"), ("add_generation_prompt", CHAT, True, None),
    ("continue_final_message", CHAT, True, "invalid_value"), ("modalities", CHAT, ["text"], None),
    ("modalities", CHAT, ["audio"], "unsupported_parameter"),
    ("kv_min_bits", BOTH, 8, "unsupported_parameter"), ("priority", BOTH, 0, None), ("priority", BOTH, 5, "unsupported_parameter"),
    ("cache_salt", BOTH, "x", None), ("cache_salt", BOTH, 1, "invalid_value"), ("kv_report", BOTH, "none", None), ("kv_report", BOTH, "events", None),
    ("kv_report", BOTH, "all", "invalid_value"), ("kv_replay", BOTH, [1], "unsupported_parameter"),
    ("user", BOTH, "me", None), ("metadata", BOTH, {"a": "b"}, None), ("store", BOTH, False, None),
    ("store", BOTH, True, "unsupported_parameter"), ("service_tier", BOTH, "auto", None), ("parallel_tool_calls", BOTH, True, None),
    ("safety_identifier", BOTH, "x", None), ("prompt_cache_key", BOTH, "x", None),
    ("best_of", BOTH, 1, None), ("best_of", BOTH, 2, "unsupported_parameter"), ("suffix", BOTH, "x", "unsupported_parameter"),
    ("bad_words", BOTH, ["x"], "unsupported_parameter"),
] + [(name, BOTH, "x", "unsupported_parameter") for name in
     ["grammar", "functions", "function_call", "audio", "background", "guided_json", "guided_regex", "guided_choice",
      "guided_grammar", "logits_processors"]] + [
    (name, CHAT, {"x": 1}, "unsupported_parameter") for name in ["prediction", "web_search_options"]]


class Fields(ServedTest):
    options = ("--strict",)

    def test_every_field(self):
        for name, paths, value, code in FIELDS:
            for path in paths:
                body = chat(max_tokens=2) if path in CHAT else {"prompt": "Sort", "max_tokens": 2}
                if name == "max_completion_tokens":
                    del body["max_tokens"]
                status, reply = self.server.post(path, {**body, name: value})
                with self.subTest(field=name, value=value, path=path):
                    if code is None:
                        self.assertEqual(status, 200, reply)
                        continue
                    self.assertIn(status, [400, 404], reply)
                    self.assertEqual((reply["error"]["code"], reply["error"]["param"]), (code, name))
                    self.assertTrue(reply["error"]["message"].startswith(name + ": found"), reply["error"]["message"])

    def test_unknown_fields(self):
        for path, body in [(CHAT[0], chat()), (TEXT[0], {"prompt": "x"})]:
            status, reply = self.server.post(path, {**body, "no_such_field": 1})
            self.assertEqual((status, reply["error"]["param"]), (400, "no_such_field"))

    def test_the_table_of_the_documentation_is_walked(self):
        with open(os.path.join(os.path.dirname(__file__), "../../docs/serving.md")) as file:
            text = file.read()
        table = text[text.index("| field | rule |"):]
        table = table[:table.index("\n\n")]
        names = {name for row in table.splitlines()[2:] for name in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
        self.assertGreater(len(names), 30)
        self.assertEqual(names - {field[0] for field in FIELDS}, set())

    def test_kv_report(self):
        budget = {"max_tokens": 700, "ignore_eos": True}
        with Server("--kv-budget", "1MiB") as server:
            _, none = server.post("/v1/chat/completions", chat(**budget, kv_report="none"))
            self.assertNotIn("kv", none)
            _, summary = server.post("/v1/chat/completions", chat(**budget))
            self.assertNotIn("events", summary["kv"])
            _, events = server.post("/v1/chat/completions", chat(**budget, kv_report="events"))
            self.assertEqual(events["kv"]["history"], summary["kv"]["history"])
            first = events["kv"]["events"][0]
            self.assertEqual(sorted(first), ["choice", "from_bits", "k_pages", "layer", "tokens", "v_pages"])
            self.assertEqual(first["from_bits"], 16)
            stream = server.stream("/v1/chat/completions", chat(**budget, kv_report="events", stream_options={"include_usage": True}))
            self.assertEqual(stream[-1]["kv"]["events"], events["kv"]["events"])


if __name__ == "__main__":
    main()
