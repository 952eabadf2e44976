"""Errors: their classes, and the texts of the program."""
from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import MODEL, PLAN, PROBLEM, Program

import pmkvq
from pmkvq import LLM, InvalidInput, SamplingParams


def test_classes() -> None:
    assert issubclass(InvalidInput, pmkvq.Error) and issubclass(InvalidInput, ValueError)
    assert issubclass(pmkvq.IoError, pmkvq.Error) and issubclass(pmkvq.IoError, OSError)
    for one in (pmkvq.Unsupported, pmkvq.DeviceError, pmkvq.KvBudgetExhausted, pmkvq.RequestFailed):
        assert issubclass(one, pmkvq.Error)
    assert issubclass(pmkvq.Cancelled, KeyboardInterrupt) and not issubclass(pmkvq.Cancelled, Exception)


def test_a_missing_model_is_an_io_error(model: pmkvq.Model) -> None:
    with pytest.raises(pmkvq.IoError, match="^\\[/nowhere\\] [^\n]*no such folder or file[^\n]*$"):
        LLM("/nowhere")
    with pytest.raises(OSError, match="^\\[/nowhere/plan.json\\] [^\n]*$"):
        LLM(model, plan="/nowhere/plan.json")


def test_a_missing_shard_is_named_as_the_program_does(program: Program, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").symlink_to(MODEL / "config.json")
    (tmp_path / "tokenizer.json").symlink_to(MODEL / "tokenizer.json")
    index = {"weight_map": {"model.norm.weight": "shard.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidInput) as caught:
        LLM(tmp_path)
    assert str(caught.value) == program.error("run", "--model", str(tmp_path), "--prompt", "x")
    assert "shard.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_config_is_named_as_the_program_does(program: Program, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "vocab_size": "x"}')
    with pytest.raises(InvalidInput) as caught:
        LLM(tmp_path)
    assert str(caught.value) == program.error("run", "--model", str(tmp_path), "--prompt", "x")
    assert "vocab_size" in str(caught.value)


def test_another_architecture_is_unsupported(program: Program, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    with pytest.raises((pmkvq.Unsupported, InvalidInput)) as caught:
        LLM(tmp_path)
    assert str(caught.value) == program.error("run", "--model", str(tmp_path), "--prompt", "x")
    assert "Mamba" in str(caught.value)


def test_arguments_of_another_kind_are_named(llm: LLM) -> None:
    """What other libraries take here."""
    options: Any = {"temperature": 0}
    drawing: list[Callable[[], object]] = [
        lambda: llm.generate("x", options),
        lambda: llm.chat([{"role": "user", "content": "x"}], options),
        lambda: llm.stream("x", options),
    ]
    for draw in drawing:
        with pytest.raises(InvalidInput, match="^\\[params\\] found dict, expected SamplingParams"):
            draw()
    text: Any = "What is 3 x 4?"
    with pytest.raises(InvalidInput, match="^\\[messages\\] found a text, expected a list"):
        llm.chat(text)
    path: Any = MODEL
    calls: list[Callable[[], object]] = [
        lambda: pmkvq.compare(path, kv=["pm-kvq"], kv_budget="1MiB"),
        lambda: pmkvq.evaluate(path),
        lambda: pmkvq.calibrate(path, "texts.jsonl", memory_budget="1MiB"),
        lambda: pmkvq.sensitivity(path, "texts.jsonl"),
        lambda: pmkvq.logits(path, [1]),
        lambda: pmkvq.weights(path),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match="^\\[model\\] found [A-Za-z]*Path, expected a loaded model: pmkvq.load_model"):
            call()
    with pytest.raises(InvalidInput, match="found LLM, .* llm.model"):
        pmkvq.weights(llm)  # type: ignore[arg-type]


def test_a_device_that_is_not_there_is_refused_in_one_line(model: pmkvq.Model) -> None:
    with pytest.raises((pmkvq.Unsupported, pmkvq.DeviceError)) as caught:
        LLM(MODEL, device="cuda:7")
    assert "cuda" in str(caught.value) and "\n" not in str(caught.value)
    for device in ("gpu", "cuda:", "auto", ""):
        with pytest.raises(InvalidInput, match="device"):
            LLM(MODEL, device=device)
    assert model.device == "cpu" and LLM(model, device="cpu", max_len=256).model is model
    with pytest.raises(InvalidInput, match="cuda.*'cpu' of the loaded model"):
        LLM(model, device="cuda")


def test_a_small_budget(program: Program, model: pmkvq.Model) -> None:
    with pytest.raises(InvalidInput) as caught:
        LLM(model, kv="pm-kvq", kv_budget=1000)
    assert "--kv-budget" in str(caught.value)
    llm = LLM(model, kv="fp16", kv_budget="1MiB")
    with pytest.raises(InvalidInput) as caught:
        llm.generate([5] * 3000)
    assert "budget" in str(caught.value)
    with pytest.raises(pmkvq.KvBudgetExhausted) as spent:
        llm.score([5] * 100, [6] * 2000)
    assert "1048576" in str(spent.value) or "budget" in str(spent.value)


def test_a_plan_of_another_model(tmp_path: pathlib.Path, model: pmkvq.Model) -> None:
    text = PLAN.read_text()
    other = tmp_path / "plan.json"
    other.write_text(text.replace(model.identity, "0" * len(model.identity)))
    tensors = PLAN.with_suffix(".safetensors")
    if tensors.exists():
        other.with_suffix(".safetensors").write_bytes(tensors.read_bytes())
    with pytest.raises(InvalidInput) as caught:
        LLM(model, kv="pm-kvq", plan=other)
    assert str(other) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"kv": "pm-kvqq"}, "pm-kvqq"),
        ({"kv_budget": "6 potatoes"}, "kv_budget"),
        ({"kv_budget": -5}, "kv_budget"),
        ({"kv_budget": 1.5}, "kv_budget"),
        ({"max_sequences": 0}, "max_sequences"),
        ({"max_len": -1}, "max"),
        ({"plan": "/nowhere/plan.json"}, "/nowhere/plan.json"),
        ({"chat_template": "nothing"}, "chat_template"),
        ({"weights": "q8"}, "weights"),
        ({"kv_dtype": "f64"}, "kv-dtype"),
    ],
)
def test_wrong_arguments_are_named(model: pmkvq.Model, arguments: dict[str, object], word: str) -> None:
    with pytest.raises(pmkvq.Error) as caught:
        LLM(model, **arguments)  # type: ignore[arg-type]
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 1000}, "num_logprobs"),
        ({"stop": "abc"}, "stop"),
        ({"stop_token_ids": [10**6]}, "stop_ids"),
        ({"logit_bias": {10**6: 1.0}}, "logit_bias"),
        ({"min_tokens": 5, "max_tokens": 3}, "min_tokens"),
    ],
)
def test_wrong_sampling_is_named(llm: LLM, arguments: dict[str, object], word: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        llm.generate("12", SamplingParams(**arguments))  # type: ignore[arg-type]
    assert word in str(caught.value)


@pytest.mark.parametrize("prompt", [[], [-1], [10**6], [2**40], [1.5], ["x"]])
def test_wrong_prompts(llm: LLM, prompt: list[object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        llm.generate([prompt])  # type: ignore[arg-type]
    assert "prompt" in str(caught.value)


def test_a_refused_prompt_leaves_nothing_behind(llm: LLM) -> None:
    with pytest.raises(InvalidInput):
        llm.generate([[5, 6], [10**6]])
    stats = llm.kv_stats()
    assert stats.num_running == stats.num_waiting == 0


def test_numpy_ids_are_ids(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=3)
    (found,) = llm.generate([np.array([5, 6, 7])], params)
    assert found.token_ids == llm.generate([[5, 6, 7]], params)[0].token_ids


def test_params_for_each(llm: LLM) -> None:
    with pytest.raises(InvalidInput) as caught:
        llm.generate(["1", "2"], [SamplingParams()])
    assert "params" in str(caught.value)


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user"}], [{"content": "x"}], [{"role": "user", "content": 5}]]
)
def test_wrong_messages(llm: LLM, messages: list[dict[str, object]]) -> None:
    with pytest.raises(InvalidInput):
        llm.tokenizer.encode_chat(messages)


def test_a_model_without_a_tokenizer(tmp_path: pathlib.Path) -> None:
    for path in [MODEL / "config.json", *MODEL.glob("model*.safetensors*")]:
        (tmp_path / path.name).symlink_to(path)
    llm = LLM(tmp_path, max_len=512)
    assert llm.generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=3))[0].text == ""
    with pytest.raises(InvalidInput) as caught:
        llm.generate(PROBLEM)
    assert "tokenizer" in str(caught.value)
