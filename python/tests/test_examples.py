"""The examples run as they stand."""
from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import MODEL, ROOT

EXAMPLES = sorted((ROOT / "examples/python").glob("*.py"))


def run(script: pathlib.Path, *arguments: str) -> str:
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", [one for one in EXAMPLES if "notebook" not in one.name], ids=lambda script: script.name)
def test_example(script: pathlib.Path) -> None:
    text = run(script)
    assert text
    if script.name == "own_method.py":
        assert text.count("mean-sign") == 2, "a row in each of two tables"


@pytest.mark.parametrize(
    ("name", "pictures"),
    [("notebook_widths", ["sensitivities", "widths", "ladder"]), ("notebook_compare", ["accuracy"])],
)
def test_notebook(name: str, pictures: list[str], tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    assert run(ROOT / f"examples/python/{name}.py", str(MODEL), str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {f"{picture}.svg" for picture in pictures}


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
