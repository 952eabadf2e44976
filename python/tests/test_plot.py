"""Pictures have the numbers that they are of."""
from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from conftest import GREEDY, LONG_PROBLEM, PLAN

import pmkvq

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed: ./run test-python installs it")
matplotlib.use("Agg")


def lines_of(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.get_lines()}


def test_ladder(model: pmkvq.Model, tmp_path: pathlib.Path) -> None:
    from pmkvq import plot

    llm = pmkvq.LLM(model, kv="pm-kvq", plan=PLAN, kv_budget="1.5MiB", max_len=4096)
    events = list(llm.stream_chat([{"role": "user", "content": LONG_PROBLEM}], GREEDY))
    axes: Any = plot.ladder(events)
    kv = events[-1].completion.kv if isinstance(events[-1], pmkvq.FinishEvent) else None
    assert kv is not None
    (budget,) = [line for label, line in lines_of(axes).items() if label.startswith("budget")]
    assert budget.get_ydata()[0] == pytest.approx(kv.budget_bytes / 2**20)
    areas = axes.collections
    assert [area.get_label() for area in areas] == ["16 bits", "8 bits", "4 bits", "2 bits"]
    tops = [max(path.vertices[:, 1].max() for path in area.get_paths()) for area in areas]
    assert tops == sorted(tops) and tops[-1] <= kv.budget_bytes / 2**20
    plot.save(axes, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").stat().st_size > 5000
    with pytest.raises(pmkvq.InvalidInput, match="events"):
        plot.ladder([])


def test_sensitivities_and_widths() -> None:
    from pmkvq import plot

    plan = pmkvq.Plan.load(PLAN)
    axes = plot.sensitivities(plan, bits=(4, 2))
    found = lines_of(axes)
    assert set(found) == {"K, 4 bits", "V, 4 bits", "K, 2 bits", "V, 2 bits"}
    assert np.array_equal(found["K, 2 bits"].get_ydata(), plan.k_sensitivity[3])
    assert np.array_equal(found["V, 4 bits"].get_ydata(), plan.v_sensitivity[2])
    again = plot.sensitivities(pmkvq.Sensitivity(plan.k_sensitivity, plan.v_sensitivity), axes=axes)
    assert again is axes
    for wrong in ((), (3,)):
        with pytest.raises(pmkvq.InvalidInput, match="bits"):
            plot.sensitivities(plan, bits=wrong)
    bars: Any = plot.widths(plan).patches
    assert [bar.get_height() for bar in bars] == [*plan.k_bits, *plan.v_bits]


def test_accuracy(model: pmkvq.Model) -> None:
    from pmkvq import plot

    found = pmkvq.compare(
        model, kv=["static-4", "static-2"], kv_budget=["3MiB", "4MiB"], max_len=1500, per_cell=1, max_level=1, end=3
    )
    axes: Any = plot.accuracy(found)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["fp16", "static-4", "static-2"]
    points = {
        container.get_label(): container.lines[0].get_xydata() for container in axes.containers
    }
    for kv in labels:
        rows = sorted((row for row in found if row.kv == kv), key=lambda row: row.peak_bytes)
        assert points[kv] == pytest.approx(np.array([[row.peak_bytes / 2**20, 100 * row.share] for row in rows]))
