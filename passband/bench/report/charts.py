"""Small charts as hand-written SVG: they follow the page's fonts, colours, light and dark.

Series colours are the CSS variables --s0, --s1, ... of the page; every series also has its own
marker and dash, so that nothing rests on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from passband.bench.report.labels import place
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
class Measure:
    """What an axis of `pareto` shows."""

    name: str
    better: str  # "lower" or "higher"
    log: bool = False


@dataclass(frozen=True)
class Span:
    """A mean and the ends of its error bar; both the mean where there is no bar."""

    value: float
    low: float
    high: float

    def drawable(self, log: bool) -> tuple[float, float, float]:
        """(low, value, high); a bar that a logarithm can't draw goes down by as much as up."""
        low = self.low if not log or self.low > 0 else self.value**2 / self.high
        return (low, self.value, self.high)


@dataclass(frozen=True)
class Point:
    """A system in `pareto`; `style` numbers its colour and marker."""

    name: str
    style: int
    x: Span
    y: Span


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

    def __init__(
        self, points: Sequence[tuple[float, float]], log: tuple[bool, bool], height: float = HEIGHT
    ) -> None:
        self.height = height
        self.x = Axis.over([p[0] for p in points], log[0], LEFT, WIDTH - RIGHT)
        self.y = Axis.over([p[1] for p in points], log[1], height - BOTTOM, TOP)

    def draw(self, x_name: str, y_name: str) -> str:
        floor = self.height - BOTTOM
        out = ['<g class="grid">']
        out += [f'<path d="M{self.x(t):.1f},{TOP}V{floor}"/>' for t in self.x.ticks(5)]
        out += [f'<path d="M{LEFT},{self.y(t):.1f}H{WIDTH - RIGHT}"/>' for t in self.y.ticks(6)]
        out += [f'</g><path class="axis" d="M{LEFT},{TOP}V{floor}H{WIDTH - RIGHT}"/>']
        out += [f'<text x="{self.x(t):.1f}" y="{floor + 16}" text-anchor="middle">{text}</text>'
                for t, text in self.x.labels(5)]
        out += [f'<text x="{LEFT - 7}" y="{self.y(t) + 4:.1f}" text-anchor="end">{text}</text>'
                for t, text in self.y.labels(6)]
        out.append(f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{self.height - 6:g}" '
                   f'text-anchor="middle">{escape(x_name)}</text>')
        middle = (TOP + floor) / 2
        out.append(f'<text class="name" text-anchor="middle" '
                   f'transform="translate(13,{middle}) rotate(-90)">{escape(y_name)}</text>')
        return "".join(out)


def _svg(label: str, body: str, height: float = HEIGHT) -> Markup:
    return Markup(f'<svg class="chart" viewBox="0 0 {WIDTH:g} {height:g}" role="img" '
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


def pareto(points: Sequence[Point], x: Measure, y: Measure) -> Markup | None:
    """One thing against another, a labelled point each, with the front that no other beats.

    None with fewer than two points. An axis is logarithmic where its measure asks for it and every
    point allows it.
    """
    kept = [p for p in points if math.isfinite(p.x.value) and math.isfinite(p.y.value)]
    if len(kept) < 2:
        return None
    log = (x.log and min(p.x.value for p in kept) > 0, y.log and min(p.y.value for p in kept) > 0)
    height = HEIGHT + min(130.0, 12.0 * max(0, len(kept) - 6))  # more names need more room
    ends = [
        (across, up) for p in kept
        for across in p.x.drawable(log[0]) for up in p.y.drawable(log[1])
    ]
    frame = _Frame(ends, log, height)
    parts = [frame.draw(_directed(x, WIDTH), _directed(y, height))]
    parts.append(f'<path class="front" d="{_staircase(frame, kept, x, y)}"/>')
    for p in kept:
        at_x, at_y = frame.x(p.x.value), frame.y(p.y.value)
        (left, _, right), (low, _, high) = p.x.drawable(log[0]), p.y.drawable(log[1])
        bars = f"M{frame.x(left):.1f},{at_y:.1f}H{frame.x(right):.1f}" if left < right else ""
        bars += f"M{at_x:.1f},{frame.y(low):.1f}V{frame.y(high):.1f}" if low < high else ""
        drawn = f'<path class="bars" d="{bars}" stroke="{colour(p.style)}"/>' if bars else ""
        parts.append(
            f'<g class="series" data-series="{p.style}">'
            f"<title>{escape(p.name)}: {tick_text(_three(p.y.value))} at "
            f"{tick_text(_three(p.x.value))}</title>{drawn}{_marker(p.style, at_x, at_y, 5)}</g>"
        )
    # Names after all markers: nothing is drawn over them.
    places = [(frame.x(p.x.value), frame.y(p.y.value)) for p in kept]
    area = (LEFT + 2, 1.0, WIDTH - 1, height - BOTTOM - 1)
    for p, label in zip(kept, place([p.name for p in kept], places, area), strict=True):
        if label is None:
            continue
        line = ""
        if label.leader is not None:
            x1, y1, x2, y2 = label.leader
            line = f'<path class="leader" d="M{x1:.1f},{y1:.1f}L{x2:.1f},{y2:.1f}"/>'
        parts.append(
            f'<g class="series" data-series="{p.style}">{line}<text class="direct" '
            f'x="{label.x:.1f}" y="{label.y:.1f}" text-anchor="{label.anchor}">'
            f"{escape(label.text)}</text></g>"
        )
    names = ", ".join(p.name for p in kept)
    better = f"better is {y.better} {y.name} and {x.better} {x.name}"
    return _svg(f"{y.name} against {x.name} for {names}; {better}", "".join(parts), height)


def _directed(measure: Measure, room: float) -> str:
    """An axis's name with the arrow to the better side; the y axis is turned, its arrow with it."""
    words = ("\u2190 better", "better \u2192")[measure.better == "higher"]
    if 6.6 * (len(measure.name) + len(words) + 3) > room - LEFT - RIGHT:
        words = words.replace("better", "").strip()
    return f"{measure.name} \u2002{words}"


def _staircase(frame: _Frame, points: Sequence[Point], x: Measure, y: Measure) -> str:
    """Between the points of the front only what they give can be had: steps, not slopes."""
    front = front_of([(p.x.value, p.y.value) for p in points], x.better, y.better)
    at = [(frame.x(a), frame.y(b)) for a, b in front]
    steps = "".join(f"H{a:.1f}V{b:.1f}" for a, b in at[1:])
    edge = WIDTH - RIGHT if x.better == "lower" else LEFT
    return f"M{at[0][0]:.1f},{at[0][1]:.1f}{steps}H{edge:g}"


def front_of(
    points: Sequence[tuple[float, float]], x_better: str, y_better: str
) -> list[tuple[float, float]]:
    """The points that no other beats, from the best x on.

    >>> front_of([(1, 5), (2, 7), (3, 1)], "lower", "lower")
    [(1, 5), (3, 1)]
    """
    across, up = (1 if better == "lower" else -1 for better in (x_better, y_better))
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (across * p[0], up * p[1])):
        if not front or up * y < up * front[-1][1]:
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
