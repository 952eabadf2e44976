"""Pictures with matplotlib (pip install 'pmkvq[plot]'). Each function draws into `axes`, or into a
new figure, and returns the axes; save(axes, "x.svg") writes the picture."""
from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._compare import Comparison, MethodResult
from ._errors import InvalidInput, Unsupported
from ._llm import Event
from ._plan import WIDTHS, Plan, Sensitivity
from ._pmkvq import HalvingEvent, KvSnapshot, TokenEvent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracy", "ladder", "save", "sensitivities", "widths"]

# One hue from dark (wide) to light (narrow): 16, 8, 4, 2 bits.
_WIDTH_COLOURS = ("#0b3c5d", "#3d7ea6", "#87b7d4", "#d3e6f1")
# Told apart by people with colour blindness (Okabe and Ito), and by markers.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MIB = float(2**20)


def ladder(events: Iterable[Event], *, axes: Axes | None = None) -> Axes:
    """The cache of one stream stepping down inside its budget: bytes by width over tokens.

    events: of LLM.stream or stream_chat, all of them. Metadata counts to its codes' width.
    """
    snapshots: list[KvSnapshot] = []
    halvings: list[int] = []
    for event in events:
        if isinstance(event, TokenEvent):
            snapshots.append(event.kv)
        elif isinstance(event, HalvingEvent):
            halvings.append(event.num_tokens)
    if not snapshots:
        raise InvalidInput("[events] found no tokens, expected the events of a stream")
    tokens = np.array([kv.num_tokens for kv in snapshots])
    total = np.array([kv.bytes for kv in snapshots]) / _MIB
    ours = _axes(axes)
    ours.stackplot(tokens, _bytes_by_width(snapshots), colors=_WIDTH_COLOURS, labels=[f"{bits} bits" for bits in WIDTHS])
    ours.plot(tokens, total, color="black", linewidth=1)
    budget = snapshots[-1].budget_bytes / _MIB
    ours.axhline(budget, color="black", linestyle="--", linewidth=1, label=f"budget, {budget:.3g} MiB")
    if halvings:
        ours.plot(sorted(set(halvings)), np.zeros(len(set(halvings))), "|", color="#d55e00", markersize=9, clip_on=False, label="pages halved")
    ours.set(
        xlabel="tokens of the sequence",
        ylabel="cache, MiB",
        xlim=(tokens[0], tokens[-1] + 1),
        ylim=(0, 1.05 * max(budget, total.max())),
    )
    _legend_beside(ours)
    return ours


def sensitivities(measured: Sensitivity | Plan, *, bits: Sequence[int] = (8, 4, 2), axes: Axes | None = None) -> Axes:
    """First-order loss by block, K and V apart, one line per width; logarithmic."""
    if isinstance(measured, Plan):
        k, v = measured.k_sensitivity, measured.v_sensitivity
    else:
        k, v = measured.k, measured.v
    if k.size == 0:
        raise InvalidInput("[measured] has no sensitivities, expected those of sensitivity or calibrate")
    unknown = [width for width in bits if width not in WIDTHS]
    if unknown or not bits:
        raise InvalidInput(f"[bits] found {list(bits)}, expected some of {list(WIDTHS)}")
    ours = _axes(axes)
    blocks = np.arange(k.shape[1])
    for index, width in enumerate(bits):
        row = WIDTHS.index(width)
        ours.plot(blocks, k[row], color=_COLOURS[0], marker=_MARKERS[index], label=f"K, {width} bits")
        ours.plot(blocks, v[row], color=_COLOURS[1], marker=_MARKERS[index], linestyle="--", label=f"V, {width} bits")
    ours.set(xlabel="block", ylabel="first-order loss, |ΔL|", yscale="log")
    _whole_numbers(ours)
    ours.legend(frameon=False, ncols=len(bits))
    return ours


def widths(plan: Plan, *, axes: Axes | None = None) -> Axes:
    """Final widths of K and V by block."""
    ours = _axes(axes)
    blocks = np.arange(plan.k_bits.size)
    ours.bar(blocks - 0.2, plan.k_bits, 0.4, color=_COLOURS[0], label="K")
    ours.bar(blocks + 0.2, plan.v_bits, 0.4, color=_COLOURS[1], label="V")
    ours.set(xlabel="block", ylabel="bits", yticks=sorted(set(map(int, [*plan.k_bits, *plan.v_bits]))))
    _whole_numbers(ours)
    _legend_beside(ours)
    return ours


def accuracy(comparison: Comparison, *, axes: Axes | None = None) -> Axes:
    """Share of right answers against peak bytes of a sequence, with 95 % intervals; one line per
    method over its budgets. Methods that were not run are left out."""
    points: dict[str, list[MethodResult]] = {}
    for result in comparison:
        if result.status == "done" and result.responses > 0:
            points.setdefault(result.kv, []).append(result)
    if not points:
        raise InvalidInput("[comparison] found no method that was run, expected one or more")
    ours = _axes(axes)
    for index, (kv, results) in enumerate(points.items()):
        results.sort(key=lambda result: result.peak_bytes)
        share = np.array([result.share for result in results])
        # An interval holds its share but for rounding.
        below = np.maximum(0, share - [result.interval[0] for result in results])
        above = np.maximum(0, [result.interval[1] for result in results] - share)
        ours.errorbar(
            [result.peak_bytes / _MIB for result in results], 100 * share, yerr=100 * np.stack([below, above]),
            label=kv, color=_COLOURS[index % len(_COLOURS)], marker=_MARKERS[index % len(_MARKERS)], capsize=3,
        )  # fmt: skip
    ours.set(
        xlabel="peak bytes of a sequence, MiB",
        ylabel="right answers, %",
        title=f"{comparison.benchmark}, {comparison.num_problems} problems",
        ylim=(-3, 103),
    )
    _legend_beside(ours)
    return ours


def save(axes: Axes, path: str | os.PathLike[str]) -> None:
    """Writes the picture that the axes are in; the ending says how: .svg, .png, .pdf."""
    figure: Any = axes.figure
    figure.savefig(path)


def _bytes_by_width(snapshots: list[KvSnapshot]) -> npt.NDArray[np.float64]:
    """[4, snapshots] MiB: bytes shared out as the codes of pages are, whose sizes are their widths."""
    pages = np.array([[kv.pages[bits] for bits in WIDTHS] for kv in snapshots], dtype=np.float64)
    parts = pages * np.array(WIDTHS)
    total = np.array([kv.bytes for kv in snapshots]) / _MIB
    sums = parts.sum(axis=1)
    shares = np.divide(parts, sums[:, None], out=np.zeros_like(parts), where=sums[:, None] > 0)
    shares[sums == 0, 0] = 1
    return np.asarray((shares * total[:, None]).T)


def _axes(axes: Axes | None) -> Axes:
    if axes is not None:
        return axes
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise Unsupported("[plot] matplotlib is not installed; expected it: pip install 'pmkvq[plot]'") from None
    _, made = plt.subplots(figsize=(7, 4), layout="constrained")
    return made


def _legend_beside(axes: Axes) -> None:
    """Right of the axes, where it hides nothing."""
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
