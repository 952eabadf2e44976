"""Small charts of lines and points for the pages in docs, as SVG text: no library, the same bytes for the same numbers."""
import html
import math

COLOURS = ("#1f6f43", "#c8553d", "#5c6b8a", "#7fb069", "#b5651d", "#8e6bbf")


def number(value):
    if value == 0:
        return "0"
    if abs(value) < 0.01 or abs(value) >= 1e5:
        return f"{value:.0e}"
    return f"{value:g}"


class Panel:
    """One plot. series: (name, [(x, y), ...]); points with y None are left out. log_y: values at or below `floor` lie on it."""

    def __init__(self, title, x_label, y_label, series, log_y=False, floor=1e-9, y_range=None, x_ticks=None, log_x=False, marks=False):
        self.title, self.x_label, self.y_label, self.series = title, x_label, y_label, series
        self.log_y, self.floor, self.log_x, self.marks = log_y, floor, log_x, marks
        values = [max(y, floor) if log_y else y for _, points in series for _, y in points if y is not None]
        xs = [x for _, points in series for x, _ in points]
        self.x0, self.x1 = min(xs), max(xs)
        low, high = y_range or (min(values), max(values))
        if log_y:
            low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high) + 1e-9)
        self.y0, self.y1 = low, high if high > low else low + 1
        inside = [tick for tick in x_ticks or () if self.x0 <= tick <= self.x1]
        self.x_ticks = inside or [self.x0 + (self.x1 - self.x0) * i / 4 for i in range(5)]

    def draw(self, left, top, width, height):
        def x_of(x):
            if self.log_x:
                return left + width * math.log(x / self.x0) / math.log(self.x1 / self.x0)
            return left + width * (x - self.x0) / (self.x1 - self.x0)

        def y_of(y):
            if self.log_y:
                return top + height * (1 - math.log(max(y, self.floor) / self.y0) / math.log(self.y1 / self.y0))
            return top + height * (1 - (y - self.y0) / (self.y1 - self.y0))

        out = [f'<text x="{left}" y="{top - 14}" font-size="14" fill="#222">{html.escape(self.title)}</text>']
        if self.log_y:
            ticks = [10.0 ** e for e in range(round(math.log10(self.y0)), round(math.log10(self.y1)) + 1)]
            ticks = ticks[::max(1, len(ticks) // 7)]
        else:
            ticks = [self.y0 + (self.y1 - self.y0) * i / 5 for i in range(6)]
        for tick in ticks:
            y = y_of(tick)
            out.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#000" stroke-opacity="0.12"/>')
            out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#444">{number(round(tick, 12))}</text>')
        for tick in self.x_ticks:
            out.append(f'<text x="{x_of(tick):.1f}" y="{top + height + 18}" text-anchor="middle" fill="#444">{number(round(tick, 4)) if tick < 1e4 else f"{tick:,.0f}"}</text>')
        out.append(f'<text x="{left + width / 2}" y="{top + height + 36}" text-anchor="middle" fill="#444">{html.escape(self.x_label)}</text>')
        out.append(f'<text x="{left - 44}" y="{top - 14}" font-size="11" fill="#444">{html.escape(self.y_label)}</text>' if not self.title else
                   f'<text x="{left + width}" y="{top - 14}" text-anchor="end" font-size="11" fill="#444">{html.escape(self.y_label)}</text>')
        for i, (_, points) in enumerate(self.series):
            colour = COLOURS[i % len(COLOURS)]
            shown = [(x_of(x), y_of(y)) for x, y in points if y is not None]
            out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in shown) + '"/>')
            if self.marks:
                out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in shown]
        return out


def chart(panels, width=980, height=400):
    """Panels side by side, with one legend: series of one name have one colour where all panels list them in one order."""
    names = max((panel.series for panel in panels), key=len)
    legend_rows = -(-len(names) // 2)
    each = (width - 40) / len(panels)
    inner = height - 110 - 20 * legend_rows
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    for i, panel in enumerate(panels):
        out += panel.draw(round(70 + i * each), 40, round(each - 90), inner)
    for i, (name, _) in enumerate(names):
        x, y = 70 + i % 2 * (width // 2 - 40), height - 20 * (legend_rows - i // 2) + 6
        out.append(f'<rect x="{x}" y="{y - 9}" width="14" height="4" fill="{COLOURS[i % len(COLOURS)]}"/>')
        out.append(f'<text x="{x + 20}" y="{y - 3}" fill="#222">{html.escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
