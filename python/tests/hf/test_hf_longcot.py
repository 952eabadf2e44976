"""The shipped model through transformers: its text, bytes and pages are the program's; examples and documents run."""
from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import pytest
import torch
from conftest import MODEL, PLAN, PROBLEM, ROOT, Program
from tiny_models import CACHE
from transformers import AutoModelForCausalLM

from pmkvq import InvalidInput, Tokenizer
from pmkvq.hf import PackedCache

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.mark.parametrize("budget", ["4.75MiB", "1.5MiB"])
def test_the_text_is_the_program_s(program: Program, budget: str) -> None:
    options = ["--kv", "pm-kvq", "--plan", str(PLAN), "--kv-budget", budget]
    (expected,) = program.run("--prompt", PROBLEM, *options, "--temperature", "0", "--max-tokens", "600")
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="pmkvq")
    ids = torch.tensor([Tokenizer(MODEL).encode_chat([{"role": "user", "content": PROBLEM}])])
    assert ids[0].tolist() == expected["prompt_ids"]
    cache = PackedCache(model, plan=PLAN, kv_budget=budget)
    tokens = model.generate(
        ids, attention_mask=torch.ones_like(ids), **{CACHE: cache}, do_sample=False, max_new_tokens=600
    )
    assert tokens[0, ids.shape[1] :].tolist() == expected["output_ids"]
    assert cache.nbytes == expected["kv"]["bytes"]
    assert {str(bits): count for bits, count in cache.stats().pages.items()} == expected["kv"]["pages"]
    assert (cache.stats().halved_pages > 0) == (budget == "1.5MiB")


def test_the_plan_of_other_weights(tmp_path: pathlib.Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    model.save_pretrained(tmp_path)
    other = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="plan.json"):
        PackedCache(other, plan=PLAN)


def run(*arguments: str | pathlib.Path) -> str:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("script", sorted((ROOT / "examples/python/hf").glob("*.py")), ids=lambda script: script.name)
def test_example(script: pathlib.Path) -> None:
    assert "pages" in run(script)


def test_the_documents_code(tmp_path: pathlib.Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/transformers.md").read_text(), re.DOTALL)
    script = tmp_path / "document.py"
    script.write_text("\n".join(blocks))
    assert "CacheStats" in run(script)


def test_the_benchmark_runs(tmp_path: pathlib.Path) -> None:
    """Small, and without QuantizedCache, whose package compiles code at its first use."""
    figures = tmp_path / "figures.json"
    sizes = ["--prompt", "1200", "--new-tokens", "20", "--layers", "2", "--vocab", "500"]
    # So little memory is not measured to a few percent: the process's pages are of 4 KiB.
    assert "PackedCache" in run(
        ROOT / "scripts/compare-hf-cache.py", *sizes, "--backend", "none", "--dynamic", "--most-memory", "2",
        "--json", figures
    )
    caches = json.loads(figures.read_text())["caches"]
    assert caches["PackedCache 4 bits"]["claimed_mb"] < caches["DynamicCache"]["claimed_mb"] / 2
