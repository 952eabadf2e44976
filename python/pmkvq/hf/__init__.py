"""A packed KV cache for transformers models, on the CPU or a CUDA device.

    import pmkvq.hf
    model.set_attn_implementation("pmkvq")              # reads packed pages; without: see PackedCache
    cache = pmkvq.hf.PackedCache(model, kv="pm-kvq", kv_budget="64MiB")
    model.generate(**inputs, past_key_values=cache)

Needs torch and transformers 5.14 or later.
"""
from ._attention import IMPLEMENTATION
from ._cache import BudgetStop, CacheStats, PackedCache, PackedLayer

__all__ = ["IMPLEMENTATION", "BudgetStop", "CacheStats", "PackedCache", "PackedLayer"]
