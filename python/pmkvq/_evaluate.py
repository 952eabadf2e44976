"""Benchmarks."""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from . import _pmkvq
from ._arguments import bytes_of, check_model, path_of, threads_of
from ._errors import InvalidInput
from ._frames import frame_of
from ._plan import Plan
from ._tokenizer import Tokenizer

if TYPE_CHECKING:
    import pandas

Data = TypeVar("Data")


@dataclass(frozen=True)
class Response:
    """A graded response to a problem."""

    id: str  # Of the problem.
    task: str
    level: int
    response: int  # Index among those of the problem, from 0.
    answer: str  # The right one.
    extracted: str  # The answer that the response gives; "": none.
    correct: bool
    finish_reason: str
    error: str  # With finish_reason "error": why; else "".
    prompt_tokens: int
    output_tokens: int
    peak_bytes: int  # Of its cache.
    budget_bytes: int
    text: str


@dataclass(frozen=True)
class Summary:
    """Of the responses of a run; shares in [0, 1]."""

    num_problems: int
    num_responses: int
    num_correct: int
    pass_at_1: float
    interval: tuple[float, float]  # Of pass_at_1, 95 %: clustered by problem.
    voting: float  # Problems whose most frequent answer is right.
    mean_output_tokens: float
    num_cut_by_length: int
    num_cut_by_budget: int
    output_tokens: int
    peak_bytes: int  # The largest of any sequence.
    budget_bytes: int  # Of one sequence.


@dataclass(frozen=True)
class Judgement:
    """The grade of one response."""

    extracted: str  # The answer that the response gives; "": none.
    correct: bool


@dataclass(frozen=True)
class Report:
    """Graded responses by problem, then index, and what they sum up to."""

    responses: list[Response]
    summary: Summary
    seconds: float  # Of computing what was missing.

    def to_pandas(self) -> pandas.DataFrame:
        """A row per response. Raises Unsupported without pandas."""
        return frame_of(map(dataclasses.asdict, self.responses))


def judge(response: str, gold: str) -> Judgement:
    """Grades one response by its reference answer: `pmkvq judge`."""
    return copy_of(Judgement, _pmkvq.judge(response, gold))


def response_of(native: _pmkvq.Response) -> Response:
    return copy_of(Response, native)


def copy_of(kind: type[Data], native: object) -> Data:
    """The dataclass with the native object's members of these names."""
    fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]
    return kind(**{field.name: getattr(native, field.name) for field in fields})


def evaluate(
    model: _pmkvq.Model,
    benchmark: str = "longcot",
    data: str | os.PathLike[str] | None = None,
    *,
    kv: str = "fp16",
    kv_budget: int | str | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    kv_dtype: str = "f16",
    batch: int = 8,
    max_len: int = 0,
    chunk: int = 512,
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
    folder. kv, kv_budget, plan, kv_dtype: as those of LLM. batch: sequences decoded together.
    None for temperature, top_p, n_responses and max_tokens: the benchmark's protocol.
    out: folder for the responses (a plan has to be in a file then); a call that Ctrl-C ended then goes on where it was, and so does
    the command. on_response is called from other threads, one at a time.
    Raises InvalidInput, IoError, Unsupported, and MethodError of a method in Python. Ctrl-C raises
    KeyboardInterrupt.
    """
    check_model(model)
    codec = Tokenizer(model.path, tokenizer=tokenizer, chat_template=chat_template)
    responses, seconds = _pmkvq.evaluate(
        model,
        codec._native,
        benchmark=benchmark,
        data=model.path if data is None else path_of(data),
        kv=kv,
        plan=native_plan(plan, out),
        kv_budget=bytes_of(kv_budget, "kv_budget"),
        kv_dtype=kv_dtype,
        batch=batch,
        max_len=max_len,
        chunk=chunk,
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
        on_response=None if on_response is None else lambda native: on_response(response_of(native)),
    )
    summary = copy_of(Summary, _pmkvq.summarize(responses))
    return Report(responses=[response_of(native) for native in responses], summary=summary, seconds=seconds)


def native_plan(
    plan: Plan | str | os.PathLike[str] | None, out: str | os.PathLike[str] | None
) -> _pmkvq.PlanFile | None:
    """Raises InvalidInput for a plan that is in no file where the run is to be one in a folder."""
    if plan is None:
        return None
    if not isinstance(plan, Plan):
        plan = Plan.load(plan)
    if out is not None and not plan._native.path:
        raise InvalidInput("[plan] is in no file, expected one that was saved: its hash identifies the run in out=")
    return plan._native
