#!/usr/bin/env python3
"""Renders the published chat templates with Jinja, as transformers does, into the expected texts.

Usage: render_chat_goldens.py ROOT    (writes ROOT/tests/golden/chat_templates/expected.json)

Each case: the file of the template (a .jinja, or the tokenizer_config.json that holds it), its BOS
token, the messages, whether the generation prompt is added, and the text. enable_thinking is true:
templates that ask for it and do not get it close the thinking at once, which is not what a runtime
for reasoning models wants.
"""
import json
import pathlib
import sys

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

DEEPSEEK_BOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
# Format name -> (template file, BOS token).
TEMPLATES = [
    ("qwq", "tests/golden/chat_templates/Qwen-QwQ-32B.jinja", ""),
    ("qwen2.5", "tests/golden/chat_templates/Qwen-Qwen2.5-7B-Instruct.jinja", ""),
    ("qwen3", "tests/golden/chat_templates/Qwen-Qwen3-0.6B.jinja", ""),
    ("deepseek-r1", "tests/golden/chat_templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja",
     DEEPSEEK_BOS),
    ("deepseek-r1", "tests/golden/chat_templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja",
     DEEPSEEK_BOS),
    ("llama3.1", "tests/golden/chat_templates/meta-llama-Llama-3.1-8B-Instruct.jinja",
     "<|begin_of_text|>"),
    ("longcot", "models/longcot-10m/tokenizer_config.json", ""),
]

SYSTEM = ("system", "  You answer in one line.\n")
USER = ("user", "What is 2 + 2?")
THOUGHT = ("assistant", "<think>\nTwo and two.\n\nThat is 4.\n</think>\n\nIt is **4**.")
FOLLOW_UP = ("user", "\u00a0And 3 + 3? \u4f60\u597d\n")
ANSWER = ("assistant", "<think>\n\nAgain.\n</think>\n\n6")
CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [SYSTEM, USER, THOUGHT, FOLLOW_UP],
    [USER, THOUGHT, FOLLOW_UP],
    [SYSTEM, USER, THOUGHT, FOLLOW_UP, ANSWER],
    [USER, ("assistant", "No thoughts here.\n"), FOLLOW_UP, ("assistant", "None either.")],
    [USER, ("system", "A later instruction."), FOLLOW_UP],
    [USER, ("assistant", "a</think>b<think>c</think>\n\nd\n"), ("assistant", "e"),
     ("assistant", "f</think>g")],
    [USER, ("assistant", "</think>\n\nfirst"), ("assistant", "<think>x</think>second"), FOLLOW_UP],
    [USER, THOUGHT, ("user", "<tool_response>\n4\n</tool_response>"), ANSWER],
    [SYSTEM, ("assistant", "I speak first.")],
]


def raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def load_template(path: pathlib.Path) -> str:
    text = path.read_text(encoding="utf-8")
    return json.loads(text)["chat_template"] if path.suffix == ".json" else text


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = raise_exception
    cases = []
    for name, file, bos_token in TEMPLATES:
        template = environment.from_string(load_template(root / file))
        for conversation in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in conversation]
            for add_generation_prompt in (False, True):
                text = template.render(
                    messages=messages, add_generation_prompt=add_generation_prompt,
                    bos_token=bos_token, enable_thinking=True)
                cases.append({"format": name, "template": file, "bos_token": bos_token,
                              "messages": messages,
                              "add_generation_prompt": add_generation_prompt, "text": text})
    output = root / "tests/golden/chat_templates/expected.json"
    output.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{output}: {len(cases)} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
