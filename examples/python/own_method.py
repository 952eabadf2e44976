"""A cache method in NumPy, compared with another one at equal bytes: own_method.py [MODEL]"""
import sys

import numpy as np

import pmkvq
from pmkvq import methods


@methods.register
class MeanSign(methods.CacheMethod):
    """One bit a value: its side of the token's mean, at the mean distance. Newest tokens stay."""

    name = "mean-sign"
    keys = {"recent": methods.Integer(0, 4096, default=128, help="newest tokens at full precision")}
    recent: int

    def on_append(self, layer: int, tokens: methods.AppendedTokens, block: methods.Block, state: object) -> None:
        aged = slice(max(0, tokens.first - self.recent), max(0, tokens.last - self.recent))
        for rows in (block.keys, block.values):
            x = rows[aged]  # [tokens, Hkv, D]
            mean = x.mean(-1, keepdims=True)
            rows[aged] = mean + np.copysign(np.abs(x - mean).mean(-1, keepdims=True), x - mean)

    def block_bytes(self, layer: int, num_tokens: int) -> int:
        aged = max(0, num_tokens - self.recent)  # Each with D bits and two 16-bit numbers per head.
        return 2 * (self.context.float_bytes(num_tokens - aged) + aged * self.context.num_kv_heads * (self.context.head_dim // 8 + 4))


model = pmkvq.load_model(sys.argv[1] if len(sys.argv) > 1 else "models/longcot-10m")
print(pmkvq.compare(model, kv=["mean-sign", "rtn:bits=2"], kv_budget="2MiB", max_len=1500, per_cell=1, max_level=1))
