"""The packed format of the cache on NumPy arrays, for researchers.

A group is G neighbouring values along an axis; at 8, 4 or 2 bits it is G codes with a minimum and a
range. Halving a width changes codes only: value = code * range / (2^bits - 1) + minimum.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _pmkvq
from ._errors import InvalidInput

MOST_VALUES = 128  # Of a group.


@dataclass(frozen=True, eq=False)
class Packed:
    """A quantised array. N groups."""

    codes: npt.NDArray[np.uint8]  # [N, G * bits / 8]
    mins: npt.NDArray[Any]  # [N] float16 or float32
    ranges: npt.NDArray[Any]  # [N]
    bits: int
    group: int  # G
    axis: int  # Of `shape`, along which the groups lie.
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.mins.nbytes + self.ranges.nbytes


def quantize(
    array: npt.NDArray[np.float32],
    bits: int,
    axis: int = -1,
    *,
    group: int | None = None,
    metadata: str = "float16",
) -> Packed:
    """Quantises a float32 array in groups along `axis`.

    bits: 8, 4 or 2. group: values of a group, a multiple of 8 up to 128 that divides the axis;
    default: the axis' length, at most 128. metadata: type of minima and ranges, "float16" (the
    cache's) or "float32". Another axis than the last one is copied. Values have to be finite.
    Raises InvalidInput.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim == 0:
        raise InvalidInput(f"[array] found {_kind_of(array)}, expected a float32 array of one axis or more")
    _check_bits(bits, (8, 4, 2))
    if metadata not in ("float16", "float32"):
        raise InvalidInput(f"[metadata] found {metadata!r}, expected 'float16' or 'float32'")
    if not -array.ndim <= axis < array.ndim:
        raise InvalidInput(f"[axis] found {axis}, expected one of {array.ndim} axes")
    length = array.shape[axis]
    size = min(length, MOST_VALUES) if group is None else group
    if size < 8 or size > MOST_VALUES or size % 8 != 0 or length % size != 0:
        raise InvalidInput(
            f"[group] found {size} for an axis of {length} values, expected a multiple of 8 up to {MOST_VALUES} "
            "that divides it"
        )
    if not np.isfinite(array).all():
        raise InvalidInput("[array] found a value that is not finite, expected finite ones")
    rows = np.ascontiguousarray(np.moveaxis(array, axis, -1)).reshape(-1, size)
    codes = np.empty((rows.shape[0], size * bits // 8), dtype=np.uint8)
    mins = np.empty(rows.shape[0], dtype=metadata)
    ranges = np.empty(rows.shape[0], dtype=metadata)
    _pmkvq.quantize_groups(rows, bits, metadata, codes, mins.view(np.uint8), ranges.view(np.uint8))
    return Packed(codes, mins, ranges, bits, size, axis % array.ndim, array.shape)


def halve(packed: Packed) -> Packed:
    """The same values at half of the width: 8 -> 4 -> 2 bits. Minima and ranges are shared."""
    _check_bits(packed.bits, (8, 4))
    codes = np.empty((packed.codes.shape[0], packed.codes.shape[1] // 2), dtype=np.uint8)
    _pmkvq.halve_groups(packed.codes, packed.group, packed.bits, codes)
    return Packed(codes, packed.mins, packed.ranges, packed.bits // 2, packed.group, packed.axis, packed.shape)


def dequantize(packed: Packed) -> npt.NDArray[np.float32]:
    """The values, float32 of the shape that was quantised."""
    rows = np.empty((packed.codes.shape[0], packed.group), dtype=np.float32)
    _pmkvq.dequantize_groups(
        packed.codes,
        packed.bits,
        str(packed.mins.dtype),
        packed.mins.view(np.uint8),
        packed.ranges.view(np.uint8),
        rows,
    )
    moved = list(packed.shape)
    moved.append(moved.pop(packed.axis))
    return np.moveaxis(rows.reshape(moved), -1, packed.axis)


def _check_bits(bits: int, known: tuple[int, ...]) -> None:
    if bits not in known:
        raise InvalidInput(f"[bits] found {bits!r}, expected one of {', '.join(map(str, known))}")


def _kind_of(value: object) -> str:
    return f"{value.dtype} of {value.ndim} axes" if isinstance(value, np.ndarray) else type(value).__name__
