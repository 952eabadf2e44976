"""What the options of a PackedCache and a model's config mean for the native cache."""
from __future__ import annotations

import pathlib

from transformers import PretrainedConfig, PreTrainedModel

from .._errors import InvalidInput, Unsupported
from .._plan import WIDTHS
from ._device import PAGE_TOKENS


def method_of(kv: str | None, nbits: int | None, is_bounded: bool) -> tuple[str, int]:
    """SPEC, and the width below which pages do not go (0: the method's)."""
    if nbits is not None and nbits not in WIDTHS:
        raise InvalidInput(f"[nbits] found {nbits!r}, expected 16, 8, 4 or 2")
    if kv is None:
        if is_bounded:
            return "pm-kvq", nbits or 0
        return ("fp16" if nbits in (None, 16) else f"static-{nbits}"), 0
    if nbits is not None and kv.split(":")[0] != "pm-kvq":
        raise InvalidInput(f'[nbits] found {nbits} beside kv="{kv}", which has its width, expected one of them')
    return kv, nbits or 0


def window_of(residual_length: int | None) -> int:
    """--n-window-token; -1: not given."""
    if residual_length is None:
        return -1
    if isinstance(residual_length, bool) or not isinstance(residual_length, int) or residual_length < 0:
        raise InvalidInput(f"[residual_length] found {residual_length!r}, expected a number of tokens")
    return max(1, -(-residual_length // PAGE_TOKENS)) * PAGE_TOKENS


def folder_of(model: PreTrainedModel | PretrainedConfig) -> str:
    """Where the model's weights are from, to compare with a plan; "": not known."""
    folder = pathlib.Path(getattr(model, "name_or_path", "") or "")
    return str(folder) if str(folder) != "." and any(folder.glob("*.safetensors")) else ""


def blocks_of(config: PretrainedConfig) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    """Query heads, KV heads, head size and sliding window (0: none) of each block."""
    name = type(config).__name__
    num_heads = getattr(config, "num_attention_heads", None)
    num_layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(num_heads, int) or not isinstance(num_layers, int):
        raise Unsupported(f"[PackedCache] {name} has no num_attention_heads or num_hidden_layers, expected a decoder")
    if getattr(config, "kv_lora_rank", None) is not None or getattr(config, "is_encoder_decoder", False):
        raise Unsupported(
            f"[PackedCache] found {name}, expected a decoder whose blocks have keys and values of one shape"
        )
    if getattr(config, "num_kv_shared_layers", 0):
        raise Unsupported(f"[PackedCache] found {name}, whose blocks share keys, expected blocks with their own")
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        types = ["full_attention" if window is None else "sliding_attention"] * num_layers
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown or getattr(config, "attention_chunk_size", None) is not None:
        found = ", ".join(unknown) or "chunked attention"
        raise Unsupported(f"[PackedCache] found blocks of {found} in {name}, expected full or sliding attention")
    windows = [int(window) if kind == "sliding_attention" and window else 0 for kind in types]
    return [(num_heads, num_kv_heads, head_dim, w) for w in windows], windows
