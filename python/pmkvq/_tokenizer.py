"""Text to token ids and back, and chat templates."""
from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import _pmkvq
from ._arguments import ids_of, path_of
from ._errors import InvalidInput

# {"role": ..., "content": ..., and what else the template knows: "tool_calls", "name"}
Message = Mapping[str, Any]


class Tokenizer:
    """The tokenizer and the chat template of a model. May be used from several threads.

    path: a model folder or GGUF file. tokenizer: another folder, tokenizer.json or tokenizer.model.
    chat_template: "none", a template of the model, a built-in one, or a Jinja file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        chat_template: str | os.PathLike[str] | None = None,
    ):
        self._native = _pmkvq.Tokenizer.load(
            path_of(path),
            None if tokenizer is None else path_of(tokenizer),
            None if chat_template is None else path_of(chat_template),
        )

    @property
    def vocab_size(self) -> int:
        """Largest id + 1."""
        return self._native.vocab_size

    @property
    def has_chat_template(self) -> bool:
        return self._native.has_chat_template

    @property
    def chat_template(self) -> str:
        """Its Jinja text; "": none."""
        return self._native.chat_template

    @property
    def bos_token_id(self) -> int | None:
        """Of the token that begins a text, as the model's files name it; None: they name none."""
        return self._native.bos_token_id

    @property
    def eos_token_id(self) -> int | None:
        """Of the token that ends a text, likewise. Model.eos_token_ids are what ends an answer."""
        return self._native.eos_token_id

    def encode(self, text: str, *, parse_special: bool = False, add_special: bool = True) -> list[int]:
        """Ids of a text. Control tokens in it (<|im_end|>) are plain text unless `parse_special`.

        add_special: with the ids that the tokenizer puts before and behind a whole text (BOS).
        """
        return self._native.encode(text, parse_special, add_special)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD."""
        return self._native.decode(ids_of(ids, "ids"), skip_special)

    def token_id(self, token: str) -> int | None:
        """The id of a token of the vocabulary; None where there is none."""
        return self._native.token_id(token)

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        date: str | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt for a conversation, as text. encode_chat gives its ids, which are safer: there
        text of a message never becomes a control token.

        template_args: variables of the template ({"enable_thinking": False}). date: the day that
        the template takes for today ("2026-01-31", "today"); default: 2026-01-01.
        """
        return self._native.render(*_chat_arguments(messages, tools, template_args), date, add_generation_prompt)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        date: str | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The ids of a conversation's prompt; arguments as those of apply_chat_template."""
        return self._native.encode_chat(*_chat_arguments(messages, tools, template_args), date, add_generation_prompt)


def _chat_arguments(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    template_args: Mapping[str, Any] | None,
) -> tuple[list[tuple[str, str, str]], str]:
    turns = []
    for index, message in enumerate(messages):
        turns.append(_turn(message, f"messages[{index}]"))
    variables = dict(template_args or {})
    if tools is not None:
        variables["tools"] = list(tools)
    return turns, _json(variables, "template_args") if variables else ""


def _turn(message: Message, where: str) -> tuple[str, str, str]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidInput(f"[{where}] found {message!r:.60}, expected a mapping with a role")
    content = message.get("content")
    more = {name: value for name, value in message.items() if name not in ("role", "content")}
    if content is None and more:
        content = ""  # A turn of tool calls alone.
    if not isinstance(content, str):
        raise InvalidInput(f"[{where}.content] found {content!r:.60}, expected a text")
    return message["role"], content, _json(more, where) if more else ""


def _json(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"[{where}] {error}, expected what JSON can hold") from None
