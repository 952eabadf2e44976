"""Comparisons, the steps of calibration, logits and weights: the numbers of the program."""
from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import struct
from typing import Any

import numpy as np
import pytest
from conftest import LONG_PROBLEM, MODEL, PLAN, Program

import pmkvq
from pmkvq import LLM, Comparison

DATASET = MODEL / "calibration.jsonl"
OPTIONS: dict[str, Any] = {"max_len": 1500, "per_cell": 1, "max_level": 1}
COMMAND = ("--max-len", "1500", "--per-cell", "1", "--max-level", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Comparison]:
    """A comparison, and its folder."""
    folder = tmp_path_factory.mktemp("compare") / "run"
    begun: list[tuple[str, int, int, int]] = []
    seen: list[tuple[str, int, str]] = []
    found = pmkvq.compare(
        pmkvq.load_model(MODEL), kv=["pm-kvq", "static-2", "rtn:bits=2"], kv_budget=["2MiB", 3 * 2**20, "64KiB"],
        plan=PLAN, against="static-2", out=folder, on_begin=lambda *one: begun.append(one),
        on_response=lambda kv, budget, response: seen.append((kv, budget, response.id)), **OPTIONS,
    )  # fmt: skip
    run = [row for row in found if row.status == "done"]
    assert sorted((kv, budget) for kv, budget, *_ in begun) == sorted((row.kv, row.budget_bytes) for row in run)
    assert len(set(seen)) == len(seen) == found.num_problems * len(run)
    return folder, found


def test_a_comparison_is_that_of_the_program(
    program: Program, finished: tuple[pathlib.Path, Comparison], tmp_path: pathlib.Path
) -> None:
    folder, found = finished
    # The program finds nothing to do in the folder, and prints the same.
    done = program.call(
        "compare", "--model", str(MODEL), "--kv", "pm-kvq", "--kv", "static-2", "--kv", "rtn:bits=2", "--kv-budget",
        "2MiB,3MiB,64KiB", "--plan", str(PLAN), "--against", "static-2", "--out", str(folder), "--json",
        str(tmp_path / "all.json"), *COMMAND,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert found.text() == str(found) and found.text() in done.stdout
    theirs = json.loads((tmp_path / "all.json").read_text())
    assert theirs["benchmark"] == found.benchmark and theirs["problems"] == found.num_problems > 3
    for table, budget in zip(found.tables, theirs["budgets"], strict=True):
        for row, other in zip(table, budget["methods"], strict=True):
            assert (row.kv, row.status, row.budget_bytes) == (other["kv"], other["status"], other["budget_bytes"])
            if row.status != "done":
                continue
            assert (row.solved, row.share, list(row.interval)) == (other["solved"], other["share"], other["interval"])
            assert row.peak_bytes == other["peak_bytes"] <= (row.budget_bytes or 2**30)
            for pair, values in ((row.to_baseline, other["to_baseline"]), (row.to_against, other["to_against"])):
                assert (pair is None) == (values is None)
                assert pair is None or {**dataclasses.asdict(pair), "interval": list(pair.interval)} == values
            assert [level.solved for level in row.levels] == [level["solved"] for level in other["levels"]]
    assert {row.status for row in found} == {"done", "does_not_fit"}
    assert found.baseline == "fp16" and found.against == "static-2"


def without_speed(found: Comparison) -> list[pmkvq.MethodResult]:
    """Times are rounded where they are written."""
    return [dataclasses.replace(row, tokens_per_second=0) for row in found]


def test_a_comparison_is_read_again(finished: tuple[pathlib.Path, Comparison], tmp_path: pathlib.Path) -> None:
    folder, found = finished
    again = Comparison.load(folder)
    assert without_speed(again) == without_speed(found) and again.against == "static-2"
    page = tmp_path / "page.html"
    again.save_html(page)
    assert "rtn:bits=2" in page.read_text() and found.markdown().count("|") > 30
    with pytest.raises(pmkvq.IoError):
        Comparison.load("/nowhere")


def test_frames(finished: tuple[pathlib.Path, Comparison]) -> None:
    pandas = pytest.importorskip("pandas")
    _, found = finished
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["kv"]) == [row.kv for row in found] and list(frame["solved"]) == [row.solved for row in found]
    assert {"low", "high", "difference_to_baseline", "p_value_to_against"} <= set(frame.columns)


def test_wrong_comparisons(model: pmkvq.Model) -> None:
    for arguments, word in (
        ({"kv": []}, "--kv"),
        ({"kv": ["nothing"]}, "nothing"),
        ({"kv": ["rtn", "rtn"]}, "twice"),
        ({"kv": ["rtn"], "kv_budget": []}, "--kv-budget"),
        ({"kv": ["rtn"], "kv_budget": ["1MiB", 2**20]}, "twice"),
        ({"kv": ["rtn"], "against": "kivi"}, "kivi"),
        ({"kv": ["pm-kvq"], "plan": "/nowhere/plan.json"}, "/nowhere"),
    ):
        with pytest.raises(pmkvq.Error) as caught:
            pmkvq.compare(model, **{"kv_budget": "1MiB", **OPTIONS, **arguments})
        assert word in str(caught.value)


def test_ctrl_c_and_on(model: pmkvq.Model, tmp_path: pathlib.Path) -> None:
    def interrupt(kv: str, budget: int, response: pmkvq.Response) -> None:
        if kv == "static-4":
            os.kill(os.getpid(), signal.SIGINT)

    def run(on_response: Any) -> Comparison:
        return pmkvq.compare(
            model, kv=["static-4"], kv_budget="4MiB", out=tmp_path / "run", on_response=on_response, **OPTIONS
        )

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    begun: list[tuple[str, int]] = []
    found = pmkvq.compare(
        model, kv=["static-4"], kv_budget="4MiB", out=tmp_path / "run",
        on_begin=lambda kv, budget, total, present: begun.append((kv, present)), **OPTIONS,
    )  # fmt: skip
    assert [kv for kv, _ in begun] == ["static-4"] and 1 <= begun[0][1] < found.num_problems
    assert all(row.status == "done" for row in found)


def test_sensitivities_and_allocations_are_those_of_the_program(
    program: Program, model: pmkvq.Model, tmp_path: pathlib.Path
) -> None:
    calls: list[tuple[str, int, int]] = []
    found = pmkvq.sensitivity(
        model, DATASET, n_samples=2, seq_len=96, seed=5, progress=lambda *call: calls.append(call)
    )
    assert calls[-1][1:] == (2, 2) and found.k.shape == found.v.shape == (4, model.num_layers)
    assert found.model_identity == model.identity and found.n_samples == 2 and found.pack == "concat"
    theirs = tmp_path / "theirs.json"
    done = program.call(
        "sensitivity", "--model", str(MODEL), "--dataset", str(DATASET), "--n-samples", "2", "--seq-len", "96", "--seed",
        "5", "--json", str(theirs),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = tmp_path / "ours.json"
    found.save(ours)
    assert ours.read_bytes() == theirs.read_bytes()
    again = pmkvq.Sensitivity.load(theirs)
    assert np.array_equal(again.k, found.k) and again.seed == 5

    for options, command in (
        ({}, ()),
        ({"separate_kv": True, "fbit_choices": (8, 4, 2)}, ("--separate-kv", "--fbit-choices", "8,4,2")),
        ({"n_sink_token": 4, "n_window_token": 256, "kv_dtype": "f32"},
         ("--n-sink-token", "4", "--n-window-token", "256", "--kv-dtype", "f32")),
    ):  # fmt: skip
        done = program.call(
            "allocate", "--model", str(MODEL), "--sensitivity", str(theirs), "--memory-budget", "8MiB", "--max-len", "4096",
            "--json", "-", *command,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        known = json.loads(done.stdout)
        for source in (model, MODEL):
            got = pmkvq.allocate(source, found, memory_budget="8MiB", max_len=4096, **options)  # type: ignore[arg-type]
            assert got.k_bits.tolist() == known.get("k_bits", known.get("bits"))
            assert got.v_bits.tolist() == known.get("v_bits", known.get("bits"))
            assert got.budget_bytes.tolist() == known["budget_bytes"] and got.total_bytes == known["total_bytes"]
            assert got.objective == known["objective"]
    with pytest.raises(pmkvq.InvalidInput, match="budget"):
        pmkvq.allocate(model, found, memory_budget="1KiB", max_len=4096)
    plan = pmkvq.Plan.load(PLAN)
    same = pmkvq.allocate(model, plan, memory_budget=plan.memory_budget_bytes, max_len=plan.max_len)
    assert np.array_equal(same.k_bits, plan.k_bits) and np.array_equal(same.budget_bytes, plan.budget_bytes)


def test_a_sensitivity_is_plain_data(tmp_path: pathlib.Path) -> None:
    k = np.array([[0.0, 0.0], [1, 2], [3, 4], [5, 6]])
    made = pmkvq.Sensitivity(k, 2 * k)
    made.save(tmp_path / "s.json")
    again = pmkvq.Sensitivity.load(tmp_path / "s.json")
    assert np.array_equal(again.k, k) and np.array_equal(again.v, 2 * k)
    pandas = pytest.importorskip("pandas")
    frame = made.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 8
    assert frame[(frame.block == 1) & (frame.bits == 4)].v.item() == 8


def test_logits_are_those_of_the_program(program: Program, model: pmkvq.Model, tmp_path: pathlib.Path) -> None:
    ids = LLM(model, max_len=512).tokenizer.encode(LONG_PROBLEM)
    assert len(ids) > 128
    for options, command in (
        ({}, ()),
        ({"kv": "static-2", "chunk": 64, "kv_dtype": "f16"}, ("--kv", "static-2", "--chunk", "64", "--kv-dtype", "f16")),
    ):
        done = program.call(
            "logits", "--model", str(MODEL), "--prompt-ids", ",".join(map(str, ids)), "--out", str(tmp_path / "l.safetensors"),
            *command,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        data = (tmp_path / "l.safetensors").read_bytes()
        (header,) = struct.unpack("<Q", data[:8])
        theirs = np.frombuffer(data[8 + header :], dtype=np.float32).reshape(len(ids), model.vocab_size)
        ours = pmkvq.logits(model, ids, **options)  # type: ignore[arg-type]
        assert ours.dtype == np.float32 and np.array_equal(ours, theirs)
    handed_on = np.from_dlpack(ours)
    assert np.shares_memory(handed_on, ours), "no copy"
    for wrong in ([], [10**6], [-1]):
        with pytest.raises(pmkvq.InvalidInput):
            pmkvq.logits(model, wrong)


def test_weights_are_views_of_the_file(model: pmkvq.Model) -> None:
    found = pmkvq.weights(model)
    assert found["blocks.0.attn.q"].shape == (256, 256) and found["embedding"].type == "BF16"
    stored: dict[str, tuple[str, bytes]] = {}
    for path in sorted(MODEL.glob("model-*.safetensors")):
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                stored[name] = (entry["dtype"], data[8 + size + begin : 8 + size + end])
    assert len(found) == len(stored)
    for name, theirs in (
        ("embedding", "model.embed_tokens.weight"),
        ("blocks.3.attn.q", "model.layers.3.self_attn.q_proj.weight"),
        ("final_norm", "model.norm.weight"),
    ):
        weight = found[name]
        array = weight.numpy()
        assert weight.type == stored[theirs][0] and array.shape == weight.shape and array.tobytes() == stored[theirs][1]
        assert array.dtype == np.uint16 and not array.flags.writeable
        assert np.shares_memory(array, weight.numpy()), "no copy"
    kept = found["embedding"].numpy()
    del found, weight, array
    assert kept[0, 0] == np.frombuffer(stored["model.embed_tokens.weight"][1], dtype=np.uint16)[0]


def test_weights_in_torch(model: pmkvq.Model) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: ./run test-python installs it")
    weight = pmkvq.weights(model)["blocks.3.mlp.gate"]
    tensor = torch.from_dlpack(weight)
    assert tensor.dtype == torch.bfloat16 and tuple(tensor.shape) == weight.shape
    assert np.array_equal(tensor.view(torch.uint16).numpy(), weight.numpy())


def test_key_scales_are_views_of_the_plan() -> None:
    plan = pmkvq.Plan.load(PLAN)
    scales = plan.key_scales[0]
    assert not scales.flags.writeable and np.shares_memory(scales, plan._native.key_scales[0])
    before = scales.copy()
    del plan
    assert np.array_equal(scales, before)


def test_events_have_a_snapshot_of_the_cache(model: pmkvq.Model) -> None:
    llm = LLM(model, kv="pm-kvq", plan=PLAN, kv_budget="1.75MiB", max_len=2048)
    prompt = [5] * 100
    tokens = 0
    halved = 0
    for event in llm.stream(prompt, pmkvq.SamplingParams(temperature=0, max_tokens=500, ignore_eos=True)):
        if isinstance(event, pmkvq.TokenEvent):
            assert event.kv.num_tokens == len(prompt) + tokens
            assert 0 < event.kv.bytes <= event.kv.budget_bytes == llm.kv_stats().budget_bytes
            assert event.kv.bytes <= event.kv.peak_bytes
            assert (event.kv.pages[16] < sum(event.kv.pages.values())) == (halved > 0)
            last = event.kv
            tokens += 1
        elif isinstance(event, pmkvq.HalvingEvent):
            halved += event.pages
        else:
            assert event.completion.kv.num_tokens == last.num_tokens and event.completion.kv.pages == last.pages
    assert tokens == 500 and halved > 0
