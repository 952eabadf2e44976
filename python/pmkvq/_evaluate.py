"""Benchmarks."""
from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from . import _pmkvq
from ._arguments import bytes_of, path_of, threads_of
from ._errors import InvalidInput
from ._plan import Plan
from ._pmkvq import Response
from ._tokenizer import Tokenizer


@dataclass(frozen=True)
class Report:
    """Graded responses by problem, then index, and what they sum up to."""

    responses: list[Response]
    summary: _pmkvq.Summary
    seconds: float  # Of computing what was missing.


def evaluate(
    model: _pmkvq.Model,
    benchmark: str = "longcot",
    data: str | os.PathLike[str] | None = None,
    *,
    kv: str = "fp16",
    kv_budget: int | str | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    batch: int = 8,
    max_len: int = 0,
    threads: int = 0,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int = 42,
    n_responses: int | None = None,
    max_tokens: int | None = None,
    start: int = 0,
    end: int | None = None,
    per_cell: int = 0,
    min_level: int = 0,
    max_level: int = 1000,
    out: str | os.PathLike[str] | None = None,
    on_response: Callable[[Response], object] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    chat_template: str | os.PathLike[str] | None = None,
) -> Report:
    """Solves a benchmark with one cache method: `pmkvq eval`, same settings, same responses.

    model: LLM.model or load_model(...). data: file or folder of the benchmark; longcot: the model's
    folder. None for temperature, top_p, n_responses and max_tokens: the benchmark's protocol.
    out: folder for the responses (a plan has to be in a file then); a call that Ctrl-C ended then goes on where it was, and so does
    the command. on_response is called from other threads, one at a time.
    Raises InvalidInput, IoError, Unsupported. Ctrl-C raises KeyboardInterrupt.
    """
    codec = Tokenizer(model.path, tokenizer=tokenizer, chat_template=chat_template)
    if plan is not None and not isinstance(plan, Plan):
        plan = Plan.load(plan)
    if out is not None and plan is not None and not plan._native.path:
        raise InvalidInput("[plan] is in no file, expected one that was saved: its hash identifies the run in out=")
    responses, seconds = _pmkvq.evaluate(
        model,
        codec._native,
        benchmark=benchmark,
        data=model.path if data is None else path_of(data),
        kv=kv,
        plan=None if plan is None else plan._native,
        kv_budget=bytes_of(kv_budget, "kv_budget"),
        batch=batch,
        max_len=max_len,
        threads=threads_of(threads),
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        n_responses=n_responses,
        max_tokens=max_tokens,
        start=start,
        end=-1 if end is None else end,
        per_cell=per_cell,
        min_level=min_level,
        max_level=max_level,
        out=None if out is None else path_of(out),
        on_response=on_response,
    )
    return Report(responses=responses, summary=_pmkvq.summarize(responses), seconds=seconds)
