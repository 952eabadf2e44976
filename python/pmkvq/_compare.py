"""Comparisons of cache methods at equal bytes."""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import _pmkvq
from ._arguments import bytes_of, check_model, path_of, threads_of
from ._evaluate import Response, native_plan, response_of
from ._frames import frame_of
from ._plan import Plan
from ._tokenizer import Tokenizer

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class PairedResult:
    """Outcomes of a method and another one for the same problems and seeds."""

    both: int
    only_other: int
    only_method: int
    neither: int
    difference: float  # Share of the method minus that of the other, in [-1, 1].
    interval: tuple[float, float]  # Of the difference, 95 %: clustered by problem.
    p_value: float  # McNemar's test, clustered.


@dataclass(frozen=True)
class LevelScore:
    """Right answers to problems of one level."""

    level: int
    responses: int
    solved: int
    share: float
    interval: tuple[float, float]  # Of the share, 95 %.
    to_baseline: PairedResult | None
    to_against: PairedResult | None


@dataclass(frozen=True)
class MethodResult:
    """One method at one budget. Without responses unless status is "done"."""

    kv: str  # SPEC
    status: str  # "done", "does_not_fit" or "interrupted".
    simulated: bool  # Bytes are counted; speed is not the method's.
    budget_bytes: int  # Of one sequence; 0: the baseline.
    needed_bytes: int  # Where the budget does not hold max_len tokens: the smallest that does; else 0.
    expected_responses: int
    responses: int = 0
    solved: int = 0
    share: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)  # Of the share, 95 %: clustered by problem.
    to_baseline: PairedResult | None = None
    to_against: PairedResult | None = None
    peak_bytes: int = 0  # The largest of any sequence.
    effective_bits_by_peak: float | None = None  # Bits per value of max_len tokens.
    mean_output_tokens: float = 0.0
    cut_by_length: int = 0
    cut_by_budget: int = 0
    tokens_per_second: float = 0.0  # Of one sequence while it is decoded; 0: unknown.
    kept_share: float = 1.0  # Of the tokens, at the end, mean over responses; less than 1: the method evicts.
    levels: list[LevelScore] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """Tables of methods: one per budget, the baseline first in each."""

    benchmark: str
    model_identity: str
    baseline: str
    against: str  # "": none.
    num_problems: int
    num_responses: int  # To each problem.
    max_len: int
    settings: dict[str, str]  # Of all methods, by option of the command.
    tables: list[list[MethodResult]]
    _native: _pmkvq.Comparison = field(repr=False, compare=False)

    @staticmethod
    def load(*paths: str | os.PathLike[str], against: str = "") -> Comparison:
        """Tables from finished runs, as `pmkvq compare --from`: folders of eval or compare, or --json
        files of eval. Raises InvalidInput, IoError."""
        return _comparison_of(_pmkvq.Comparison.load(list(map(path_of, paths)), against))

    def __iter__(self) -> Iterator[MethodResult]:
        """All results; the baseline once."""
        for index, table in enumerate(self.tables):
            yield from (row for row in table if index == 0 or row.kv != self.baseline)

    def __str__(self) -> str:
        return self._native.text(False)

    def text(self, *, by_level: bool = False) -> str:
        """The tables as the command prints them."""
        return self._native.text(by_level)

    def markdown(self) -> str:
        return self._native.markdown()

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """One page with a chart of accuracy against bytes and the tables."""
        self._native.save_html(path_of(path), "pmkvq.compare(...)")

    def to_pandas(self) -> pandas.DataFrame:
        """A row per method and budget, pairs as columns. Raises Unsupported without pandas."""
        return frame_of(map(_row_of, self))


def compare(
    model: _pmkvq.Model,
    benchmark: str = "longcot",
    data: str | os.PathLike[str] | None = None,
    *,
    kv: Sequence[str],
    kv_budget: int | str | Sequence[int | str],
    plan: Plan | str | os.PathLike[str] | None = None,
    against: str | None = None,
    allow_partial: bool = False,
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
    on_begin: Callable[[str, int, int, int], object] | None = None,
    on_response: Callable[[str, int, Response], object] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    chat_template: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Several cache methods at equal bytes, on the same problems and seeds: `pmkvq compare`.

    kv: SPECs, those of pmkvq.methods.register among them; fp16 is run in any case, as the baseline.
    kv_budget: what one sequence may take with every other method, or several of them: bytes, or
    texts with a unit. against: one of kv, with which all are paired, too. allow_partial: runs
    methods whose budget does not hold max_len tokens. The rest as evaluate; out= is the folder of
    `pmkvq compare --out`. on_begin(kv, budget in bytes, responses asked for, responses that are
    there) and on_response(kv, budget, response) are called from other threads, one at a time.
    Raises InvalidInput (before anything is run, where an option is wrong), IoError, Unsupported, and
    MethodError of a method in Python. Ctrl-C raises KeyboardInterrupt; with out= the same call goes
    on where it was.
    """
    check_model(model)
    codec = Tokenizer(model.path, tokenizer=tokenizer, chat_template=chat_template)
    budgets = [kv_budget] if isinstance(kv_budget, (int, str)) else list(kv_budget)

    def report(spec: str, budget: int, native: _pmkvq.Response) -> None:
        assert on_response is not None
        on_response(spec, budget, response_of(native))

    native = _pmkvq.compare(
        model,
        codec._native,
        benchmark=benchmark,
        data=model.path if data is None else path_of(data),
        kv=[kv] if isinstance(kv, str) else list(kv),
        plan=native_plan(plan, out),
        kv_budget=[bytes_of(budget, "kv_budget") for budget in budgets],
        against=against or "",
        allow_partial=allow_partial,
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
        out="" if out is None else path_of(out),
        on_begin=on_begin,
        on_response=None if on_response is None else report,
    )
    return _comparison_of(native)


def _comparison_of(native: _pmkvq.Comparison) -> Comparison:
    known = json.loads(native.json())
    return Comparison(
        benchmark=known["benchmark"],
        model_identity=known["model"],
        baseline=known["baseline"],
        against=known["against"],
        num_problems=known["problems"],
        num_responses=known["responses_per_problem"],
        max_len=known["max_len"],
        settings=known["settings"],
        tables=[[_result_of(row) for row in table["methods"]] for table in known["budgets"]],
        _native=native,
    )


def _score_fields(row: dict[str, Any]) -> dict[str, Any]:
    known = {name: row[name] for name in ("responses", "solved", "share")}
    pairs = {name: _pair_of(row[name]) for name in ("to_baseline", "to_against")}
    return {**known, **pairs, "interval": tuple(row["interval"])}


def _pair_of(pair: dict[str, Any] | None) -> PairedResult | None:
    return None if pair is None else PairedResult(**{**pair, "interval": tuple(pair["interval"])})


def _result_of(row: dict[str, Any]) -> MethodResult:
    names = ("kv", "status", "simulated", "budget_bytes", "needed_bytes", "expected_responses")
    known = {name: row[name] for name in names}
    if row["status"] != "done":
        return MethodResult(**known)
    more = ("peak_bytes", "effective_bits_by_peak", "mean_output_tokens", "cut_by_length", "cut_by_budget", "tokens_per_second")
    levels = [LevelScore(level=level["level"], **_score_fields(level)) for level in row["levels"]]
    return MethodResult(**known, **_score_fields(row), **{name: row[name] for name in more}, kept_share=row.get("kept_share", 1.0), levels=levels)


def _row_of(result: MethodResult) -> dict[str, Any]:
    row = {name: value for name, value in vars(result).items() if name not in ("interval", "to_baseline", "to_against", "levels")}
    row["low"], row["high"] = result.interval
    for name, pair in (("baseline", result.to_baseline), ("against", result.to_against)):
        row[f"difference_to_{name}"] = None if pair is None else pair.difference
        row[f"p_value_to_{name}"] = None if pair is None else pair.p_value
    return row
