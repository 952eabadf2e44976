"""Plans are those of `pmkvq calibrate`, evaluations those of `pmkvq eval`."""
from __future__ import annotations

import json
import os
import pathlib
import signal

import numpy as np
import pytest
from conftest import GREEDY, MODEL, PLAN, PROBLEM, Program

import pmkvq
from pmkvq import LLM, Plan

DATASET = MODEL / "calibration.jsonl"


def test_a_plan_is_that_of_the_program(program: Program, model: pmkvq.Model, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "program.json"
    options = ("--n-samples", "2", "--seq-len", "128", "--effective-len", "512", "--max-len", "2048")
    done = program.call(
        "calibrate", "--model", str(MODEL), "--dataset", str(DATASET), "--memory-budget", "3MiB",
        "--plan", str(path), *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls: list[tuple[str, int, int]] = []
    plan = pmkvq.calibrate(
        model, DATASET, memory_budget="3MiB", max_len=2048, n_samples=2, seq_len=128, effective_len=512,
        progress=lambda task, done, total: calls.append((task, done, total)),
    )  # fmt: skip
    saved = tmp_path / "package.json"
    plan.save(saved)
    assert json.loads(saved.read_text()) == json.loads(path.read_text())
    assert saved.with_suffix(".safetensors").read_bytes() == path.with_suffix(".safetensors").read_bytes()
    assert {done for _, done, total in calls if done == total} == {2}

    assert plan.k_bits.shape == plan.v_bits.shape == plan.budget_bytes.shape == (model.num_layers,)
    assert plan.k_sensitivity.shape == plan.v_sensitivity.shape == (4, model.num_layers)
    assert plan.budget_bytes.sum() <= 3 * 2**20 == plan.memory_budget_bytes
    assert set(plan.k_bits) <= {4, 2} and plan.max_len == 2048 and plan.model_identity == model.identity
    assert len(plan.key_scales) == model.num_layers and plan.key_scales[0].dtype == np.float32
    again = Plan.load(path)
    assert all(np.array_equal(a, b) for a, b in zip(again.key_scales, plan.key_scales, strict=True))

    of_plan, of_file = (LLM(model, kv="pm-kvq", plan=one, max_len=2048) for one in (plan, path))
    messages = [{"role": "user", "content": PROBLEM}]
    assert of_plan.chat(messages, GREEDY)[0].token_ids == of_file.chat(messages, GREEDY)[0].token_ids
    assert of_plan.kv_stats().budget_bytes == plan.budget_bytes.sum()


def test_a_plan_without_key_scales(model: pmkvq.Model) -> None:
    plan = pmkvq.calibrate(
        model, DATASET, memory_budget=4 * 2**20, max_len=2048, n_samples=1, seq_len=64, key_scales=False,
        fbit_choices=(8, 4), separate_kv=True,
    )  # fmt: skip
    assert plan.key_scales == [] and plan.alpha.shape == (0,)
    assert set(plan.k_bits) | set(plan.v_bits) <= {8, 4}


def test_an_impossible_budget(model: pmkvq.Model) -> None:
    with pytest.raises(pmkvq.InvalidInput, match="budget"):
        pmkvq.calibrate(model, DATASET, memory_budget="1KiB", max_len=2048, n_samples=1, seq_len=64)


def test_few_samples_are_a_warning(model: pmkvq.Model, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text('{"input_ids": [5, 6, 7, 8, 9, 10, 11, 12]}\n')
    with pytest.warns(RuntimeWarning, match="1"):
        pmkvq.calibrate(model, path, memory_budget="4MiB", max_len=2048, n_samples=3, seq_len=8)


def test_what_a_callback_raises_ends_it(model: pmkvq.Model) -> None:
    def fail(task: str, done: int, total: int) -> None:
        raise LookupError(task)

    with pytest.raises(LookupError):
        pmkvq.calibrate(
            model, DATASET, memory_budget="3MiB", max_len=2048, n_samples=2, seq_len=64, progress=fail
        )


def test_ctrl_c_and_on(model: pmkvq.Model, tmp_path: pathlib.Path) -> None:
    def interrupt(task: str, done: int, total: int) -> None:
        if done > 0:
            os.kill(os.getpid(), signal.SIGINT)

    def run(out: pathlib.Path | None, progress: object) -> Plan:
        return pmkvq.calibrate(
            model, DATASET, memory_budget="3MiB", max_len=2048, n_samples=3, seq_len=128, out=out,
            progress=progress,  # type: ignore[arg-type]
        )  # fmt: skip

    path = tmp_path / "plan.json"
    with pytest.raises(KeyboardInterrupt):
        run(path, interrupt)
    assert not path.exists() and list(tmp_path.glob("plan.*.partial.json"))
    found = run(path, None)
    assert np.array_equal(found.k_sensitivity, run(None, None).k_sensitivity)
    assert path.exists() and not list(tmp_path.glob("plan.*.partial.json"))


def test_an_evaluation_is_that_of_the_program(program: Program, model: pmkvq.Model, tmp_path: pathlib.Path) -> None:
    options = ("--per-cell", "1", "--max-level", "1", "--max-len", "2048")
    done = program.call(
        "eval", "--model", str(MODEL), "--kv", "pm-kvq", "--plan", str(PLAN), "--kv-budget", "4.75MiB",
        "--out", str(tmp_path / "program"), *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen: list[str] = []
    report = pmkvq.evaluate(
        model, kv="pm-kvq", plan=PLAN, kv_budget="4.75MiB", per_cell=1, max_level=1, max_len=2048,
        on_response=lambda response: seen.append(response.id),
    )  # fmt: skip
    summary = json.loads((tmp_path / "program/summary.json").read_text())
    assert [one.id for one in report.responses] == summary["columns"]["id"]
    assert [one.correct for one in report.responses] == summary["columns"]["correct"]
    assert [one.output_tokens for one in report.responses] == summary["columns"]["output_tokens"]
    assert report.summary.num_correct == summary["correct"] > 0
    assert report.summary.pass_at_1 == summary["pass_at_1"]
    assert list(report.summary.interval) == summary["interval"]
    assert sorted(seen) == sorted(summary["columns"]["id"])
    # A run of the program is taken up: nothing is missing.
    resumed = pmkvq.evaluate(
        model, kv="pm-kvq", plan=PLAN, kv_budget="4.75MiB", per_cell=1, max_level=1, max_len=2048,
        out=tmp_path / "program",
    )  # fmt: skip
    assert [one.text for one in resumed.responses] == [one.text for one in report.responses]


def test_a_run_in_a_folder_wants_a_saved_plan(model: pmkvq.Model, tmp_path: pathlib.Path) -> None:
    plan = pmkvq.calibrate(model, DATASET, memory_budget="4MiB", max_len=2048, n_samples=1, seq_len=64)

    def run() -> pmkvq.Report:
        return pmkvq.evaluate(
            model, kv="pm-kvq", plan=plan, max_len=2048, per_cell=1, max_level=1, end=1, max_tokens=5,
            out=tmp_path / "run",
        )  # fmt: skip

    with pytest.raises(pmkvq.InvalidInput, match="plan"):
        run()
    plan.save(tmp_path / "plan.json")
    (response,) = run().responses
    assert response.output_tokens == 5 and response.finish_reason == "length" and not response.correct


def test_wrong_benchmarks(model: pmkvq.Model) -> None:
    with pytest.raises(pmkvq.InvalidInput, match="benchmark"):
        pmkvq.evaluate(model, "nothing")


def test_judge() -> None:
    good = pmkvq.judge("So it is \\boxed{0.5}.", "1/2")
    assert good.correct and good.extracted == "0.5"
    assert not pmkvq.judge("So it is \\boxed{0.51}.", "1/2").correct
    assert pmkvq.judge("no answer", "1/2").extracted == ""
