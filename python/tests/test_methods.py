"""Cache methods in Python: the same texts and bytes as the C++ ones, and errors that say where."""
from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import GREEDY, MODEL, PROBLEM

import pmkvq
from pmkvq import LLM, methods

MESSAGES = [{"role": "user", "content": PROBLEM}]


@pytest.fixture(autouse=True)
def no_methods_are_left() -> Iterator[None]:
    before = {one.name for one in methods.list_methods()}
    yield
    for one in methods.list_methods():
        if one.name not in before:
            assert methods.unregister(one.name)
    assert {one.name for one in methods.list_methods()} == before


class Nearest(methods.CacheMethod):
    """Round to nearest per token, as "rtn" of the C++ library."""

    name = "nearest"
    keys = {
        "bits": methods.Choice(("8", "4", "3", "2"), "4", "width of codes"),
        "group": methods.Integer(1, 256, 0, "channels of one range"),
    }
    bits: str
    group: int

    def size(self) -> int:
        return self.group or min(128, self.context.head_dim)

    def damage(self, rows: methods.Floats) -> methods.Floats:
        groups = rows.reshape(*rows.shape[:-1], -1, self.size())
        return methods.affine(groups, int(self.bits), self.context.float_type).reshape(rows.shape)

    def on_append(self, layer: int, tokens: methods.AppendedTokens, block: methods.Block, state: object) -> None:
        new = slice(tokens.first, tokens.last)
        block.keys[new] = self.damage(block.keys[new])
        block.values[new] = self.damage(block.values[new])

    def block_bytes(self, layer: int, num_tokens: int) -> int:
        values = 2 * num_tokens * self.context.kv_dim
        return methods.affine_bytes(values, self.size(), int(self.bits), self.context.float_type)


class Windowed(methods.CacheMethod):
    """Blocks of 32 tokens, quantised whole when the next one is full: bytes fall at each flush."""

    name = "windowed"

    def on_append(self, layer: int, tokens: methods.AppendedTokens, block: methods.Block, state: object) -> None:
        end = max(0, tokens.last - 32) // 32 * 32
        begin = max(0, tokens.first - 32) // 32 * 32
        if end > begin:
            block.keys[begin:end] = methods.affine(block.keys[begin:end], 2)
            block.values[begin:end] = methods.affine(block.values[begin:end], 2)

    def block_bytes(self, layer: int, num_tokens: int) -> int:
        quantised = max(0, num_tokens - 32) // 32 * 32
        codes = methods.affine_bytes(2 * quantised * self.context.kv_dim, self.context.head_dim, 2)
        return codes + 2 * self.context.float_bytes(num_tokens - quantised)

    def growth(self, layer: int) -> methods.Growth:
        return methods.Growth(1, 32)


def test_a_method_in_python_is_the_one_in_cpp(model: pmkvq.Model) -> None:
    methods.register(Nearest)
    for spec in (":bits=2", ":bits=3+group=64", ""):
        ours, theirs = (LLM(model, kv=name + spec, max_len=700) for name in ("nearest", "rtn"))
        assert ours.kv_stats().budget_bytes == theirs.kv_stats().budget_bytes
        (a,), (b,) = ours.chat(MESSAGES, GREEDY), theirs.chat(MESSAGES, GREEDY)
        assert a.token_ids == b.token_ids and len(a.token_ids) > 50
        assert (a.kv.bytes, a.kv.peak_bytes) == (b.kv.bytes, b.kv.peak_bytes)
    assert LLM(model, kv="nearest:bits=2", max_len=700).chat(MESSAGES, GREEDY)[0].text != a.text


def test_it_appears_in_a_comparison_with_exact_bytes(model: pmkvq.Model, tmp_path: pathlib.Path) -> None:
    methods.register(Nearest)
    options: dict[str, Any] = {
        "kv_budget": "3MiB", "max_len": 1500, "per_cell": 1, "max_level": 1, "end": 3, "against": "rtn:bits=4",
    }  # fmt: skip
    found = pmkvq.compare(model, kv=["nearest:bits=4", "rtn:bits=4"], out=tmp_path / "run", **options)
    baseline, ours, theirs = found.tables[0]
    assert baseline.kv == "fp16" and ours.kv == "nearest:bits=4" and ours.simulated and ours.status == "done"
    assert ours.peak_bytes == theirs.peak_bytes > 0 and ours.solved == theirs.solved
    assert ours.to_against is not None and ours.to_against.only_method == ours.to_against.only_other == 0
    assert ours.mean_output_tokens == theirs.mean_output_tokens
    assert "nearest" in found.text() and "nearest" in found.markdown()

    # Other code under the same name does not go on with these results.
    class Changed(Nearest):
        def damage(self, rows: methods.Floats) -> methods.Floats:
            return rows

    methods.register(Changed)
    with pytest.raises(pmkvq.InvalidInput, match="--kv code"):
        pmkvq.compare(model, kv=["nearest:bits=4"], out=tmp_path / "run", **{**options, "against": None})


def test_bytes_that_fall(model: pmkvq.Model) -> None:
    methods.register(Windowed)
    (answer,) = LLM(model, kv="windowed", max_len=700).chat(MESSAGES, GREEDY)
    blocks, tokens, kv_dim = model.num_layers, answer.kv.num_tokens, 128
    quantised = (tokens - 32) // 32 * 32
    assert answer.kv.bytes == blocks * 2 * (quantised * (kv_dim * 2 // 8 + 4) + (tokens - quantised) * kv_dim * 2)
    assert answer.kv.peak_bytes >= answer.kv.bytes


def test_rows_chunks_and_queries(model: pmkvq.Model) -> None:
    seen: list[tuple[int, int, int]] = []

    class Looks(Nearest):
        name = "looks"

        def on_append(self, layer: int, tokens: methods.AppendedTokens, block: methods.Block, state: object) -> None:
            if layer == 1:
                seen.append((tokens.first, tokens.last, block.num_tokens))
            assert tokens.q.shape == (tokens.count, self.context.num_heads, self.context.head_dim)
            assert tokens.q.dtype == np.float32 and tokens.attention_sums is None and tokens.block_input is None
            assert len(block.keys) == block.num_tokens == tokens.last
            assert block.keys[:].shape == (tokens.last, self.context.num_kv_heads, self.context.head_dim)
            before = block.values[:]
            block.values[tokens.first : tokens.last] = 2 * before[tokens.first :]
            assert np.array_equal(block.values[tokens.first :], 2 * before[tokens.first :])
            assert np.array_equal(block.values[: tokens.first], before[: tokens.first])

    methods.register(Looks)
    llm = LLM(model, kv="looks", max_len=400, chunk=100)
    llm.generate([list(range(5, 255))], pmkvq.SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    assert seen == [(0, 100, 100), (100, 200, 200), (200, 250, 250), (250, 251, 251), (251, 252, 252), (252, 253, 253)]


def test_needs(model: pmkvq.Model) -> None:
    class Attends(Nearest):
        name = "attends"
        attention = True
        block_input = True

        def on_append(self, layer: int, tokens: methods.AppendedTokens, block: methods.Block, state: object) -> None:
            assert tokens.attention_sums is not None and tokens.block_input is not None
            assert tokens.attention_sums.shape == (self.context.num_kv_heads, tokens.last)
            # Each query row of each head spreads a weight of 1.
            assert tokens.attention_sums.sum() == pytest.approx(tokens.count * self.context.num_heads, rel=1e-5)
            assert tokens.block_input.shape == (tokens.count, 256)

    class BeforeRope(Nearest):
        name = "before-rope"
        keys_before_rope = True

        def on_append(self, layer: int, tokens: methods.AppendedTokens, block: methods.Block, state: object) -> None:
            pass

    methods.register(Attends)
    methods.register(BeforeRope)
    params = pmkvq.SamplingParams(temperature=0, max_tokens=20)
    exact = LLM(model, max_len=400).generate(PROBLEM, params)
    for name in ("attends", "before-rope"):
        assert LLM(model, kv=name, max_len=400).generate(PROBLEM, params)[0].token_ids == exact[0].token_ids
    with pytest.raises(pmkvq.InvalidInput, match="one of them"):
        methods.register(type("Both", (Attends,), {"keys_before_rope": True}))


def test_states_belong_to_a_block_of_a_sequence(model: pmkvq.Model) -> None:
    made: list[Counts] = []

    class Counts:
        def __init__(self) -> None:
            self.tokens = 0

        def truncate(self, num_tokens: int) -> None:
            self.tokens = num_tokens

    class Counting(Nearest):
        name = "counting"

        def new_state(self, layer: int) -> Counts:
            made.append(Counts())
            return made[-1]

        def on_append(self, layer: int, tokens: methods.AppendedTokens, block: methods.Block, state: Any) -> None:
            assert state.tokens == tokens.first
            state.tokens = tokens.last

    methods.register(Counting)
    llm = LLM(model, kv="counting", max_len=400)
    done = llm.generate([PROBLEM, "12", PROBLEM], pmkvq.SamplingParams(temperature=0, max_tokens=10))
    assert len(made) == 3 * model.num_layers
    assert sorted({state.tokens for state in made}) == sorted({one.kv.num_tokens for one in done})


@pytest.mark.parametrize("place", ["__init__", "on_append", "block_bytes", "growth", "new_state"])
def test_one_clear_exception(model: pmkvq.Model, place: str) -> None:
    def fail(self: object, *arguments: object, **values: object) -> None:
        raise LookupError("no such thing")

    methods.register(type("Broken", (Nearest,), {"name": "broken", place: fail}))
    with pytest.raises(pmkvq.MethodError) as caught:
        LLM(model, kv="broken", max_len=400).generate("12", pmkvq.SamplingParams(max_tokens=5))
    text = str(caught.value)
    assert text.startswith(f"[method broken] {place}") and text.endswith("LookupError: no such thing") and "\n" not in text
    assert isinstance(caught.value.__cause__, LookupError)
    assert any(frame.name == "fail" for frame in _frames(caught.value.__cause__)), "the method's own line"
    # In a comparison, which computes on other threads, too.
    with pytest.raises(pmkvq.MethodError, match=f"broken.*{place}"):
        pmkvq.compare(model, kv=["broken"], kv_budget="4MiB", max_len=1500, per_cell=1, max_level=1, end=1)


def _frames(error: BaseException) -> Any:
    import traceback

    return traceback.extract_tb(error.__traceback__)


def test_an_engine_lives_on_behind_an_exception(model: pmkvq.Model) -> None:
    wanted = [False]

    class Moody(Nearest):
        name = "moody"

        def on_append(self, layer: int, tokens: methods.AppendedTokens, block: methods.Block, state: object) -> None:
            if wanted[0] and layer == 3:
                raise RuntimeError("now")
            super().on_append(layer, tokens, block, state)

    methods.register(Moody)
    llm = LLM(model, kv="moody", max_len=400)
    params = pmkvq.SamplingParams(temperature=0, max_tokens=20)
    expected = llm.generate(PROBLEM, params)[0].token_ids
    wanted[0] = True
    with pytest.raises(pmkvq.MethodError, match="on_append, block 3, tokens 0 to"):
        llm.generate(PROBLEM, params)
    wanted[0] = False
    assert llm.generate(PROBLEM, params)[0].token_ids == expected


def test_values_that_do_not_fit_end_one_request(model: pmkvq.Model) -> None:
    class Picky(Nearest):
        name = "picky"

        def on_append(self, layer: int, tokens: methods.AppendedTokens, block: methods.Block, state: object) -> None:
            if layer == 2 and tokens.first == 30:
                raise methods.UnfitValues("found 7 at the key of a token, expected 6")

    methods.register(Picky)
    llm = LLM(model, kv="picky", max_len=400)
    long, short = llm.generate([[5] * 25, [6]], pmkvq.SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    assert short.finish_reason == "length"
    assert long.finish_reason == "error" and "found 7 at the key" in long.error and "block 2" in long.error
    with pytest.raises(methods.UnfitValues, match="range"):
        methods.affine(np.array([-60000.0, 60000.0]), 4)


def test_wrong_returns_are_named(model: pmkvq.Model) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"block_bytes": lambda self, layer, n: 1.5}, "1.5"),
        ({"block_bytes": lambda self, layer, n: -1}, "-1"),
        ({"block_bytes": lambda self, layer, n: 1000 - n}, "less than"),
        ({"growth": lambda self, layer: methods.Growth(0, 1)}, "start"),
        ({"new_state": lambda self, layer: 5}, "truncate"),
        ({"on_append": lambda self, layer, tokens, block, state: block.keys.__setitem__(slice(0, 1), np.ones(3))}, "shape"),
        ({"on_append": lambda self, layer, tokens, block, state: block.keys.__setitem__(slice(0, 1), np.full((1, 1, 128), np.nan))}, "finite"),
        ({"on_append": lambda self, layer, tokens, block, state: block.keys[0]}, "range of tokens"),
        ({"on_append": lambda self, layer, tokens, block, state: block.keys[::2]}, "step"),
    ]
    for members, word in cases:
        methods.register(type("Wrong", (Nearest,), {"name": "wrong", **members}))
        with pytest.raises(pmkvq.MethodError) as caught:
            LLM(model, kv="wrong", max_len=400).generate("12", pmkvq.SamplingParams(max_tokens=5))
        assert word in str(caught.value), members


def test_a_block_is_not_kept(model: pmkvq.Model) -> None:
    kept: list[methods.Block] = []

    class Keeps(Nearest):
        name = "keeps"

        def on_append(self, layer: int, tokens: methods.AppendedTokens, block: methods.Block, state: object) -> None:
            kept.append(block)

    methods.register(Keeps)
    LLM(model, kv="keeps", max_len=400).generate("12", pmkvq.SamplingParams(max_tokens=1))
    with pytest.raises(pmkvq.InvalidInput, match="on_append is over"):
        kept[0].keys[0:1]


def test_specs(model: pmkvq.Model) -> None:
    given: list[dict[str, Any]] = []

    class Takes(Nearest):
        name = "takes"
        description = "all kinds of keys"
        keys = {
            "a": methods.Integer(1, 9, 3), "b": methods.Real(0, 1, 0.5), "c": methods.Choice(["x", "y"], "y"),
            "d": methods.Word(), "e": methods.File(),
        }  # fmt: skip

        def __init__(self, context: methods.Context, **values: Any):
            given.append(values)
            if values["a"] == 9:
                raise pmkvq.InvalidInput("[a] found 9, expected less for this model")
            super().__init__(context, bits="4", group=0, **values)

    methods.register(Takes)
    assert methods.MethodInfo("takes", "all kinds of keys", True) in methods.list_methods()
    file = str(MODEL / "config.json")
    for spec, expected in (
        ("takes", {"a": 3, "b": 0.5, "c": "y", "d": False, "e": ""}),
        (f"takes:a=2+b=0.25+c=x+d+e={file}", {"a": 2, "b": 0.25, "c": "x", "d": True, "e": file}),
    ):
        LLM(model, kv=spec, max_len=400)
        assert given[-1] == expected
    for spec, word in (("takes:a=10", "10"), ("takes:z=1", "z"), ("takes:c=w", "w"), ("takes:a=9", "expected less")):
        with pytest.raises(pmkvq.InvalidInput) as caught:
            LLM(model, kv=spec, max_len=400)
        assert word in str(caught.value) and "--kv" in str(caught.value)


def test_wrong_names() -> None:
    for name in ("rtn", "pm-kvq", "Upper", "", "9x", "a b", None):
        with pytest.raises(pmkvq.InvalidInput, match="method"):
            methods.register(type("Named", (Nearest,), {"name": name}))
    with pytest.raises(pmkvq.InvalidInput, match="CacheMethod"):
        methods.register(methods.CacheMethod)
    assert not methods.unregister("nearest") and not methods.unregister("rtn")


def test_an_unknown_method_is_answered_with_those_that_there_are(model: pmkvq.Model) -> None:
    methods.register(Nearest)
    with pytest.raises(pmkvq.InvalidInput, match="nearest"):
        LLM(model, kv="nothing", max_len=400)
    llm = LLM(model, kv="nearest", max_len=400)
    methods.unregister("nearest")
    assert llm.generate("12", pmkvq.SamplingParams(max_tokens=3))[0].token_ids, "it keeps its method"
    with pytest.raises(pmkvq.InvalidInput, match="nearest"):
        LLM(model, kv="nearest", max_len=400)


def test_streams_that_are_dropped_and_threads(model: pmkvq.Model) -> None:
    """An engine that ends in the midst of a prompt, and two that share a method."""
    methods.register(Nearest)
    for _ in range(3):
        llm = LLM(model, kv="nearest", max_len=3000, chunk=64)
        stream = llm.stream([5] * 1500, pmkvq.SamplingParams(temperature=0, max_tokens=5))
        other = llm.stream([6] * 10, pmkvq.SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
        next(other)
        del stream, other, llm
    llms = [LLM(model, kv="nearest", max_len=400) for _ in range(2)]
    texts: dict[int, list[int]] = {}

    def work(index: int) -> None:
        texts[index] = llms[index].generate(PROBLEM, pmkvq.SamplingParams(temperature=0, max_tokens=30))[0].token_ids

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts[0] == texts[1] and texts[0]


def test_affine() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 5, 64)).astype(np.float32)
    for bits in (1, 2, 3, 4, 8):
        damaged = methods.affine(x, bits, "F32")
        low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
        step = (high - low) / (2**bits - 1)
        expected = np.round((x - low) / step) * step + low
        # A value in the middle of two codes may go to either: its error is half a step.
        assert np.abs(damaged - x).max() <= step.max() * 0.5001
        assert np.mean(np.abs(damaged - expected) < 1e-5) > 0.999
        assert all(len(np.unique(row)) <= 2**bits for row in damaged.reshape(-1, 64))
    assert np.array_equal(methods.affine(x[..., ::-1], 4), methods.affine(x, 4)[..., ::-1]), "any strides"
    assert methods.affine_bytes(256, 64, 3) == 4 * (24 + 4) and methods.affine_bytes(0, 64, 3, "F32") == 0
    for call in (lambda: methods.affine(x, 9), lambda: methods.affine_bytes(100, 64, 4), lambda: methods.affine(np.array(1.0), 4)):
        with pytest.raises(pmkvq.InvalidInput):
            call()
