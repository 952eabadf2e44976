"""Calibration, its steps, and the plans that it makes."""
from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from . import _pmkvq
from ._arguments import bytes_of, check_model, path_of, threads_of
from ._frames import frame_of
from ._tokenizer import Tokenizer

if TYPE_CHECKING:
    import pandas

WIDTHS = (16, 8, 4, 2)


@dataclass(frozen=True, eq=False)
class Plan:
    """Bit widths, budgets and key scales for one model. L blocks, Hkv KV heads, head size D.

    key_scales are read-only views of the plan; the other arrays are copies.
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


def _table(rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    return np.array(rows, dtype=np.float64) if rows else np.zeros((0, 0))


def _codec_of(model: _pmkvq.Model, tokenizer: str | os.PathLike[str] | None) -> _pmkvq.Tokenizer | None:
    """None where the model has none: a data set of ids needs none."""
    check_model(model)
    if tokenizer is None and not _pmkvq.Tokenizer.is_in(model.path):
        return None
    return Tokenizer(model.path, tokenizer=tokenizer)._native


def _plan_of(native: _pmkvq.PlanFile) -> Plan:
    return Plan(
        model_identity=native.model_identity,
        max_len=native.max_len,
        memory_budget_bytes=native.memory_budget_bytes,
        k_bits=np.array(native.k_bits, dtype=np.int64),
        v_bits=np.array(native.v_bits, dtype=np.int64),
        budget_bytes=np.array(native.budget_bytes, dtype=np.int64),
        k_sensitivity=_table(native.k_sensitivity),
        v_sensitivity=_table(native.v_sensitivity),
        alpha=np.array(native.alpha, dtype=np.float64),
        key_scales=[np.asarray(scales) for scales in native.key_scales],
        _native=native,
    )


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """First-order sensitivity of the loss to quantising K or V: mean |(Q_b(x) - x) dL/dx|, by width
    (WIDTHS: 16, 8, 4, 2) and block."""

    k: npt.NDArray[np.float64]  # [4, L]
    v: npt.NDArray[np.float64]  # [4, L]
    model_identity: str = ""
    # How it was measured.
    dataset: str = ""
    pack: str = ""
    n_samples: int = 0
    seq_len: int = 0
    effective_len: int = 0
    seed: int = 0
    weights: str = "as-stored"

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Sensitivity:
        """Reads a file of save or of `pmkvq sensitivity`. Raises IoError, InvalidInput."""
        k, v, identity, record = _pmkvq.load_sensitivity(path_of(path))
        return Sensitivity(_table(k), _table(v), identity, *record)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file that `pmkvq allocate --sensitivity` reads."""
        record = (self.dataset, self.pack, self.n_samples, self.seq_len, self.effective_len, self.seed, self.weights)
        _pmkvq.save_sensitivity(path_of(path), self.k.tolist(), self.v.tolist(), self.model_identity, record)

    def to_pandas(self) -> pandas.DataFrame:
        """A row per block and width: block, bits, k, v. Raises Unsupported without pandas."""
        return frame_of(
            {"block": block, "bits": bits, "k": self.k[row, block], "v": self.v[row, block]}
            for block in range(self.k.shape[1])
            for row, bits in enumerate(WIDTHS)
        )


def sensitivity(
    model: _pmkvq.Model,
    dataset: str | os.PathLike[str],
    *,
    n_samples: int = 512,
    seq_len: int = 2048,
    effective_len: int = 0,
    seed: int = 42,
    pack: str = "concat",
    tokenizer: str | os.PathLike[str] | None = None,
    threads: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> Sensitivity:
    """Measures sensitivities: `pmkvq sensitivity`. Arguments as those of calibrate.

    checkpoint: file for partial results; a call that Ctrl-C ended goes on from it.
    """
    k, v, record, messages = _pmkvq.measure_sensitivity(
        model,
        _codec_of(model, tokenizer),
        path_of(dataset),
        pack=pack,
        n_samples=n_samples,
        seq_len=seq_len,
        effective_len=effective_len,
        seed=seed,
        threads=threads_of(threads),
        checkpoint="" if checkpoint is None else path_of(checkpoint),
        progress=progress,
    )
    for message in messages:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return Sensitivity(_table(k), _table(v), model.identity, *record)


@dataclass(frozen=True, eq=False)
class Allocation:
    """Widths and bytes of every block."""

    k_bits: npt.NDArray[np.int64]  # [L] final widths of keys.
    v_bits: npt.NDArray[np.int64]  # [L] of values.
    budget_bytes: npt.NDArray[np.int64]  # [L]
    objective: float  # Sum of the sensitivities at these widths.
    total_bytes: int  # Of one sequence of max_len tokens.


def allocate(
    model: _pmkvq.Model | str | os.PathLike[str],
    sensitivity: Sensitivity | Plan,
    *,
    memory_budget: int | str,
    max_len: int,
    fbit_choices: Sequence[int] = (4, 2),
    separate_kv: bool = False,
    n_sink_token: int = 1,
    n_window_token: int = 128,
    kv_dtype: str = "f16",
    reference_accounting: bool = False,
) -> Allocation:
    """Chooses the widths of least summed sensitivity that fit a budget, exactly: `pmkvq allocate`.

    model: a model, or a folder or GGUF file of which only the config is read. sensitivity: also a
    plan, whose sensitivities are taken. memory_budget: of one sequence of max_len tokens, all
    blocks: bytes, or a text with a unit. separate_kv: K and V of a block may differ. n_sink_token,
    n_window_token: tokens that stay at 16 bits. reference_accounting: payload only.
    Raises InvalidInput, which names the smallest budget that works.
    """
    if isinstance(sensitivity, Plan):
        k, v = sensitivity.k_sensitivity, sensitivity.v_sensitivity
    else:
        k, v = sensitivity.k, sensitivity.v
    loaded = model if isinstance(model, _pmkvq.Model) else None
    found_k, found_v, budget, objective, total = _pmkvq.allocate(
        loaded,
        "" if isinstance(model, _pmkvq.Model) else path_of(model),
        k=k.tolist(),
        v=v.tolist(),
        memory_budget=bytes_of(memory_budget, "memory_budget"),
        max_len=max_len,
        fbit_choices=list(fbit_choices),
        separate_kv=separate_kv,
        sink_tokens=n_sink_token,
        window_tokens=n_window_token,
        kv_dtype=kv_dtype,
        reference_accounting=reference_accounting,
    )
    return Allocation(
        k_bits=np.array(found_k, dtype=np.int64),
        v_bits=np.array(found_v, dtype=np.int64),
        budget_bytes=np.array(budget, dtype=np.int64),
        objective=objective,
        total_bytes=total,
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
    native, messages = _pmkvq.calibrate(
        model,
        _codec_of(model, tokenizer),
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
