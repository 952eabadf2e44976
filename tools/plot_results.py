"""The picture of docs/results.md: solved problems against the real bytes of the longest sequence, as SVG."""
import html

import results_settings as rs

W, H, LEFT, TOP, BOTTOM, GAP = 1180, 640, 56, 58, 92, 64
WIDTHS = 680, 340  # Of the panels: most methods were run at levels 3 to 5 only.
OURS = {"pm-kvq": "#c8553d", "best": "#1f6f43", "of+split+channel": "#7fb069"}
RIVAL = "#5c6b8a"
EVICTING = "#b5651d"


def colour_of(name):
    return OURS.get(name, EVICTING if rs.evicts(name) else RIVAL)


def ceil_to(value, step):
    return -(-value // step) * step


class Panel:
    """One set of problems: x is MiB, y per cent."""

    def __init__(self, left, width, title, note, points, fp16):
        self.left, self.width, self.title, self.note, self.points, self.fp16 = left, width, title, note, points, fp16
        sizes = [p.result.peak_bytes() / 2**20 for p in points]
        self.low, self.high = int(min(sizes)), ceil_to(max(sizes) * 1.02, 1)

    def x(self, num_bytes):
        return self.left + self.width * (num_bytes / 2**20 - self.low) / (self.high - self.low)

    @staticmethod
    def y(share):
        return H - BOTTOM - (H - TOP - BOTTOM) * share / 1.04

    def axes(self):
        out = [f'<text x="{self.left}" y="24" font-size="15" fill="#222">{self.title}</text>',
               f'<text x="{self.left}" y="42" fill="#555">{self.note}</text>']
        for percent in range(0, 101, 20):
            y = self.y(percent / 100)
            out.append(f'<line x1="{self.left:.1f}" x2="{self.left + self.width:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#000" '
                       'stroke-opacity="0.12"/>')
            out.append(f'<text x="{self.left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end" fill="#444">{percent} %</text>')
        for mib in range(int(self.low), int(self.high) + 1):
            out.append(f'<text x="{self.x(mib * 2**20):.1f}" y="{H - BOTTOM + 18}" text-anchor="middle" fill="#444">{mib}</text>')
        out.append(f'<text x="{self.left + self.width / 2:.1f}" y="{H - BOTTOM + 36}" text-anchor="middle" fill="#444">'
                   'MiB that the longest sequence really took</text>')
        y = self.y(self.fp16.share())
        out.append(f'<line x1="{self.left:.1f}" x2="{self.left + self.width:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#222" '
                   'stroke-dasharray="6 4"/>')
        out.append(f'<text x="{self.left + self.width:.1f}" y="{y - 5:.1f}" text-anchor="end" fill="#222">'
                   f'fp16: {self.fp16.peak_bytes() / 2**20:.1f} MiB</text>')
        return out

    def mark(self, point):
        result = point.result
        x, (low, high) = self.x(result.peak_bytes()), result.interval()
        colour = colour_of(point.name)
        fill = colour if point.reporting else "#ffffff"
        opacity = 1 if point.name in OURS else 0.75 if point.reporting else 0.45
        words = html.escape(f"{point.name}, {point.bits:g} bits: {result.solved()} of {result.total()}, "
                            f"{result.peak_bytes() / 2**20:.2f} MiB")
        radius = 5 if point.name in OURS else 3.5
        return (f'<g opacity="{opacity}"><title>{words}</title><line x1="{x:.1f}" x2="{x:.1f}" y1="{self.y(low):.1f}" '
                f'y2="{self.y(high):.1f}" stroke="{colour}" stroke-width="1.4"/><circle cx="{x:.1f}" '
                f'cy="{self.y(result.share()):.1f}" r="{radius}" fill="{fill}" stroke="{colour}" stroke-width="1.5"/></g>')

    def label(self, point, taken):
        """The name beside the mark, unless another name stands there."""
        x, y = self.x(point.result.peak_bytes()) + 7, self.y(point.result.share()) + 12
        width = 6.2 * len(point.name)
        if x + width > self.left + self.width:
            x -= width + 14
        if any(abs(y - other_y) < 11 and x < other_x + other_w and other_x < x + width for other_x, other_y, other_w in taken):
            return ""
        taken.append((x, y, width))
        return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" fill="{OURS.get(point.name, "#444")}">'
                f'{html.escape(point.name)}</text>')

    def svg(self):
        rest_first = sorted(self.points, key=lambda p: (p.name in OURS, p.reporting))
        taken = []
        return (self.axes() + [self.mark(p) for p in rest_first] +
                [self.label(p, taken) for p in reversed(rest_first) if p.result.share() < 0.985 or p.name in OURS])


class Point:
    def __init__(self, name, bits, result, reporting):
        self.name, self.bits, self.result, self.reporting = name, bits, result, reporting


def hard_points(results):
    """Levels 3 to 5: the reporting half where a setting was run on it, else the choosing half."""
    points = []
    for bits in (*rs.BUDGETS, min(rs.FIELD_BITS)):
        ours = (rs.PAPER, rs.BEST, *((rs.CHANNEL,) if bits < 4 else ())) if bits in rs.BUDGETS else ()
        for setting in (*ours, *rs.RIVALS.get(bits, ()), *rs.FIELD.get(bits, ()), *rs.EVICTING.get(bits, ())):
            late, hard = results.get(rs.LATE, bits, setting), results.get(rs.HARD, bits, setting)
            result = late or hard
            if result is not None and result.fits:
                points.append(Point(setting.name, bits, result, late is not None))
    return points


def long_points(results):
    found = [(s.name, bits, results.get(rs.LONG, bits, s)) for bits in rs.LONG_BUDGETS
             for s in rs.long_settings(bits) + rs.best_of_field(bits)]
    points = {(name, r.peak_bytes()): Point(name, bits, r, True) for name, bits, r in found if r is not None and r.fits}
    return list(points.values())


def picture(results):
    panels = [
        Panel(LEFT, WIDTHS[0], "Levels 3 to 5, chains up to 4,096 tokens", "filled: 120 problems of the reporting half; hollow: 105 of "
              "the choosing half", hard_points(results), results.get(rs.LATE, 16, rs.FP16)),
        Panel(LEFT + WIDTHS[0] + GAP, WIDTHS[1], "Level 6, chains up to 6,656 tokens", f"{rs.LONG.num_problems} problems of the reporting half",
              long_points(results), results.get(rs.LONG, 16, rs.FP16)),
    ]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{W}" height="{H}" viewBox="0 0 {W} {H}" '
           'font-family="sans-serif" font-size="12">', f'<rect width="{W}" height="{H}" fill="#ffffff"/>']
    for panel in panels:
        out += [line for line in panel.svg() if line]
    x = LEFT
    for name, colour in (*OURS.items(), ("other methods", RIVAL), ("methods that evict", EVICTING)):
        out.append(f'<circle cx="{x + 6}" cy="{H - 20}" r="5" fill="{colour}"/>')
        out.append(f'<text x="{x + 16}" y="{H - 16}" fill="#222">{name}</text>')
        x += 40 + 8 * len(name)
    out.append(f'<text x="{x}" y="{H - 16}" fill="#555">lines: 95 % intervals</text>')
    return "\n".join(out) + "\n</svg>\n"
