"""Calibration, and the plans that it makes."""
from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from . import _pmkvq
from ._arguments import bytes_of, path_of, threads_of
from ._tokenizer import Tokenizer

WIDTHS = (16, 8, 4, 2)


@dataclass(frozen=True, eq=False)
class Plan:
    """Bit widths, budgets and key scales for one model. L blocks, Hkv KV heads, head size D.

    The arrays are copies: changing them does not change the plan.
    """

    model_identity: str
    max_len: int  # Tokens of a sequence that the budgets hold.
    memory_budget_bytes: int  # What the plan was made for; of one sequence, all blocks.
    k_bits: npt.NDArray[np.int64]  # [L] final widths of keys.
    v_bits: npt.NDArray[np.int64]  # [L] of values.
    budget_bytes: npt.NDArray[np.int64]  # [L]
    k_sensitivity: npt.NDArray[np.float64]  # [4, L] loss by width (WIDTHS) and block; [0, 0]: none.
    v_sensitivity: npt.NDArray[np.float64]
    alpha: npt.NDArray[np.float64]  # [L] exponents of the key scales; [0]: no key scales.
    key_scales: list[npt.NDArray[np.float32]]  # Of each block [Hkv, D/2]; []: none.
    _native: _pmkvq.PlanFile = field(repr=False)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Reads PLAN.json and the tensors beside it. Raises IoError, InvalidInput."""
        return _plan_of(_pmkvq.PlanFile.load(path_of(path)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes PLAN.json and, with key scales, PLAN.safetensors beside it."""
        self._native.save(path_of(path))


def _plan_of(native: _pmkvq.PlanFile) -> Plan:
    def table(rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
        return np.array(rows, dtype=np.float64) if rows else np.zeros((0, 0))

    return Plan(
        model_identity=native.model_identity,
        max_len=native.max_len,
        memory_budget_bytes=native.memory_budget_bytes,
        k_bits=np.array(native.k_bits, dtype=np.int64),
        v_bits=np.array(native.v_bits, dtype=np.int64),
        budget_bytes=np.array(native.budget_bytes, dtype=np.int64),
        k_sensitivity=table(native.k_sensitivity),
        v_sensitivity=table(native.v_sensitivity),
        alpha=np.array(native.alpha, dtype=np.float64),
        key_scales=[np.asarray(scales) for scales in native.key_scales],
        _native=native,
    )


def calibrate(
    model: _pmkvq.Model,
    dataset: str | os.PathLike[str],
    *,
    memory_budget: int | str,
    max_len: int = 0,
    n_samples: int = 512,
    seq_len: int = 2048,
    effective_len: int = 0,
    seed: int = 42,
    pack: str = "concat",
    fbit_choices: Sequence[int] = (4, 2),
    separate_kv: bool = False,
    key_scales: bool = True,
    tokenizer: str | os.PathLike[str] | None = None,
    threads: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> Plan:
    """Measures a model and allocates a budget: `pmkvq calibrate`.

    model: LLM.model or load_model(...). dataset: texts, .jsonl or .txt. memory_budget: of one
    sequence, all blocks: bytes, or a text with a unit. max_len: tokens that must fit; 0: the
    model's positions, at most 32768. n_samples sequences of seq_len tokens, whose positions are
    stretched to effective_len (0: not). out: PLAN.json to write; a call that Ctrl-C ended then goes
    on where it was. progress(task, done, total) is called from another thread.
    Raises InvalidInput, IoError. Ctrl-C raises KeyboardInterrupt.
    """
    codec: Tokenizer | None = None
    if tokenizer is not None or _pmkvq.Tokenizer.is_in(model.path):
        codec = Tokenizer(model.path, tokenizer=tokenizer)
    native, messages = _pmkvq.calibrate(
        model,
        None if codec is None else codec._native,
        path_of(dataset),
        pack=pack,
        n_samples=n_samples,
        seq_len=seq_len,
        effective_len=effective_len,
        seed=seed,
        memory_budget=bytes_of(memory_budget, "memory_budget"),
        max_len=max_len or min(32768, model.max_positions),
        fbit_choices=list(fbit_choices),
        separate_kv=separate_kv,
        key_scales=key_scales,
        threads=threads_of(threads),
        plan_path=None if out is None else path_of(out),
        progress=progress,
    )
    for message in messages:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return _plan_of(native)
