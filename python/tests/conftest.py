"""The shipped model, and the program whose results the package has to repeat."""
from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
from typing import Any

import pytest

import pmkvq

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models/longcot-10m"
PLAN = MODEL / "plan.json"
PROBLEM = "Multiply 472 by 58 with column sums of digit products. What is the product?"
LONG_PROBLEM = (MODEL / "example.txt").read_text()
# Without torch and transformers, which scripts/test-python.sh installs behind these tests.
collect_ignore = [] if importlib.util.find_spec("transformers") else ["hf"]
GREEDY = pmkvq.SamplingParams(temperature=0)
# A shell that starts the tests in the background has it ignored, and Python then leaves it so.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Program:
    """`pmkvq`, built from the same sources."""

    def __init__(self, path: str):
        self.path = path

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.path, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def run(self, *arguments: str) -> list[dict[str, Any]]:
        """The sequences of `pmkvq run --json -`."""
        done = self.call("run", "--model", str(MODEL), *arguments, "--json", "-")
        assert done.returncode == 0, done.stderr
        sequences: list[dict[str, Any]] = json.loads(done.stdout)["sequences"]
        return sequences

    def error(self, *arguments: str) -> str:
        """What a failed call says, without the program's name before it."""
        done = self.call(*arguments)
        assert done.returncode != 0
        line = done.stderr.strip().splitlines()[-1]
        return line[line.index("[") :]


@pytest.fixture(scope="session")
def program() -> Program:
    path = os.environ.get("PMKVQ_PROGRAM", str(ROOT / "build/release/bin/pmkvq"))
    assert os.access(path, os.X_OK), f"{path}: no program; ./run test-python builds it, PMKVQ_PROGRAM names one"
    return Program(path)


@pytest.fixture(scope="session")
def model() -> pmkvq.Model:
    return pmkvq.load_model(MODEL)


@pytest.fixture
def llm(model: pmkvq.Model) -> pmkvq.LLM:
    return pmkvq.LLM(model, max_len=4096)


def as_program_says(completion: pmkvq.Completion) -> dict[str, Any]:
    """A completion as `pmkvq run --json` writes it."""
    return {
        "prompt_ids": completion.prompt_token_ids,
        "output_ids": completion.token_ids,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "kv": {
            "bytes": completion.kv.bytes,
            "budget_bytes": completion.kv.budget_bytes,
            "peak_bytes": completion.kv.peak_bytes,
            "pages": {str(bits): count for bits, count in completion.kv.pages.items()},
        },
    }


def without_times(sequence: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sequence.items() if key != "longest_pause_us"}
