"""The examples run as they stand."""
from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT

EXAMPLES = sorted((ROOT / "examples/python").glob("*.py"))


def run(script: pathlib.Path) -> str:
    return subprocess.run([sys.executable, script], cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_example(script: pathlib.Path) -> None:
    assert run(script)


def test_the_answers_of_generate() -> None:
    text = run(ROOT / "examples/python/generate.py")
    assert [str(number * 58) in line for number, line in zip((472, 315, 608), text.splitlines(), strict=True)] == [True] * 3


def test_the_documents_code(tmp_path: pathlib.Path) -> None:
    text = (ROOT / "docs/python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    script = tmp_path / "document.py"
    script.write_text("\n".join(blocks))
    assert run(script)
