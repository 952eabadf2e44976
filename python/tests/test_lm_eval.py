"""--model pmkvq of lm-eval: one multiple-choice and one generation task from local files, equal to the
same tasks through `pmkvq serve`, and to transformers within float rounding."""
from __future__ import annotations

import json
import math
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import MODEL, PLAN, Program

import pmkvq

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: ./run test-python installs it")
pytestmark = pytest.mark.lm_eval

# Of log-likelihoods that were summed over a line of numbers, computed in float by two programs: each
# token's logits differ by some 1e-6 of their size, about 20; the largest difference seen was 5e-5.
FLOAT_TOLERANCE = 3e-4
NUM_CHOICES, NUM_TEXTS, NUM_TOKENS = 6, 3, 60

CHOICE_TASK = """task: sort_choice
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}]
"""
TEXT_TASK = f"""task: sort_text
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["</think>"], max_gen_toks: {NUM_TOKENS}, temperature: 0}}
metric_list: [{{metric: exact_match}}]
"""


def items(count: int) -> Iterator[dict[str, Any]]:
    """Prompts in the model's own words with the beginning of its answer, and three rests of its line; the
    first one is right. No white space at the end of a prompt: lm-eval would count it as the choices'."""
    rng = random.Random(1)
    for _ in range(count):
        numbers = rng.sample(range(100, 1000), 4)
        question = f"Sort these 04 numbers from small to large with merge sort: {', '.join(map(str, numbers))}. What is the sorted list?"
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\nA01={numbers[0]}"
        lines = [numbers[1:], numbers[:0:-1], [numbers[2], numbers[3], numbers[1]]]
        yield {"prompt": prompt, "choices": ["".join(f" A{i:02}={n}" for i, n in enumerate(line, 2)) for line in lines]}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with both tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, text, count in (("sort_choice", CHOICE_TASK, NUM_CHOICES), ("sort_text", TEXT_TASK, NUM_TEXTS)):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(item) + "\n" for item in items(count)))
        (folder / f"{name}.yaml").write_text(
            f"{text}dataset_path: json\ntest_split: test\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
        )
    os.environ["HF_HOME"] = str(folder / "home")
    return folder


@dataclass
class Results:
    choices: list[list[tuple[float, bool]]]  # Of each item and choice: log-likelihood, is greedy.
    accuracy: float
    texts: list[str]
    config: dict[str, Any]


def run(tasks: pathlib.Path, kind: str, **arguments: Any) -> Results:
    import pmkvq.lm_eval  # Registers it.
    from lm_eval.tasks import TaskManager

    assert pmkvq.lm_eval.PmkvqLM is not None
    found = lm_eval.simple_evaluate(
        model=kind,
        model_args=arguments,
        tasks=["sort_choice", "sort_text"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = {name: sorted(rows, key=lambda row: row["doc_id"]) for name, rows in found["samples"].items()}
    return Results(
        choices=[[(float(one[0][0]), str(one[0][1]) == "True") for one in row["resps"]] for row in samples["sort_choice"]],
        accuracy=found["results"]["sort_choice"]["acc,none"],
        texts=[row["resps"][0][0] for row in samples["sort_text"]],
        config=found["config"],
    )


@contextmanager
def served(program: Program, *options: str) -> Iterator[str]:
    """The address of `pmkvq serve`."""
    command = [program.path, "serve", "--model", str(MODEL), "--port", "0", "--max-len", "2048", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if ready := re.search(r"ready: (http://[^ ]+)", line):
                yield ready[1].rstrip("/")
                return
        raise AssertionError("".join(lines))
    finally:
        process.terminate()
        process.stderr.read()
        process.wait()


def through_server(tasks: pathlib.Path, address: str) -> Results:
    return run(
        tasks, "local-completions", model="longcot-10m", base_url=f"{address}/v1/completions",
        tokenizer_backend="remote", num_concurrent=1, max_length=2048,
    )  # fmt: skip


def difference(a: Results, b: Results) -> float:
    pairs = [(x, y) for one, other in zip(a.choices, b.choices, strict=True) for (x, _), (y, _) in zip(one, other, strict=True)]
    return max(abs(x - y) for x, y in pairs)


def test_three_routes(program: Program, tasks: pathlib.Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: ./run test-python installs it")
    options = {"pretrained": MODEL, "kv": "fp16", "kv_dtype": "f32", "max_length": 2048}
    ours = run(tasks, "pmkvq", **options)
    as_prompt = run(tasks, "pmkvq", **options, scoring="prompt")
    with served(program, "--kv", "fp16", "--kv-dtype", "f32") as address:
        server = through_server(tasks, address)
    # Its generation_config.json has a max_new_tokens, which transformers prefers to lm-eval's limit.
    folder = tasks / "model"
    folder.mkdir()
    for path in MODEL.iterdir():
        if path.name != "generation_config.json":
            (folder / path.name).symlink_to(path)
    hugging_face = run(tasks, "hf", pretrained=str(folder), dtype="float32", device="cpu")

    # The task is one: it has right and wrong answers, and greedy and other choices.
    assert 0 < ours.accuracy and ours.accuracy == as_prompt.accuracy == server.accuracy == hugging_face.accuracy
    greedy = [[is_greedy for _, is_greedy in row] for row in ours.choices]
    assert {True, False} == {one for row in greedy for one in row}
    assert len(set(ours.texts)) == NUM_TEXTS and all(text.startswith(" A02=") for text in ours.texts)

    assert as_prompt.choices == server.choices, "bit for bit"
    for other in (as_prompt, hugging_face):
        assert difference(ours, other) <= FLOAT_TOLERANCE
        assert greedy == [[is_greedy for _, is_greedy in row] for row in other.choices]
    assert ours.texts == as_prompt.texts == server.texts == hugging_face.texts
    print(f"largest differences: hf {difference(ours, hugging_face):.2g}, prompt {difference(ours, as_prompt):.2g}")


def test_a_budget_is_that_of_the_server(program: Program, tasks: pathlib.Path) -> None:
    """pm-kvq at a budget: the choices as a prompt, and the texts, are the server's bit for bit."""
    options = {"pretrained": MODEL, "kv": "pm-kvq", "kv_budget": "1.25MiB", "plan": PLAN, "max_length": 2048}
    ours = run(tasks, "pmkvq", **options, scoring="prompt")
    with served(program, "--kv", "pm-kvq", "--kv-budget", "1.25MiB", "--plan", str(PLAN)) as address:
        server = through_server(tasks, address)
    assert (ours.choices, ours.texts) == (server.choices, server.texts)
    assert ours.config["pmkvq_kv"] == "pm-kvq" and ours.config["pmkvq_budget_bytes"] <= 1.25 * 2**20
    assert ours.config["pmkvq_requests_over_kv_budget"] == 0
    assert ours.config["model_identity"] == pmkvq.load_model(MODEL).identity


def test_the_command(tasks: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = pathlib.Path(sys.executable).parent / "pmkvq-lm-eval"
    # Plain lm_eval knows the model by a file that it reads with the tasks.
    model_file = subprocess.run([str(command), "--model-file"], capture_output=True, text=True, check=True).stdout.strip()
    for start, names in (
        ([str(command)], "sort_choice"),
        ([sys.executable, "-m", "pmkvq.lm_eval"], "sort_choice"),
        ([sys.executable, "-m", "lm_eval"], f"{model_file},sort_choice"),
    ):
        done = subprocess.run(
            [*start, "--model", "pmkvq", "--model_args", f"pretrained={MODEL},kv=static-4,max_length=1024", "--tasks",
             names, "--include_path", str(tasks), "--limit", "3", "--output_path", str(tmp_path / start[-1].split("/")[-1])],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert "sort_choice" in done.stdout
    results, *others = (json.loads(path.read_text()) for path in tmp_path.glob("**/results_*.json"))
    assert len(others) == 2 and results["config"]["pmkvq_kv"] == "static-4"
    for other in others:
        assert other["results"]["sort_choice"] == results["results"]["sort_choice"]
    wrong = subprocess.run(
        [str(command), "--model", "pmkvq", "--model_args", "pretrained=/nowhere", "--tasks", "sort_choice", "--include_path", str(tasks)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert wrong.returncode != 0 and wrong.stderr.strip().splitlines()[-1].startswith("pmkvq: [/nowhere]")


def instances(kind: str, rows: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=row, idx=index) for index, row in enumerate(rows)]


def make(**options: Any) -> Any:
    from pmkvq.lm_eval import PmkvqLM

    return PmkvqLM(pretrained=MODEL, **{"max_length": 512, **options})


def test_long_texts_are_cut_into_windows() -> None:
    """Rolling log-likelihoods of texts that are longer than max_length, against transformers."""
    pytest.importorskip("transformers", reason="transformers is not installed: ./run test-python installs it")
    from lm_eval.models.huggingface import HFLM

    texts = [(MODEL / "example.txt").read_text(), json.loads((MODEL / "heldout-40.jsonl").read_text().splitlines()[0])["problem"], ""]
    texts[2] = " ".join(texts[:2]) * 3
    requests = instances("loglikelihood_rolling", [(text,) for text in texts])
    theirs = HFLM(pretrained=str(MODEL), dtype="float32", device="cpu", max_length=127).loglikelihood_rolling(requests)
    for scoring in ("cache", "prompt"):
        ours = make(kv_dtype="f32", max_length=128, scoring=scoring).loglikelihood_rolling(requests)
        assert ours == pytest.approx(theirs, abs=1e-2, rel=1e-5)
        assert all(value < -10 for value in ours)


def test_equal_contexts_are_computed_once() -> None:
    lm = make()
    context = next(iter(items(1)))["prompt"]
    rows = [(context, choice) for item in items(1) for choice in item["choices"]]
    together = lm.loglikelihood(instances("loglikelihood", rows))
    assert lm.llm.kv_stats().prompt_tokens == len(lm.tok_encode(context))
    alone = [lm.loglikelihood(instances("loglikelihood", [row]))[0] for row in rows]
    assert together == alone


def test_a_spent_budget_is_counted() -> None:
    lm = make(kv="fp16", kv_budget="1MiB", max_length=4096)
    assert not lm.llm._engine.holds(1000)
    rows = [(None, [5], [6]), (None, [5] * 100, [6] * 100), (None, [5] * 1000, [6])]
    begun, lost, refused = lm._loglikelihood_tokens(rows)
    assert math.isfinite(begun[0]) and lost == refused == (-math.inf, False)
    context = " ".join(["12"] * 1000)
    texts = lm.generate_until(instances("generate_until", [(context, {"until": []}), ("12", {"until": [], "max_gen_toks": 3})]))
    assert texts[0] == "" and texts[1]
    info = lm.get_model_info()
    assert info["pmkvq_requests_over_kv_budget"] == 3 and info["pmkvq_requests_failed"] == 0


def test_contexts_that_are_too_long_lose_their_beginning() -> None:
    lm = make(max_length=64)
    context = "".join(item["prompt"] for item in items(3))
    ids = lm.tok_encode(context)
    assert len(ids) > 64
    (cut,) = lm.loglikelihood(instances("loglikelihood", [(context, "\n1")]))
    tail = lm._loglikelihood_tokens([(None, ids[-62:], lm.tok_encode("\n1"))])
    assert len(lm.tok_encode("\n1")) == 2 and [cut] == tail
    with pytest.raises(pmkvq.InvalidInput, match="max_length"):
        lm.loglikelihood(instances("loglikelihood", [("1", " 12" * 64)]))
    (text,) = lm.generate_until(instances("generate_until", [(context, {"max_gen_toks": 10})]))
    assert text
    with pytest.raises(pmkvq.InvalidInput, match="max_length"):
        lm.generate_until(instances("generate_until", [("1", {"max_gen_toks": 64})]))


def test_generation_arguments() -> None:
    lm = make()
    prompt = next(iter(items(1)))["prompt"]
    ids, params = lm._prompt_of(prompt, {"until": ["</think>", "<|im_end|>", ""], "max_gen_toks": 7, "do_sample": False, "temperature": 0.7})
    assert ids == lm.tok_encode(prompt) and params.temperature == 0 and params.max_tokens == 7
    # A control token is no text.
    assert params.stop_token_ids == [lm._codec.token_id("<|im_end|>")] and params.stop == ["</think>"]
    _, sampled = lm._prompt_of(prompt, {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 3})
    assert (sampled.temperature, sampled.top_p, sampled.seed, sampled.max_tokens) == (0.7, 0.9, 3, 256)
    with pytest.raises(pmkvq.InvalidInput, match="num_beams"):
        lm._prompt_of(prompt, {"num_beams": 3})


def test_devices(caplog: pytest.LogCaptureFixture) -> None:
    """cuda:0 is what lm-eval asks for by itself."""
    if make(device="cuda:0").llm.model.device == "cpu":
        assert "on the CPU: [cuda:0]" in caplog.text
    with pytest.raises((pmkvq.Unsupported, pmkvq.DeviceError)):
        make(device="cuda:7")
    assert make(device="cpu").llm.model.device == "cpu"


def test_wrong_arguments() -> None:
    from pmkvq.lm_eval import PmkvqLM

    with pytest.raises(pmkvq.InvalidInput, match="pretrained"):
        PmkvqLM()
    for arguments in ({"scoring": "both"}, {"batch_size": 0}):
        with pytest.raises(pmkvq.InvalidInput, match=next(iter(arguments))):
            make(**arguments)
    assert make(batch_size="auto", max_batch_size=3).batch_size == 3 and make(batch_size=1).batch_size == 8


def test_chat_templates() -> None:
    lm = make()
    turns = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "It is "}]
    whole = lm.apply_chat_template(turns[:1])
    assert whole.endswith("<think>\n") and "1 + 1" in whole
    assert lm.apply_chat_template(turns, add_generation_prompt=False).endswith("It is")
    assert lm.chat_template(True) == lm.llm.tokenizer.chat_template != "" and lm.chat_template(False) is None
    with pytest.raises(pmkvq.InvalidInput, match="chat_template"):
        lm.chat_template("other")


def test_a_bos_token_is_not_doubled(tmp_path: pathlib.Path) -> None:
    """A tokenizer that begins every text with a BOS token, as those of Llama do."""
    for path in MODEL.iterdir():
        if path.suffix == ".safetensors" or path.name.endswith("index.json"):
            (tmp_path / path.name).symlink_to(path)
        elif path.suffix == ".json":
            shutil.copy(path, tmp_path / path.name)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    from pmkvq.lm_eval import PmkvqLM

    lm = PmkvqLM(pretrained=tmp_path, max_length=64)
    plain = make().tok_encode("12")
    bos = lm.prefix_token_id
    assert bos == lm._codec.token_id("<|endoftext|>") and lm.eot_token_id == lm._codec.token_id("<|im_end|>")
    assert lm.tok_encode("12") == [bos, *plain] == lm.tok_encode("<|endoftext|>12")
    assert lm.tok_encode("12", add_special_tokens=False) == plain
    without = PmkvqLM(pretrained=tmp_path, max_length=64, add_bos_token=False)
    assert without.tok_encode("12") == plain
    with pytest.raises(pmkvq.InvalidInput, match="add_bos_token"):  # It has none.
        make(add_bos_token=True)
