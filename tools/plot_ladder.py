#!/usr/bin/env python3
"""Draws how a KV cache stepped down: an SVG from the file that `pmkvq run --stats FILE` wrote.

Usage: plot_ladder.py STATS.jsonl OUT.svg [TITLE]

The height of the stack is the bytes in use after every token; its colours share that height among
the pages at 16, 8, 4 and 2 bits in proportion to their bits. The dashed line is the budget.
"""
import json
import sys

WIDTHS = (16, 8, 4, 2)
COLOURS = ("#3b6fb6", "#4aa3a2", "#e0a030", "#c8553d")
W, H, LEFT, RIGHT, TOP, BOTTOM = 860, 380, 70, 20, 44, 70


def main() -> None:
    stats, out = sys.argv[1], sys.argv[2]
    title = sys.argv[3] if len(sys.argv) > 3 else "KV cache of one sequence"
    points = []
    for line in open(stats, encoding="utf-8"):
        row = json.loads(line)
        if row["event"] == "token":
            points.append((row["position"], row["bytes"], row["budget_bytes"], row["pages"]))
    last, budget = points[-1][0], points[-1][2]
    top = max(budget, max(p[1] for p in points)) * 1.08

    def x(position):
        return LEFT + (W - LEFT - RIGHT) * position / last

    def y(value):
        return H - BOTTOM - (H - TOP - BOTTOM) * value / top

    # Bytes change when pages open or step down; between that the outline is flat.
    kept = [p for i, p in enumerate(points) if i in (0, len(points) - 1)
            or points[i - 1][1] != p[1] or points[i + 1][1] != p[1]]
    lower = [0.0] * len(kept)
    areas = []
    for index in range(3, -1, -1):  # 2 bits at the bottom: the oldest pages.
        upper = []
        for i, (_, total, _, pages) in enumerate(kept):
            weight = sum(n * b for n, b in zip(pages, WIDTHS))
            upper.append(lower[i] + (total * pages[index] * WIDTHS[index] / weight if weight else 0))
        path = [f"{x(kept[i][0]):.1f},{y(upper[i]):.1f}" for i in range(len(kept))]
        path += [f"{x(kept[i][0]):.1f},{y(lower[i]):.1f}" for i in range(len(kept) - 1, -1, -1)]
        areas.append(f'<polygon points="{" ".join(path)}" fill="{COLOURS[index]}"/>')
        lower = upper

    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{W}" height="{H}" viewBox="0 0 {W} {H}" '
           'font-family="sans-serif" font-size="13">',
           f'<rect width="{W}" height="{H}" fill="#ffffff"/>',
           f'<text x="{LEFT}" y="26" font-size="16" fill="#222">{title}</text>', *areas]
    for mib in range(0, int(top / 2**20) + 1):
        svg.append(f'<line x1="{LEFT}" x2="{W - RIGHT}" y1="{y(mib * 2**20):.1f}" y2="{y(mib * 2**20):.1f}" '
                   'stroke="#000" stroke-opacity="0.12"/>')
        svg.append(f'<text x="{LEFT - 8}" y="{y(mib * 2**20) + 4:.1f}" text-anchor="end" fill="#444">{mib} MiB</text>')
    for position in range(0, last + 1, 500):
        svg.append(f'<text x="{x(position):.1f}" y="{H - BOTTOM + 18}" text-anchor="middle" fill="#444">{position}</text>')
    svg.append(f'<text x="{(LEFT + W - RIGHT) / 2}" y="{H - BOTTOM + 38}" text-anchor="middle" fill="#444">tokens in the cache</text>')
    svg.append(f'<line x1="{LEFT}" x2="{W - RIGHT}" y1="{y(budget):.1f}" y2="{y(budget):.1f}" stroke="#222" '
               'stroke-width="1.5" stroke-dasharray="6 4"/>')
    svg.append(f'<text x="{LEFT + 6}" y="{y(budget) - 6:.1f}" fill="#222">budget {budget / 2**20:.2f} MiB</text>')
    for i, (bits, colour) in enumerate(zip(WIDTHS, COLOURS)):
        svg.append(f'<rect x="{LEFT + i * 110}" y="{H - 22}" width="14" height="14" fill="{colour}"/>')
        svg.append(f'<text x="{LEFT + 20 + i * 110}" y="{H - 10}" fill="#222">{bits} bit</text>')
    svg.append("</svg>\n")
    with open(out, "w", encoding="utf-8") as file:
        file.write("\n".join(svg))


if __name__ == "__main__":
    main()
