"""Small charts as hand-written SVG: they follow the page's fonts, colours, light and dark.

Series colours are the CSS variables --s0, --s1, ... of the page; every series also has its own
marker and dash, so that nothing rests on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from passband.bench.report.style import DASHES, MARKERS, PALETTE

WIDTH, HEIGHT = 360.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 12.0, 12.0, 44.0
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Series:
    """Points of one system; `style` numbers its colour, marker and dash."""

    name: str
    style: int
    lines: list[list[tuple[float, float]]] = field(default_factory=list)  # one per seed


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, linear or logarithmic."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], log: bool, start: float, end: float) -> Axis:
        low, high = min(values), max(values)
        if log:
            a, b = math.log10(low), math.log10(high)
            pad = max(0.06 * (b - a), 0.12)
            return cls(10 ** (a - pad), 10 ** (b + pad), True, start, end)
        pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low - pad, high + pad, False, start, end)

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        if not self.log:
            return _nice(self.low, self.high, most)
        a, b = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        if b - a >= 1:
            step = max(1, math.ceil((b - a) / (most - 1)))
            return [10.0**k for k in range(a, b + 1) if (k - b) % step == 0]
        tens = 10.0 ** (a - 1)
        marks = [m * tens for m in (1, 2, 5, 10, 20, 50, 100, 200, 500)]
        inside = [m for m in marks if self.low <= m <= self.high]
        return inside if len(inside) > 1 else _nice(self.low, self.high, 4)


    def labels(self, most: int = 6) -> list[tuple[float, str]]:
        """Ticks with texts of one kind: all plain, or all powers of ten."""
        ticks = self.ticks(most)
        powers = [math.log10(t) if self.log else math.nan for t in ticks]
        decades = all(abs(p - round(p)) < 1e-9 for p in powers if p == p)
        if not self.log or not decades or all(-2 <= p < 4 for p in powers):
            return [(t, tick_text(t)) for t in ticks]
        return [(t, f"10{str(round(p)).translate(SUPERSCRIPT)}" if round(p) else "1")
                for t, p in zip(ticks, powers, strict=True)]


def _nice(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / max(most - 1, 1)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= raw)
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step) + 1)]


def tick_text(value: float) -> str:
    """
    >>> tick_text(1e-6), tick_text(0.05), tick_text(300.0)
    ('10⁻⁶', '0.05', '300')
    """
    if value == 0 or 1e-2 <= abs(value) < 1e4:
        return f"{value:.6g}".replace("-", "−")
    power = math.floor(math.log10(abs(value)) + 1e-9)
    lead = value / 10.0**power
    prefix = "" if math.isclose(lead, 1.0) else f"{lead:.2g}·".replace("-", "−")
    return f"{prefix}10{str(power).translate(SUPERSCRIPT)}"


def colour(style: int) -> str:
    return f"var(--s{style % len(PALETTE)})"


def _marker(style: int, x: float, y: float, r: float = 4.2) -> str:
    """A marker with a halo in the page's colour, so that overlapping ones stay apart."""
    shape = MARKERS[style % len(MARKERS)]
    paths = {
        "square": f"M{-r:.1f},{-r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z",
        "triangle": f"M0,{-1.25 * r:.1f}L{1.2 * r:.1f},{0.85 * r:.1f}H{-1.2 * r:.1f}z",
        "diamond": f"M0,{-1.4 * r:.1f}L{1.4 * r:.1f},0L0,{1.4 * r:.1f}L{-1.4 * r:.1f},0z",
        "nabla": f"M0,{1.25 * r:.1f}L{1.2 * r:.1f},{-0.85 * r:.1f}H{-1.2 * r:.1f}z",
    }
    at = f'transform="translate({x:.1f},{y:.1f})"'
    if shape == "circle":
        return f'<circle {at} r="{r}" class="mark" fill="{colour(style)}"/>'
    if shape in paths:
        return f'<path {at} d="{paths[shape]}" class="mark" fill="{colour(style)}"/>'
    turn = ' rotate(45)"' if shape == "cross" else '"'
    d = f"M{-1.3 * r:.1f},0H{1.3 * r:.1f}M0,{-1.3 * r:.1f}V{1.3 * r:.1f}"
    return f'<path {at[:-1]}{turn} d="{d}" class="stroke" stroke="{colour(style)}"/>'


def swatch(style: int) -> Markup:
    """The line and marker of a series, for tables and legends."""
    line = (f'<path d="M1,8H27" stroke="{colour(style)}" stroke-width="2" fill="none" '
            f'stroke-dasharray="{DASHES[style % len(DASHES)]}"/>')
    return Markup(f'<svg class="swatch" viewBox="0 0 28 16" aria-hidden="true">{line}'
                  f'{_marker(style, 14, 8)}</svg>')


class _Frame:
    """Axes with grid, tick labels and names."""

    def __init__(self, points: Sequence[tuple[float, float]], log: tuple[bool, bool]) -> None:
        self.x = Axis.over([p[0] for p in points], log[0], LEFT, WIDTH - RIGHT)
        self.y = Axis.over([p[1] for p in points], log[1], HEIGHT - BOTTOM, TOP)

    def draw(self, x_name: str, y_name: str) -> str:
        floor = HEIGHT - BOTTOM
        out = ['<g class="grid">']
        out += [f'<path d="M{self.x(t):.1f},{TOP}V{floor}"/>' for t in self.x.ticks(5)]
        out += [f'<path d="M{LEFT},{self.y(t):.1f}H{WIDTH - RIGHT}"/>' for t in self.y.ticks(6)]
        out += [f'</g><path class="axis" d="M{LEFT},{TOP}V{floor}H{WIDTH - RIGHT}"/>']
        out += [f'<text x="{self.x(t):.1f}" y="{floor + 16}" text-anchor="middle">{text}</text>'
                for t, text in self.x.labels(5)]
        out += [f'<text x="{LEFT - 7}" y="{self.y(t) + 4:.1f}" text-anchor="end">{text}</text>'
                for t, text in self.y.labels(6)]
        out.append(f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" '
                   f'text-anchor="middle">{escape(x_name)}</text>')
        middle = (TOP + floor) / 2
        out.append(f'<text class="name" text-anchor="middle" '
                   f'transform="translate(13,{middle}) rotate(-90)">{escape(y_name)}</text>')
        return "".join(out)


def _svg(label: str, body: str) -> Markup:
    return Markup(f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
                  f'aria-label="{escape(label)}">{body}</svg>')


def curves(series: Sequence[Series], y_name: str, *, log_y: bool) -> Markup | None:
    """Error against seconds, one line per seed; None when there is nothing to draw."""
    kept = [
        Series(s.name, s.style, lines)
        for s in series
        if (lines := [line for raw in s.lines if (line := _drawable(raw, log_y))])
    ]
    points = [p for s in kept for line in s.lines for p in line]
    if not points:
        return None
    frame = _Frame(points, (True, log_y))
    parts = [frame.draw("seconds", y_name)]
    for s in kept:
        parts.append(f'<g class="series" data-series="{s.style}"><title>{escape(s.name)}</title>')
        for number, line in enumerate(s.lines):
            d = "L".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in _thin(line))
            faint = "" if number == 0 else ' opacity="0.45"'
            parts.append(
                f'<path class="line" d="M{d}" stroke="{colour(s.style)}"{faint} '
                f'stroke-dasharray="{DASHES[s.style % len(DASHES)]}"/>'
            )
            parts.append(_marker(s.style, frame.x(line[-1][0]), frame.y(line[-1][1])))
        parts.append("</g>")
    names = ", ".join(s.name for s in kept)
    return _svg(f"{y_name} against seconds for {names}", "".join(parts))


def pareto(
    points: Sequence[tuple[str, int, float, float]], x_name: str, y_name: str, *,
    log_y: bool, better: str,
) -> Markup | None:
    """Quality against cost, (name, style, cost, quality), with the front of the best."""
    kept = [p for p in points if _drawable([(p[2], p[3])], log_y)]
    if len(kept) < 2:
        return None
    frame = _Frame([(p[2], p[3]) for p in kept], (True, log_y))
    parts = [frame.draw(x_name, y_name)]
    front = _front([(p[2], p[3]) for p in kept], better)
    steps = f"M{frame.x(front[0][0]):.1f},{frame.y(front[0][1]):.1f}" + "".join(
        f"H{frame.x(x):.1f}V{frame.y(y):.1f}" for x, y in front[1:]
    ) + f"H{WIDTH - RIGHT}"
    parts.append(f'<path class="front" d="{steps}"/>')
    taken = [(frame.x(x) - 6, frame.y(y) - 6, frame.x(x) + 6, frame.y(y) + 6)
             for _, _, x, y in kept]
    for name, style, x, y in kept:
        at_x, at_y = frame.x(x), frame.y(y)
        parts.append(
            f'<g class="series" data-series="{style}">'
            f"<title>{escape(name)}: {tick_text(_three(y))} at {tick_text(_three(x))}</title>"
            f"{_marker(style, at_x, at_y, 5)}{_label(name, at_x, at_y, taken)}</g>"
        )
    names = ", ".join(p[0] for p in kept)
    return _svg(f"{y_name} against {x_name} for {names}", "".join(parts))


def _label(name: str, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> str:
    """The name beside its point where there is room; none where it would cover another."""
    text = name if len(name) <= 22 else name[:21] + "…"
    wide = 6.4 * len(text)
    places = (
        (x + 9, y + 4, "start", x + 9), (x - 9, y + 4, "end", x - 9 - wide),
        (x, y - 10, "middle", x - wide / 2), (x, y + 18, "middle", x - wide / 2),
    )
    for at_x, at_y, anchor, left in places:
        box = (left, at_y - 11, left + wide, at_y + 3)
        inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
        if inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            return (f'<text class="direct" x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}">'
                    f"{escape(text)}</text>")
    return ""


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _front(points: Sequence[tuple[float, float]], better: str) -> list[tuple[float, float]]:
    """The points that no other beats in both cost and quality, by cost."""
    sign = 1 if better == "lower" else -1
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], sign * p[1])):
        if not front or sign * y < sign * front[-1][1]:
            front.append((x, y))
    return front


def _drawable(line: Sequence[tuple[float, float]], log_y: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in line
            if math.isfinite(x) and math.isfinite(y) and x > 0 and (y > 0 or not log_y)]


def _thin(line: Sequence[tuple[float, float]], most: int = 160) -> list[tuple[float, float]]:
    """At most `most` points, spread evenly over the drawn (logarithmic) time; ends are kept."""
    if len(line) <= most:
        return list(line)
    a, b = math.log(line[0][0]), math.log(line[-1][0])
    cells: dict[int, tuple[float, float]] = {}
    for point in line:
        share = (math.log(point[0]) - a) / (b - a) if b > a else 0.0
        cells.setdefault(int(share * (most - 2)), point)
    return [*cells.values(), line[-1]]


def _three(value: float) -> float:
    return float(f"{value:.3g}")


def interval_glyph(
    effect: float | None, low: float | None, high: float | None, margin: float | None,
    better: str, label: str,
) -> Markup | None:
    """Interval and mean against the margin; the side where the claim holds is shaded."""
    values = [v for v in (effect, low, high, margin) if v is not None and math.isfinite(v)]
    if effect is None or margin is None or len(values) < 2:
        return None
    low, high = (effect if v is None or not math.isfinite(v) else v for v in (low, high))
    log = min(values) > 0 and max(values) / min(values) > 8
    scale = Axis.over(values, log, 6, 194)
    if not log and max(values) == min(values):
        scale = Axis(min(values) - 1, max(values) + 1, False, 6, 194)
    at = scale(margin)
    left, right = (6.0, at) if better == "lower" else (at, 194.0)
    sign = "<" if better == "lower" else ">"
    anchor = "end" if at > 150 else "start" if at < 50 else "middle"
    body = (
        f'<rect class="good" x="{left:.1f}" y="5" width="{right - left:.1f}" height="18" rx="2"/>'
        '<path class="rail" d="M6,14H194"/>'
        f'<path class="margin" d="M{at:.1f},2V26"/>'
        f'<path class="range" d="M{scale(low):.1f},14H{scale(high):.1f}'
        f'M{scale(low):.1f},9V19M{scale(high):.1f},9V19"/>'
        f'<circle class="mean" cx="{scale(effect):.1f}" cy="14" r="4.2"/>'
        f'<text x="{at:.1f}" y="38" text-anchor="{anchor}">holds {escape(sign)} '
        f"{tick_text(_three(margin))}</text>"
    )
    return Markup(f'<svg class="glyph" viewBox="0 0 200 42" role="img" '
                  f'aria-label="{escape(label)}">{body}</svg>')
