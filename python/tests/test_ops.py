"""The packed format against its formula."""
from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pmkvq import InvalidInput, ops


def unpacked(packed: ops.Packed) -> npt.NDArray[Any]:
    """Codes [N, G]: byte j of a group has those of j, j + G * bits / 8, ... from the lowest bits."""
    planes = [packed.codes >> shift & (2**packed.bits - 1) for shift in range(0, 8, packed.bits)]
    return np.concatenate(planes, axis=1)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("group", [8, 64, 128])
def test_quantize_is_the_formula(bits: int, group: int) -> None:
    rows = np.random.default_rng(bits * group).normal(size=(11, group)).astype(np.float32)
    packed = ops.quantize(rows, bits, metadata="float32")
    assert packed.codes.shape == (11, group * bits // 8) and packed.codes.dtype == np.uint8
    low = rows.min(axis=1)
    assert np.array_equal(packed.mins, low)
    assert np.array_equal(packed.ranges, rows.max(axis=1) - low)
    step = packed.ranges / np.float32(2**bits - 1)
    codes = np.clip(np.rint((rows - low[:, None]) / step[:, None]), 0, 2**bits - 1)
    assert np.array_equal(unpacked(packed), codes)
    assert np.allclose(ops.dequantize(packed), codes * step[:, None] + low[:, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_axes(axis: int) -> None:
    array = np.random.default_rng(1).normal(size=(16, 24, 32)).astype(np.float32)
    packed = ops.quantize(array, 8, axis, group=8)
    assert packed.group == 8 and packed.codes.shape == (array.size // 8, 8)
    back = ops.dequantize(packed)
    assert back.shape == array.shape and back.dtype == np.float32
    assert np.abs(back - array).max() < 0.02
    swapped = ops.dequantize(ops.quantize(np.ascontiguousarray(np.moveaxis(array, axis, -1)), 8, group=8))
    assert np.array_equal(np.moveaxis(swapped, -1, axis), back)


def test_halving_is_rounding_to_the_last_width() -> None:
    rows = np.random.default_rng(2).normal(size=(50, 64)).astype(np.float32)
    eight = ops.quantize(rows, 8, metadata="float32")
    four = ops.halve(eight)
    two = ops.halve(four)
    assert (four.bits, two.bits) == (4, 2) and two.mins is eight.mins
    assert np.array_equal(unpacked(four), np.rint(unpacked(eight) / 17))
    assert np.array_equal(unpacked(two), np.rint(unpacked(four) / 5))
    assert two.nbytes < four.nbytes < eight.nbytes


def test_metadata_of_the_cache() -> None:
    packed = ops.quantize(np.linspace(-1, 1, 128, dtype=np.float32), 4)
    assert packed.mins.dtype == packed.ranges.dtype == np.float16
    assert ops.dequantize(packed).shape == (128,)


@pytest.mark.parametrize(
    ("array", "arguments", "word"),
    [
        (np.zeros(64), {"bits": 4}, "array"),
        (np.zeros((), np.float32), {"bits": 4}, "array"),
        (np.zeros(64, np.float32), {"bits": 3}, "bits"),
        (np.zeros(64, np.float32), {"bits": 16}, "bits"),
        (np.zeros(60, np.float32), {"bits": 4}, "group"),
        (np.zeros(64, np.float32), {"bits": 4, "group": 48}, "group"),
        (np.zeros(256, np.float32), {"bits": 4, "group": 256}, "group"),
        (np.zeros(64, np.float32), {"bits": 4, "axis": 1}, "axis"),
        (np.full(64, np.nan, np.float32), {"bits": 4}, "finite"),
        (np.zeros(64, np.float32), {"bits": 4, "metadata": "float64"}, "metadata"),
    ],
)
def test_wrong_arguments(array: npt.NDArray[Any], arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        ops.quantize(array, **arguments)


def test_two_bits_are_the_last() -> None:
    with pytest.raises(InvalidInput, match="bits"):
        ops.halve(ops.quantize(np.zeros(64, np.float32), 2))
