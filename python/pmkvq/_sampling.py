"""How tokens are drawn."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from . import _pmkvq
from ._errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Settings of a request. Names, meanings and defaults are those of `pmkvq run`.

    temperature: 0 takes the likeliest token. top_k: 0 is off. top_p: 1 is off. min_p: 0 is off.
    seed: the same seed gives the same text, beside any other requests.
    max_tokens: 0 is as many as max_len and the budget allow. min_tokens: before so many no
    end-of-sequence token is drawn.
    stop: texts that end the answer and are cut from it. stop_token_ids: tokens that end it.
    logit_bias: numbers added to logits, by token id.
    logprobs: log-probabilities of each token and of so many of the likeliest ones; None: none.
    prompt_logprobs: the same of each prompt token but the first.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 42
    max_tokens: int = 0
    min_tokens: int = 0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, least, most in (
            ("seed", 0, 2**64 - 1),
            ("top_k", 0, 2**62),
            ("max_tokens", 0, 2**62),
            ("min_tokens", 0, 2**62),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise InvalidInput(f"[{name}] found {value!r}, expected a whole number from {least} to {most}")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InvalidInput(f"[{name}] found {value!r}, expected a finite number")
        if isinstance(self.stop, str):
            raise InvalidInput(f"[stop] found {self.stop!r}, expected a list of texts")


def make_request(prompt_ids: list[int], params: SamplingParams, sample: int = 0) -> _pmkvq.Request:
    """The native request. The seed is that of this sample of `pmkvq run`."""
    if not isinstance(params, SamplingParams):
        raise InvalidInput(f"[params] found {type(params).__name__}, expected SamplingParams(...)")
    return _pmkvq.Request(
        prompt_ids,
        seed=_pmkvq.stream_seed(params.seed, sample),
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        stop=list(params.stop),
        stop_token_ids=list(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        repetition_penalty=params.repetition_penalty,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        logit_bias=[(token, float(bias)) for token, bias in params.logit_bias.items()],
        logprobs=-1 if params.logprobs is None else params.logprobs,
        prompt_logprobs=-1 if params.prompt_logprobs is None else params.prompt_logprobs,
    )
