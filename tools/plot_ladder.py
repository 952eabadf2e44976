#!/usr/bin/env python3
"""Draws how a KV cache stepped down: an SVG from the file that `pmkvq run --stats FILE` wrote.

Usage: tools/plot_ladder.py STATS.jsonl [OUT.svg] [TITLE]      (OUT.svg: STATS.svg beside the file)

The height of the stack is the bytes in use after every token; its colours share that height among
the pages at 16, 8, 4 and 2 bits in proportion to their bits. The dashed line is the budget.
"""
import html
import json
import pathlib
import sys

WIDTHS = (16, 8, 4, 2)
COLOURS = ("#3b6fb6", "#4aa3a2", "#e0a030", "#c8553d")
W, H, LEFT, RIGHT, TOP, BOTTOM = 860, 380, 70, 20, 44, 70


def fail(words):
    sys.exit(f"plot_ladder.py: {words}")


def read_points(path):
    """(position, bytes, budget, pages by width) of every token."""
    points = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    if row["event"] == "token":
                        point = (int(row["position"]), int(row["bytes"]), int(row["budget_bytes"]), row["pages"])
                        if len(point[3]) != len(WIDTHS):
                            raise ValueError
                        points.append(point)
                except (ValueError, KeyError, TypeError):
                    fail(f"[{path}:{number}] found no line of `pmkvq run --stats`, expected event, position, bytes, budget_bytes, "
                         "pages; name the file that --stats wrote")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"[{path}] cannot read: {getattr(error, 'strerror', None) or 'not a text file'}; name the file that `pmkvq run "
             "--stats` wrote")
    if not points or points[-1][0] <= 0:
        fail(f"[{path}] found no token, expected at least one generated token; generate more")
    return points


def main() -> None:
    if any(a in ("-h", "--help") for a in sys.argv[1:]):
        print(__doc__)
        return
    if not 2 <= len(sys.argv) <= 4:
        print(f"usage: tools/plot_ladder.py STATS.jsonl [OUT.svg] [TITLE]; found {len(sys.argv) - 1} arguments, expected 1 to 3",
              file=sys.stderr)
        sys.exit(2)
    stats = sys.argv[1]
    out = sys.argv[2] if len(sys.argv) > 2 else str(pathlib.Path(stats).with_suffix(".svg"))
    if pathlib.Path(out) == pathlib.Path(stats):
        fail(f"[{out}] is the file of figures itself; name another file after STATS.jsonl")
    title = html.escape(sys.argv[3] if len(sys.argv) > 3 else "KV cache of one sequence")
    points = read_points(stats)
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
    try:
        pathlib.Path(out).write_text("\n".join(svg), encoding="utf-8")
    except OSError as error:
        fail(f"[{out}] cannot write: {error.strerror}; name another file after STATS.jsonl")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
