"""Why logits with PackedCache are not the engine's bits: torch's linear layers round differently. With the engine's keys
and values in the cache they are the engine's to float rounding, at every width."""
from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CACHE, KINDS, NUM_LAYERS, VOCAB, in_engine, random_ids, tiny

import pmkvq
from pmkvq import methods
from pmkvq.hf import PackedCache

PROMPT = 512  # One chunk, whose keys and values do not depend on the cache.
Recorded = dict[int, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    """What the cache method "record" was given last: by block, keys and values [1, Hkv, T, D]."""
    seen: Recorded = {}

    @methods.register
    class Record(methods.CacheMethod):
        name = "record"

        def on_append(self, layer: int, tokens: methods.AppendedTokens, block: methods.Block, state: object) -> None:
            if tokens.first == 0:
                new = slice(0, tokens.last)
                keys, values = (torch.tensor(np.array(rows[new])) for rows in (block.keys, block.values))
                seen[layer] = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]

        def block_bytes(self, layer: int, num_tokens: int) -> int:
            return 2 * self.context.float_bytes(num_tokens)

    yield seen
    methods.unregister("record")


def logprobs_of(completion: pmkvq.Completion) -> torch.Tensor:
    """[tokens, V] of a completion with all of them."""
    rows = torch.full((len(completion.token_ids), VOCAB), float("nan"))
    for index, token in enumerate(completion.logprobs):
        for token_id, logprob in token.top:
            rows[index, token_id] = logprob
    return rows


def next_logprobs(model: Any, cache: PackedCache, token: int) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([[token]]), **{CACHE: cache}).logits[0, -1], dim=-1)


@pytest.mark.parametrize("nbits", [16, 8, 4, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_s_keys_give_the_engine_s_logits(
    tmp_path: pathlib.Path, recorded: Recorded, kind: str, nbits: int
) -> None:
    model = tiny(kind)
    recorder = in_engine(model, tmp_path, kv="record", kv_dtype="f32")
    engine = in_engine(model, tmp_path, kv="fp16" if nbits == 16 else f"static-{nbits}")
    own_errors, given_errors, shares = [], [], []
    for seed in range(1, 7):
        ids = random_ids(PROMPT, seed=seed)
        prompt = ids[0].tolist()
        recorder.generate([prompt], pmkvq.SamplingParams(temperature=0, max_tokens=1))
        params = pmkvq.SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, logprobs=VOCAB)
        (drawn,) = engine.generate([prompt], params)
        expected = logprobs_of(drawn)[1]

        own, given = PackedCache(model, nbits=nbits), PackedCache(model, nbits=nbits)
        with torch.no_grad():
            model(ids, **{CACHE: own})
        model.set_attn_implementation("sdpa")  # Stores at once.
        for layer in range(NUM_LAYERS):
            given.update(*recorded[layer], layer)
        model.set_attn_implementation("pmkvq")
        pairs = [pair for layer in range(NUM_LAYERS) for pair in zip(own.read(layer), given.read(layer), strict=True)]
        shares.append(sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs))
        own_errors.append(float((next_logprobs(model, own, drawn.token_ids[0]) - expected).abs().max()))
        given_errors.append(float((next_logprobs(model, given, drawn.token_ids[0]) - expected).abs().max()))
    print(f"{kind} {nbits} bits: {np.median(shares):.2%} of the values differ; error of the next token's log-probabilities "
          f"with torch's keys {np.median(own_errors):.1e} (most {max(own_errors):.1e}), with the engine's "
          f"{np.median(given_errors):.1e} (most {max(given_errors):.1e})")
    assert max(given_errors) < 3e-5
    # A value next to a rounding boundary falls to its other side; it is few of them.
    assert 0 < max(shares) < 0.02
