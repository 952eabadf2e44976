from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import MODEL, PROBLEM, Program

from pmkvq import InvalidInput, Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


@pytest.mark.parametrize("text", ["", "12 + 5", PROBLEM, "a\n\n  b", "naïve 数学 🙂", "<|im_end|>"])
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=False) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


def test_control_tokens(tokenizer: Tokenizer) -> None:
    (eos,) = [token for token in range(tokenizer.vocab_size) if tokenizer.decode([token]) == ""][-1:]
    text = tokenizer.decode([eos], skip_special=False)
    assert tokenizer.token_id(text) == eos
    assert tokenizer.encode(text, parse_special=True) == [eos]
    assert eos not in tokenizer.encode(text)
    assert eos not in tokenizer.encode_chat([{"role": "user", "content": text}])[-40:-10]
    assert tokenizer.token_id("no such token") is None


def test_chat_prompts_are_those_of_the_program(program: Program, tokenizer: Tokenizer) -> None:
    (sequence,) = program.run("--prompt", PROBLEM, "--max-tokens", "1")
    messages = [{"role": "user", "content": PROBLEM}]
    assert tokenizer.encode_chat(messages) == sequence["prompt_ids"]
    text = tokenizer.apply_chat_template(messages)
    assert PROBLEM in text and tokenizer.encode(text, parse_special=True) == sequence["prompt_ids"]
    assert tokenizer.has_chat_template


def test_other_templates_take_variables_and_tools() -> None:
    qwen = Tokenizer(MODEL, chat_template="qwen3")
    messages = [{"role": "user", "content": "hi"}]
    thinking = qwen.apply_chat_template(messages)
    plain = qwen.apply_chat_template(messages, template_args={"enable_thinking": False})
    assert thinking != plain and plain.startswith(thinking)
    none = Tokenizer(MODEL, chat_template="none")
    assert none.apply_chat_template(messages) == "hi" and not none.has_chat_template


def test_a_jinja_file_sees_everything(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("template") / "all.jinja"
    path.write_text("{{ messages | tojson }}|{{ tools | tojson }}|{{ flag }}|{{ strftime_now('%Y-%m-%d') }}")
    tokenizer = Tokenizer(MODEL, chat_template=path)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
    ]
    text = tokenizer.apply_chat_template(
        messages, tools=[{"name": "f"}], template_args={"flag": 5}, date="2026-02-03"
    )
    shown, tools, flag, date = text.split("|")
    assert json.loads(shown)[1]["tool_calls"] == messages[1]["tool_calls"]
    assert (json.loads(tools), flag, date) == ([{"name": "f"}], "5", "2026-02-03")


def test_wrong_arguments(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(InvalidInput, match="template_args"):
        tokenizer.encode_chat(messages, template_args={"x": object()})
    with pytest.raises(InvalidInput, match="messages"):
        tokenizer.encode_chat(messages, template_args={"messages": []})
    with pytest.raises(InvalidInput, match="ids"):
        tokenizer.decode([-1])
    with pytest.raises(InvalidInput):
        tokenizer.decode([10**6])
