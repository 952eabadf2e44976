"""Attention over packed pages, as a transformers attention implementation named "pmkvq".

Both of transformers' registries have the name. An implementation that is registered for attention
alone gets no mask at all, and with it loses causality and padding without a word.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function

from .._errors import Unsupported

if TYPE_CHECKING:
    from ._cache import PackedLayer

IMPLEMENTATION = "pmkvq"
_INSTEAD = (
    'model.set_attn_implementation("sdpa") (or "eager") makes PackedCache hand back dequantised tensors, '
    "which any attention takes"
)

# What attention code may ask about keys before it calls the attention function.
_QUESTIONS: set[Any] = {
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "device", "requires_grad")),
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.__len__,
}


class PendingKeys(torch.Tensor):
    """New keys [B, Hkv, T, D] on their way from PackedCache.update to the attention function.

    They are not all keys, so an attention function other than ours would compute wrong results from
    them. Therefore everything but a look at shape and type is an error.
    """

    keys: torch.Tensor
    layer: PackedLayer

    @staticmethod
    def of(keys: torch.Tensor, layer: PackedLayer) -> PendingKeys:
        pending: PendingKeys = torch.Tensor._make_subclass(PendingKeys, keys)
        pending.keys = keys
        pending.layer = layer
        return pending

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _QUESTIONS:
            name = getattr(func, "__name__", str(func))
            raise Unsupported(
                f"[PackedCache] the model's attention calls {name} on keys, which are in the cache; {_INSTEAD}"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """What `attention` gets as its mask: which tokens are padding [B, kv_length], or None: none is.

    Raises Unsupported for a mask that is not causal, within the sliding window `local_size` if any.
    """
    if mask_function is not causal_mask_function:
        _check_is_causal(mask_function, int(q_length), int(kv_length), int(q_offset), int(kv_offset), local_size)
    if attention_mask is None:
        return None
    seen = attention_mask[:, -kv_length:]
    if seen.shape[1] == kv_length and bool(seen.all()):
        return None
    return seen


def _check_is_causal(
    mask_function: Callable[..., Any], q_length: int, kv_length: int, q_offset: int, kv_offset: int, window: int | None
) -> None:
    """Looks at the first, the middle and the last row."""
    rows = torch.tensor(sorted({0, q_length // 2, q_length - 1}))[:, None] + q_offset
    columns = torch.arange(kv_length)[None, :] + kv_offset
    allowed = mask_function(torch.tensor(0), torch.tensor(0), rows, columns)
    expected = columns <= rows
    if window is not None:
        expected = expected & (columns > rows - window)
    if not torch.equal(torch.broadcast_to(allowed, expected.shape), expected):
        raise Unsupported(
            f"[{IMPLEMENTATION}] found an attention mask that is neither causal nor a sliding window; {_INSTEAD}"
        )


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [B, H, T, D], key and value [B, Hkv, T, D] -> [B, T, H, D] and no weights.

    Keys that PackedCache.update gave are attended together with all that it holds, and stored. Of
    other caches, and without one, key has all keys, and this is torch's scaled_dot_product_attention.
    """
    if softcap is not None or not _SPECIAL.isdisjoint(kwargs):
        _check_is_plain(softcap, kwargs)
    if not isinstance(key, PendingKeys):
        return _attend_to_tensors(module, query, key, value, attention_mask, dropout, scaling, sliding_window)
    if dropout != 0.0:
        raise Unsupported(f"[PackedCache] found dropout {dropout}, expected none: model.eval()")
    if query.requires_grad:
        raise Unsupported("[PackedCache] found queries with a gradient, expected none: with torch.no_grad(): ...")
    factor = 1.0 if scaling is None else scaling * math.sqrt(query.shape[-1])
    # A factor that only rounding sets apart from 1 would cost a copy of the queries.
    if abs(factor - 1.0) < 1e-6:
        factor = 1.0
    out = key.layer.attend(query, key.keys, value, attention_mask, factor, sliding_window)
    return (out if out.dtype == query.dtype else out.to(query.dtype)), None


# Arguments that change what attention is.
_SPECIAL = frozenset({"s_aux", "sinks", "position_bias", "output_attentions"})


def _check_is_plain(softcap: float | None, kwargs: dict[str, Any]) -> None:
    for name, found in (
        ("a softcap", softcap is not None),
        ("attention sinks", kwargs.get("s_aux") is not None or kwargs.get("sinks") is not None),
        ("a position bias", kwargs.get("position_bias") is not None),
        ("output_attentions", bool(kwargs.get("output_attentions"))),
    ):
        if found:
            raise Unsupported(f"[{IMPLEMENTATION}] found {name}, expected plain attention; {_INSTEAD}")


def _attend_to_tensors(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
) -> tuple[torch.Tensor, None]:
    if mask is None or mask.dim() == 2:
        num_rows, num_keys = query.shape[2], key.shape[2]
        rows = torch.arange(num_keys - num_rows, num_keys, device=key.device)[:, None]
        columns = torch.arange(num_keys, device=key.device)[None, :]
        allowed = columns <= rows
        if sliding_window is not None:
            allowed = allowed & (columns > rows - sliding_window)
        allowed = allowed[None, None]
        if mask is not None:
            allowed = allowed & mask[:, None, None, :]
        # A row of padding sees itself, so that its softmax has something to sum.
        mask = allowed | (columns == rows)
    out, _ = sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling)
    return out, None


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, attention_mask)
