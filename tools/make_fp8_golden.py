#!/usr/bin/env python3
"""Makes tests/golden/fp8.json: float8 weights with scales, and the bfloat16 values that they stand for.

Usage: make_fp8_golden.py OUT.json
Needs numpy and ml_dtypes, whose float8_e4m3fn and bfloat16 are the oracle."""
import json
import sys

import ml_dtypes
import numpy

ROWS, COLS = 21, 37
BLOCK = 16  # Stands for 128: the last blocks are not whole.


def case(name, codes, scale, shape):
    """scale: one value per weight. The product is taken in float32 and rounded once."""
    values = codes.view(ml_dtypes.float8_e4m3fn).astype(numpy.float32) * scale
    bits = values.astype(ml_dtypes.bfloat16).view(numpy.uint16)
    return {"name": name, "scale_shape": shape, "values": bits.flatten().tolist()}


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    random = numpy.random.default_rng(7)
    # Every code but the two NaNs, then random ones.
    known = numpy.array([code for code in range(256) if code & 0x7F != 0x7F], numpy.uint8)
    more = random.choice(known, ROWS * COLS - known.size)
    codes = numpy.concatenate([known, more]).reshape(ROWS, COLS)
    grid = [-(-ROWS // BLOCK), -(-COLS // BLOCK)]
    blocks = random.uniform(1e-4, 0.3, grid).astype(numpy.float32)
    rows = random.uniform(1e-4, 0.3, ROWS).astype(numpy.float32)
    whole = numpy.float32(0.0173)
    by_block = numpy.repeat(numpy.repeat(blocks, BLOCK, 0), BLOCK, 1)[:ROWS, :COLS]
    result = {
        "rows": ROWS, "cols": COLS, "block": BLOCK, "codes": codes.flatten().tolist(),
        "scales": {"block": blocks.flatten().tolist(), "row": rows.tolist(), "tensor": [float(whole)]},
        "cases": [
            case("block", codes, by_block, grid),
            case("row", codes, rows[:, None], [ROWS, 1]),
            case("tensor", codes, whole, [1]),
        ],
    }
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(result, file, separators=(",", ":"))
        file.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
