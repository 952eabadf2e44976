"""PackedCache where the model's tensors lie on a CUDA device.

The native cache gets addresses and the current stream of PyTorch, and its kernels read and write
tensors of PyTorch. Nothing is copied through the host.
"""
from __future__ import annotations

from collections.abc import Callable

import torch

from .. import _pmkvq
from .._errors import Unsupported

PAGE_TOKENS = 128
_PAGE_TYPES = {"f16": torch.float16, "bf16": torch.float32}  # As pages are read.
_REST_TYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


def check_device(device: torch.device, name: str) -> None:
    """Raises Unsupported for tensors that no cache of this package takes."""
    if device.type == "cpu":
        return
    if device.type != "cuda" or torch.version.hip is not None:
        raise Unsupported(f'[PackedCache] found {name} on {device}, expected cpu or CUDA: model.to("cpu")')
    versions, _, _ = _pmkvq.list_devices()
    if not versions:
        raise Unsupported(
            f'[PackedCache] found {name} on {device}, expected cpu, since this package was built without CUDA: '
            'model.to("cpu"), or install a build with CUDA (docs/python.md)'
        )


def _stream_by_object(index: int) -> int:
    return int(torch.cuda.current_stream(index).cuda_stream)


# The handle of a device's current stream. PyTorch's compiler and Triton call the first one; the second one makes an object,
# which takes longer than the launches of a block.
_current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _stream_by_object)


class DeviceRows:
    """Appends to a native cache on a device, and reads from it."""

    def __init__(self, native: _pmkvq.HfCache, device: torch.device, num_kv_heads: int, head_dim: int, kv_dtype: str):
        self.device = device
        self._native = native
        self._kv_heads, self._head_dim = num_kv_heads, head_dim
        self._page_type, self._rest_type = _PAGE_TYPES[kv_dtype], _REST_TYPES[kv_dtype]
        self._scales: dict[int, tuple[torch.Tensor, torch.Tensor] | None] = {}
        # Whether append_token can be called.
        self.takes_tokens = not (native.rotates_keys or native.rotates_values)
        self._index = int(device.index)

    def of(self, native: _pmkvq.HfCache) -> DeviceRows:
        """The same for a copy of the cache."""
        kv_dtype = "f16" if self._rest_type == torch.float16 else "bf16"
        return DeviceRows(native, self.device, self._kv_heads, self._head_dim, kv_dtype)

    def append(
        self,
        layer: int,
        query: torch.Tensor | None,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor | None,
        factor: float,
        skip: list[int],
    ) -> bool:
        """query [B, H, T, D], keys and values [B, Hkv, T, D]; out [B, T, H, D] float32."""
        scales = self._scales_of(layer)
        q = None
        if query is not None:
            q = self._rows_of(query, None if scales is None else scales[0])
            if factor != 1.0:
                q.mul_(factor)
        k = self._rows_of(keys, None if scales is None else scales[1])
        v = self._rows_of(values, None)
        return self._native.append_on_device(
            layer,
            q=0 if q is None else q.data_ptr(),
            k=k.data_ptr(),
            v=v.data_ptr(),
            out=0 if out is None else out.data_ptr(),
            num_tokens=int(keys.shape[2]),
            skip=skip,
            stream=self._stream(),
        )

    def append_token(
        self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, factor: float
    ) -> torch.Tensor | None:
        """One token: query [B, H, 1, D], keys and values [B, Hkv, 1, D] -> [B, 1, H, D] in the type of the query. None:
        the budget is spent."""
        batch, heads, _, width = query.shape
        dtype = query.dtype
        if keys.dtype != dtype or values.dtype != dtype:
            keys, values = keys.to(dtype), values.to(dtype)
        # With one token these are [B, heads, D] in memory, as models make them.
        if not (query.is_contiguous() and keys.is_contiguous() and values.is_contiguous()):
            query, keys, values = query.contiguous(), keys.contiguous(), values.contiguous()
        scales = self._scales_of(layer)
        out = query.new_empty((batch, 1, heads, width))
        has_room = self._native.append_token(
            layer,
            query.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            out.data_ptr(),
            dtype.itemsize * 8,
            dtype == torch.bfloat16,
            factor,
            0 if scales is None else scales[0].data_ptr(),
            0 if scales is None else scales[1].data_ptr(),
            self._stream(),
        )
        return out if has_room else None

    def read(self, layer: int, row: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The `count` tokens that a row has, keys and values [count, Hkv, D] float32."""
        native = self._native
        pieces = native.sink_tokens // PAGE_TOKENS * PAGE_TOKENS
        rest = native.sink_tokens % PAGE_TOKENS
        in_rest = min(max(count - pieces, 0), rest)
        in_pages = count - in_rest
        num_pages = -(-in_pages // PAGE_TOKENS)
        shape = (2, self._kv_heads, num_pages * PAGE_TOKENS, self._head_dim)
        pages = torch.empty(shape, dtype=self._page_type, device=self.device)
        ends = torch.empty((2, self._kv_heads, rest, self._head_dim), dtype=self._rest_type, device=self.device)
        freed = 0
        if count > 0:
            freed = native.read_on_device(
                layer,
                row,
                k_pages=pages[0].data_ptr(),
                v_pages=pages[1].data_ptr(),
                k_rest=ends[0].data_ptr(),
                v_rest=ends[1].data_ptr(),
                stream=self._stream(),
            )
        pages, ends = pages[:, :, :in_pages].float(), ends[:, :, :in_rest].float()
        tokens = torch.cat([pages[:, :, :pieces], ends, pages[:, :, pieces:]], dim=2)
        tokens[:, :, native.sink_tokens : native.sink_tokens + freed] = 0
        keys, values = tokens[0].transpose(0, 1), tokens[1].transpose(0, 1)
        if native.rotates_keys:
            keys = keys @ hadamard(self._head_dim, self.device)
        if native.rotates_values:
            values = values @ hadamard(self._head_dim, self.device)
        scales = self._scales_of(layer)
        return keys if scales is None else keys / scales[1], values

    def _rows_of(self, heads: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
        """[B, heads, T, D] -> [B, T, heads, D] float32 in memory of its own, which the kernels change."""
        given = heads.transpose(1, 2)
        rows = torch.empty(given.shape, dtype=torch.float32, device=self.device)
        return rows.copy_(given) if factors is None else torch.mul(given, factors, out=rows)

    def _scales_of(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Factors of queries [H, D] and of keys [Hkv, D]."""
        if layer not in self._scales:
            scales = self._native.key_scales(layer)
            pairs = self._head_dim // 2
            # A factor is that of dims i and i + D / 2.
            self._scales[layer] = scales and tuple(  # type: ignore[assignment]
                torch.tensor(factors, dtype=torch.float32, device=self.device).view(-1, pairs).repeat(1, 2)
                for factors in scales
            )
        return self._scales[layer]

    def _stream(self) -> int:
        return _current_stream(self._index)


def attend_to_prompt(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, factor: float, skip: list[int], out: torch.Tensor
) -> None:
    """Causal attention of whole prompts, query [B, H, T, D], keys and values [B, Hkv, T, D] -> out [B, T, H, D], whose
    first skip[b] places are left alone. By PyTorch's kernels, which take no memory of T x T."""
    scale = factor / query.shape[-1] ** 0.5
    repeats = query.shape[1] // keys.shape[1]
    # Kernels for floats of 16 bits take fewer KV heads than query heads. For float32 there would be none left but one
    # that takes memory of T x T.
    groups = repeats > 1 and query.dtype in (torch.float16, torch.bfloat16)
    rows = [(slice(None), 0)] if not any(skip) else [(slice(row, row + 1), first) for row, first in enumerate(skip)]
    for row, first in rows:
        if first == query.shape[2]:
            continue
        k, v = keys[row, :, first:], values[row, :, first:]
        if repeats > 1 and not groups:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        attended = torch.nn.functional.scaled_dot_product_attention(
            query[row, :, first:], k, v, is_causal=True, scale=scale, enable_gqa=groups
        )
        out[row, first:] = attended.transpose(1, 2)


def hadamard(size: int, device: torch.device) -> torch.Tensor:
    """The normalised Walsh-Hadamard matrix [size, size] of a power of two."""
    matrix = torch.ones((1, 1), dtype=torch.float32, device=device)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return matrix / size**0.5
