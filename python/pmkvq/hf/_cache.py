"""A transformers Cache whose keys and values lie in packed pages."""
from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from transformers import Cache, PretrainedConfig, PreTrainedModel, StoppingCriteria
from transformers.cache_utils import CacheLayerMixin

from .. import _pmkvq
from .._arguments import bytes_of, threads_of
from .._errors import InvalidInput, KvBudgetExhausted, RequestFailed, Unsupported
from .._plan import Plan
from ._attention import IMPLEMENTATION, PendingKeys
from ._device import DeviceRows, attend_to_prompt, check_device
from ._options import blocks_of, folder_of, method_of, window_of

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class CacheStats:
    """Bytes of all rows and blocks."""

    bytes: int  # Pages and sinks as allocated now, metadata included; of rows that share pages, each counts them.
    peak_bytes: int  # The most since the cache was made or reset, transient states included.
    budget_bytes: int  # The most that one row may take.
    arena_bytes: int  # Address space reserved for all rows; pages take memory when they are used.
    scratch_bytes: int  # Working memory beside the pages.
    pages: dict[int, int]  # K and V pages of 128 tokens, by width in bits.
    halved_pages: int  # Pages that were brought to half their width.


class _Shared:
    """What the layers of a cache have in common. Layers do not know their cache, so that both go
    as soon as the last reference to the cache does."""

    def __init__(
        self,
        native: _pmkvq.HfCache,
        config: PretrainedConfig,
        windows: list[int],
        heads: tuple[int, int, int],
        kv_dtype: str,
    ):
        self.native = native
        self.config = config
        self.kv_dtype = kv_dtype
        self.device: torch.device | None = None  # Of the batch, where there is one.
        self.on_device: DeviceRows | None = None  # Where the device is no CPU.
        self.windows = windows  # Of each block; 0: none.
        self.num_heads, self.num_kv_heads, self.head_dim = heads
        self.layers: list[_Length] = [_Length() for _ in windows]
        # The last padding masks, of blocks with and without a window, and what was read from each for
        # (tokens before, new tokens).
        self.masks: list[tuple[torch.Tensor, int, int, list[int]]] = []
        # Keys like which the last ones were checked: shape, type, device.
        self.checked: tuple[torch.Size, torch.dtype, torch.device] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        heads = (self.num_heads, self.num_kv_heads, self.head_dim)
        copied = _Shared(self.native.copy(), self.config, self.windows, heads, self.kv_dtype)
        copied.device = self.device
        copied.on_device = None if self.on_device is None else self.on_device.of(copied.native)
        copied.layers = [_Length(length.seen, list(length.stored)) for length in self.layers]
        memo[id(self)] = copied
        return copied

    def open(self, batch: int, device: torch.device) -> None:
        self.native.open(batch, str(device))
        self.layers = [_Length(0, [0] * batch) for _ in self.layers]
        self.device, self.on_device = device, None
        if device.type != "cpu":
            self.on_device = DeviceRows(self.native, device, self.num_kv_heads, self.head_dim, self.kv_dtype)

    def begin_forward(self, tokens: Sequence[int]) -> None:
        """Before the first block stores tokens[b] of row b."""
        first, others = self.layers[0], self.layers[1:]
        if any(length.seen != first.seen or length.stored != first.stored for length in others):
            self._roll_back()
        if not self.native.has_room(tokens):
            raise KvBudgetExhausted(
                f"[PackedCache] the KV budget of {self.native.stats().budget_bytes} bytes a row is spent at "
                f"{max(first.stored)} tokens, expected room for {max(tokens)} more; give a larger kv_budget or "
                "max_len, or stop before with stopping_criteria=[pmkvq.hf.BudgetStop(cache)]"
            )

    def _roll_back(self) -> None:
        """A Forward ended before all blocks had its tokens."""
        seen = min(length.seen for length in self.layers)
        for layer, length in enumerate(self.layers):
            self.truncate(layer, length.seen - seen)
        raise RequestFailed(
            f"[PackedCache] the last forward pass ended early; its tokens were dropped, and {seen} are left: call again"
        )

    def truncate(self, layer: int, num_tokens: int) -> None:
        """Drops the last `num_tokens` places of a block."""
        length = self.layers[layer]
        num_tokens = min(num_tokens, length.seen)
        # Padding comes first, so it goes last.
        after = [max(0, stored - num_tokens) for stored in length.stored]
        for row, count in enumerate(after):
            if not self.native.can_truncate(layer, row, count):
                raise Unsupported(
                    f"[PackedCache] block {layer} cannot be cut to {count} tokens: its sliding window of "
                    f"{self.windows[layer]} has moved on; begin anew with reset()"
                )
        for row, count in enumerate(after):
            self.native.truncate(layer, row, count)
        self.layers[layer] = _Length(length.seen - num_tokens, after)

    def padding_of(self, mask: torch.Tensor | None, before: int, new: int, batch: int) -> list[int]:
        """Places of left padding of each row, by the mask [B, before + new] of a Forward."""
        if mask is None:
            return [0] * batch
        for known, known_before, known_new, padding in self.masks:
            if known is mask and (known_before, known_new) == (before, new):
                return padding
        if mask.dim() != 2 or tuple(mask.shape) != (batch, before + new):
            raise Unsupported(
                f"[PackedCache] found an attention mask {list(mask.shape)}, expected padding [{batch}, "
                f"{before + new}]; "
                'other masks want model.set_attn_implementation("sdpa")'
            )
        is_token = mask.bool()
        # In one copy from the device, which waits for it.
        counts = is_token.sum(dim=1)
        ends = is_token.flip(1).long().cumprod(dim=1).sum(dim=1)  # Tokens behind the last place of padding.
        counted: list[list[int]] = torch.stack([counts, ends]).tolist()
        if counted[0] != counted[1]:
            raise Unsupported(
                "[PackedCache] found padding behind tokens, expected it before them: tokenizer.padding_side = \"left\""
            )
        padding = [before + new - count for count in counted[0]]
        self.masks = [*self.masks[-1:], (mask, before, new, padding)]
        return padding


@dataclass
class _Length:
    """Of one block."""

    seen: int = 0  # Places, padding included: what transformers counts.
    stored: list[int] = None  # type: ignore[assignment]  # Tokens of each row.

    def __post_init__(self) -> None:
        if self.stored is None:
            self.stored = []


class PackedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One block of a PackedCache."""

    is_sliding = False
    is_compileable = False
    supports_early_init = False

    def __init__(self, shared: _Shared, index: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_croppable = shared.windows[index] == 0
        self._shared = shared
        self._index = index
        self._pending = 0  # New tokens between update and attend.

    @property
    def _length(self) -> _Length:
        return self._shared.layers[self._index]

    @property
    def batch_size(self) -> int:
        return self._shared.native.batch_size or -1

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        batch = int(key_states.shape[0])
        if self._shared.native.batch_size == 0:
            self._shared.open(batch, key_states.device)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes new keys and values [B, Hkv, T, D].

        Where the model's attention is "pmkvq", they are stored when it attends, and come back as
        PendingKeys. Else all keys and values come back, [B, Hkv, N, D] in the type of the new ones.
        """
        shared = self._shared
        if self._pending or not self.is_initialized or not self._are_as_checked(key_states, value_states):
            self._check(key_states, value_states)
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            batch = int(key_states.shape[0])
            if batch != shared.native.batch_size:
                raise InvalidInput(
                    f"[PackedCache] found a batch of {batch}, expected {shared.native.batch_size} as before; reset() "
                    "begins another one"
                )
            self._settle()
            shared.checked = (key_states.shape, key_states.dtype, key_states.device)
        if shared.config._attn_implementation == IMPLEMENTATION:
            new = key_states.shape[2]
            shared.layers[self._index].seen += new
            self._pending = new
            return PendingKeys.of(key_states, self), value_states
        return self._store_and_read(key_states, value_states)

    def _are_as_checked(self, keys: torch.Tensor, values: torch.Tensor) -> bool:
        """Whether _check has seen such ones. Each block of each step asks."""
        known = self._shared.checked
        if known is None:
            return False
        shape, dtype, device = known
        return (
            keys.shape == shape
            and values.shape == shape
            and keys.dtype == dtype
            and values.dtype == dtype
            and keys.device == device
            and values.device == device
            and not (keys.requires_grad or values.requires_grad)
        )

    def _check(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        shared = self._shared
        for name, tensor in (("keys", keys), ("values", values)):
            if shared.device is None:
                check_device(tensor.device, name)  # Asks the driver, which takes longer than a block's step.
            elif tensor.device != shared.device:
                raise Unsupported(
                    f"[PackedCache] found {name} on {tensor.device} in block {self._index}, expected {shared.device} as "
                    "before: all blocks on one device"
                )
            if tensor.dtype not in _FLOATS:
                raise Unsupported(
                    f"[PackedCache] found {name} of {tensor.dtype}, expected float32, float16 or bfloat16"
                )
            if tensor.requires_grad:
                raise Unsupported(
                    f"[PackedCache] found {name} with a gradient, expected none: with torch.no_grad(): ..."
                )
            found = (tensor.shape[1], tensor.shape[3]) if tensor.dim() == 4 else tuple(tensor.shape)
            if found != (shared.num_kv_heads, shared.head_dim):
                raise Unsupported(
                    f"[PackedCache] found {name} {list(tensor.shape)} in block {self._index}, expected "
                    f"[batch, {shared.num_kv_heads}, tokens, {shared.head_dim}] by the model's config"
                )

    def _settle(self) -> None:
        """Keys that were handed out and never attended are not stored."""
        if self._pending:
            self._drop_pending()
            raise RequestFailed(
                f"[PackedCache] block {self._index} did not attend to its last {IMPLEMENTATION} keys, so they are not "
                "stored: call again"
            )

    def _drop_pending(self) -> None:
        self._length.seen -= self._pending
        self._pending = 0

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        factor: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """Attention of the new tokens, which are stored. -> [B, T, H, D], float32 or of the query's type."""
        shared, length = self._shared, self._length
        batch, _, new, _ = keys.shape
        before = length.seen - new
        self._pending = 0
        length.seen = before
        if tuple(query.shape) != (batch, shared.num_heads, new, shared.head_dim):
            raise Unsupported(
                f"[PackedCache] found queries {list(query.shape)} in block {self._index}, expected "
                f"[{batch}, {shared.num_heads}, {new}, {shared.head_dim}] by the model's config"
            )
        if sliding_window is not None and sliding_window != shared.windows[self._index]:
            if shared.windows[self._index] != 0 or before + new > sliding_window:
                raise Unsupported(
                    f"[PackedCache] found a sliding window of {sliding_window} in block {self._index}, expected "
                    f"{shared.windows[self._index] or 'none'} by the model's config; "
                    'model.set_attn_implementation("sdpa") hands back tensors'
                )
        padding = shared.padding_of(mask, before, new, batch)
        if length.stored != [max(0, before - places) for places in padding]:
            raise Unsupported(
                f"[PackedCache] the attention mask hides other tokens than before: {length.stored} tokens of {before} "
                f"places are stored, expected {[max(0, before - places) for places in padding]}; pass the whole mask"
            )
        device = shared.on_device
        skip = [min(new, max(0, places - before)) for places in padding]
        if device is not None and new == 1 and device.takes_tokens and not any(skip):
            return self._store_token(device, query, keys, values, factor)
        shape = (batch, new, shared.num_heads, shared.head_dim)
        is_prompt = device is not None and self._is_whole_prompt(before, new)
        out = torch.zeros if any(skip) else torch.empty
        result = out(shape, dtype=query.dtype if is_prompt else torch.float32, device=shared.device)
        tokens = [new - places for places in skip]
        if is_prompt:
            self._store(tokens, skip, None, keys, values, None, 1.0)
            attend_to_prompt(query, keys, values, factor, skip, result)
        else:
            self._store(tokens, skip, query, keys, values, result, factor)
        return result

    def _is_whole_prompt(self, before: int, new: int) -> bool:
        """A prompt from its first token on, all of which its tokens see: nothing of it is packed yet."""
        window = self._shared.windows[self._index]
        return before == 0 and new > 1 and (window == 0 or new <= window)

    def _store_token(
        self, device: DeviceRows, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, factor: float
    ) -> torch.Tensor:
        """One token of each row."""
        length = self._length
        if self._index == 0:
            self._shared.begin_forward([1] * len(length.stored))
        out = device.append_token(self._index, query, keys, values, factor)
        if out is None:
            self._raise_exhausted()
        length.seen += 1
        length.stored = [count + 1 for count in length.stored]
        return out

    def _store(
        self,
        tokens: list[int],
        skip: list[int],
        query: torch.Tensor | None,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor | None,
        factor: float,
    ) -> None:
        shared = self._shared
        if self._index == 0:
            shared.begin_forward(tokens)
        length = self._length
        skip = skip if any(skip) else []
        if shared.on_device is not None:
            has_room = shared.on_device.append(self._index, query, keys, values, out, factor, skip)
        else:
            rows = None if query is None else _rows_of(query)
            has_room = shared.native.append(self._index, rows, _rows_of(keys), _rows_of(values), out, factor, skip)
        if not has_room:
            self._raise_exhausted()
        length.seen += int(keys.shape[2])
        length.stored = [before + more for before, more in zip(length.stored, tokens, strict=True)]

    def _raise_exhausted(self) -> NoReturn:
        raise KvBudgetExhausted(f"[PackedCache] the KV budget of block {self._index} is spent; reset() begins anew")

    def _store_and_read(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, new = int(keys.shape[0]), int(keys.shape[2])
        before = self._length.seen
        # New tokens are read as they were given. One token may close or halve pages, which it then
        # reads at their new widths; a prompt's chunks may free pages that its first tokens attend to.
        reads_first = new > 1
        old = self._read(before, before + new) if reads_first else None
        self._store([new] * batch, [0] * batch, None, keys, values, None, 1.0)
        all_keys, all_values = old or self._read(before + new, before + new)
        result = []
        for everything, given in ((all_keys, keys), (all_values, values)):
            everything[:, before:] = given.transpose(1, 2)
            result.append(everything.to(given.dtype).transpose(1, 2))
        return result[0], result[1]

    def _read(self, seen: int, places: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, places, Hkv, D] float32 of `seen` places; zeros in padding and behind them."""
        shared = self._shared
        shape = (shared.native.batch_size, places, shared.num_kv_heads, shared.head_dim)
        keys, values = torch.zeros((2, *shape), dtype=torch.float32, device=shared.device).unbind()
        for row, stored in enumerate(self._length.stored):
            k, v = keys[row, seen - stored : seen], values[row, seen - stored : seen]
            if shared.on_device is None:
                shared.native.read(self._index, row, k, v)
                continue
            for to, tokens in zip((k, v), shared.on_device.read(self._index, row, stored), strict=True):
                to.copy_(tokens)
        return keys, values

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values as they read now, [B, Hkv, N, D] float32; zeros in padding."""
        keys, values = self._read(self._length.seen, self._length.seen)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def get_seq_length(self) -> int:
        return self._length.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._length.seen + int(query_length), 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def reset(self) -> None:
        if not self.is_initialized:
            return
        self._drop_pending()
        self._shared.truncate(self._index, self._length.seen)

    def crop(self, tokens_to_remove: int) -> None:
        """Drops that many tokens where it is negative; keeps that many where it is positive."""
        if not self.is_initialized:
            return
        self._drop_pending()
        seen = self._length.seen
        removed = -tokens_to_remove if tokens_to_remove <= 0 else max(0, seen - tokens_to_remove)
        self._shared.truncate(self._index, removed)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if repeats < 1:
            raise InvalidInput(f"[PackedCache] found {repeats} repeats, expected 1 or more")
        batch = len(self._length.stored)
        self._select([row for row in range(batch) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        self._select([int(row) for row in indices.tolist()])

    def _select(self, rows: list[int]) -> None:
        if not self.is_initialized:
            return
        batch = len(self._length.stored)
        rows = [row + batch if row < 0 else row for row in rows]
        if not rows or not all(0 <= row < batch for row in rows):
            raise InvalidInput(f"[PackedCache] found rows {rows}, expected one or more from 0 to {batch - 1}")
        self._shared.native.select(self._index, rows)
        length = self._length
        self._shared.layers[self._index] = _Length(length.seen, [length.stored[row] for row in rows])

    def offload(self) -> None:
        """Pages are in the host's memory already."""

    def prefetch(self) -> None:
        """As offload."""


def _rows_of(heads: torch.Tensor) -> torch.Tensor:
    """[B, heads, T, D] -> [B, T, heads, D] float32, without a copy where memory is so already."""
    return heads.transpose(1, 2).to(torch.float32).contiguous()


class PackedCache(Cache):
    """A KV cache of packed pages for `model.generate(past_key_values=cache)`.

    model: the model, or its config. kv: SPEC of a packed method, as `pmkvq run --kv`: "fp16", "static-8|4|2",
    "pm-kvq" and their keys. kv_budget: what one row of the batch may take, all blocks: bytes, or a text with a
    unit. plan: a plan of pmkvq.calibrate, or its file.
    nbits, residual_length: as of transformers' QuantizedCache: nbits alone is kv="static-NBITS"; with pm-kvq (a
    budget or a plan is given) it is the width below which no page goes. residual_length: the newest tokens kept
    at 16 bits, rounded up to pages of 128.
    max_len: tokens of the longest row, which sizes caches without a budget; 0: the model's positions.
    kv_dtype: of what is not quantised: "f16", "bf16" or "f32". chunk: a prompt is attended and stored in chunks
    of so many tokens. threads: 0: torch.get_num_threads().

    Attention: with model.set_attn_implementation("pmkvq") it reads packed pages, and the cache hands out no
    tensors; left padding takes no place then. With any other implementation update() hands back all keys and
    values dequantised, which costs time and memory of O(N) in each block and step.
    Rows are sequences of one length in places; each has its budget. KvBudgetExhausted is raised before anything
    is stored; BudgetStop ends generate before that. copy.deepcopy makes a cache of the same tokens, for prompts
    that several texts begin with.
    For inference, one forward pass at a time, on the CPU or, where the package was built with CUDA, on one CUDA
    device: that of the first keys. There kv_dtype is "f16" or "bf16", and all memory of the rows is taken at once.
    """

    def __init__(
        self,
        model: PreTrainedModel | PretrainedConfig,
        *,
        kv: str | None = None,
        kv_budget: int | str | None = None,
        plan: Plan | str | os.PathLike[str] | None = None,
        nbits: int | None = None,
        residual_length: int | None = None,
        max_len: int = 0,
        kv_dtype: str = "f16",
        sink_tokens: int | None = None,
        chunk: int = 512,
        threads: int = 0,
    ):
        # Wrappers of a model (torch.compile, adapters) have its config.
        whole: Any = model if isinstance(model, PretrainedConfig) else getattr(model, "config", None)
        if not isinstance(whole, PretrainedConfig):
            raise InvalidInput(
                f"[PackedCache] found {type(model).__name__}, expected a model of transformers, or its config"
            )
        config: PretrainedConfig = whole.get_text_config(decoder=True)
        if plan is not None and not isinstance(plan, Plan):
            plan = Plan.load(plan)
        blocks, windows = blocks_of(config)
        method, floor = method_of(kv, nbits, kv_budget is not None or plan is not None)
        native = _pmkvq.HfCache.make(
            blocks,
            kv=method,
            plan=None if plan is None else plan._native,
            model_folder=folder_of(model),
            kv_budget=bytes_of(kv_budget, "kv_budget"),
            kv_dtype=kv_dtype,
            sink_tokens=-1 if sink_tokens is None else sink_tokens,
            window_tokens=window_of(residual_length),
            floor_bits=floor,
            max_len=max_len or int(getattr(config, "max_position_embeddings", 0) or 4096),
            chunk=chunk,
            threads=threads_of(threads),
        )
        self._shared = _Shared(native, config, windows, blocks[0][:3], kv_dtype)
        self._packed = [PackedLayer(self._shared, index) for index in range(len(blocks))]
        super().__init__(layers=list(self._packed))
        self.method = method

    def fits(self, tokens: int = 1) -> bool:
        """Whether every row has room for so many more tokens."""
        native = self._shared.native
        return native.batch_size == 0 or native.has_room([tokens] * native.batch_size)

    def stats(self) -> CacheStats:
        stats = self._shared.native.stats()
        return CacheStats(
            bytes=stats.bytes,
            peak_bytes=stats.peak_bytes,
            budget_bytes=stats.budget_bytes,
            arena_bytes=stats.arena_bytes,
            scratch_bytes=stats.scratch_bytes,
            pages=stats.pages,
            halved_pages=stats.halved_pages,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all pages now: codes, metadata, sinks, open pages."""
        return self._shared.native.stats().bytes

    def num_tokens(self) -> list[int]:
        """Tokens stored of each row, padding left out where it takes no place."""
        return list(self._shared.layers[0].stored)

    def read(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a block as they read now, [B, Hkv, N, D] float32."""
        return self._packed[layer_idx].read()

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """-1: bytes bound a cache, not tokens."""
        return -1

    def reset(self) -> None:
        """Drops all rows and their memory. The next batch may have another size."""
        self._shared.native.close()
        self._shared.device = self._shared.on_device = None
        self._shared.layers = [_Length() for _ in self._packed]
        self._shared.masks = []
        self._shared.checked = None
        for layer in self._packed:
            layer.is_initialized = False
            layer._pending = 0


class BudgetStop(StoppingCriteria):
    """Ends generate before the cache's budget is spent: model.generate(stopping_criteria=[BudgetStop(cache)])."""

    def __init__(self, cache: PackedCache):
        self._cache = cache

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), not self._cache.fits(1), dtype=torch.bool, device=input_ids.device)
