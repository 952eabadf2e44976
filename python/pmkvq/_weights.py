"""Stored weights, and logits, as arrays."""
from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _pmkvq
from ._arguments import bytes_of, check_model, ids_of, threads_of
from ._plan import Plan


@dataclass(frozen=True, eq=False)
class Weight:
    """A stored tensor of a model, which is read from its file when it is touched. No copies: arrays
    are read-only views of the mapped file, which keep it mapped.

    Weights of a model that were made when it was loaded (weights="q8") are here as they are stored.
    """

    name: str  # Canonical: "embedding", "blocks.3.attn.q" (docs/python.md).
    type: str  # "BF16", "F32", "Q4_K"; as its file spells it.
    shape: tuple[int, ...]  # Rows before columns: [outputs, inputs].
    _model: _pmkvq.Model

    def numpy(self) -> npt.NDArray[Any]:
        """float32 or float16 of `shape`; BF16, which NumPy does not have: its bits as uint16 of
        `shape` (torch.from_dlpack has it); other types: uint8 [rows, bytes of a row]."""
        return np.from_dlpack(_pmkvq.weight_view(self._model, self.name, True))

    def __dlpack__(self, **options: Any) -> Any:
        return _pmkvq.weight_view(self._model, self.name, False).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # The CPU.


def weights(model: _pmkvq.Model) -> dict[str, Weight]:
    """The stored weights of a model by canonical name (docs/python.md)."""
    check_model(model)
    return {name: Weight(name, kind, tuple(shape), model) for name, kind, shape in _pmkvq.weights_of(model)}


def logits(
    model: _pmkvq.Model,
    ids: Iterable[int],
    *,
    kv: str = "fp16",
    kv_budget: int | str | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    kv_dtype: str = "f32",
    max_len: int = 0,
    chunk: int = 512,
    threads: int = 0,
) -> npt.NDArray[np.float32]:
    """Logits [T, V] float32 at every position of T token ids through a cache: `pmkvq logits`.

    The array is the memory that they were computed into, and DLPack hands it on without a copy. A
    chunk of tokens reads earlier ones from the cache, and its own rows as floats. kv, kv_budget,
    plan, kv_dtype: as those of LLM. Raises InvalidInput. Ctrl-C raises KeyboardInterrupt.
    """
    check_model(model)
    if plan is not None and not isinstance(plan, Plan):
        plan = Plan.load(plan)
    return _pmkvq.prompt_logits(
        model,
        ids_of(ids, "ids"),
        kv=kv,
        plan=None if plan is None else plan._native,
        kv_budget=bytes_of(kv_budget, "kv_budget"),
        max_len=max_len,
        chunk=chunk,
        threads=threads_of(threads),
        kv_dtype=kv_dtype,
    )
