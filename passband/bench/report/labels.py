"""Places names beside the points of a chart so that none covers another or a marker.

A name stands next to its point where there is room, else farther off at the end of a thin line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]  # left, top, right, bottom
Segment = tuple[float, float, float, float]  # x1, y1, x2, y2

LETTER, ASCENT, DESCENT = 7.0, 10.5, 3.5  # of 12 px lettering, with wide fonts in mind
LONGEST = 22  # letters
REACH = 6.0  # half the side of a marker with its halo
RINGS = (16.0, 24.0, 34.0, 46.0, 60.0, 76.0, 94.0, 116.0, 142.0, 172.0)
ANGLES = 24


@dataclass(frozen=True)
class Label:
    """Where a name goes: place and anchor of its text, its box, and its line if it needs one."""

    text: str
    x: float
    y: float
    anchor: str
    box: Box
    leader: Segment | None = None


def place(
    names: Sequence[str], points: Sequence[tuple[float, float]], area: Box
) -> list[Label | None]:
    """A label for each point, in pixels; None only where the area has no room left at all."""
    crowd = [sum(math.dist(p, q) < 60 for q in points) for p in points]
    count = range(len(points))
    orders = [
        sorted(count, key=lambda i: (crowd[i], points[i])),
        sorted(count, key=lambda i: (-crowd[i], points[i])),
        sorted(count, key=lambda i: points[i]),
        sorted(count, key=lambda i: (-points[i][1], points[i][0])),
    ]
    # Beyond what can be read anyway, one order has to do.
    orders = orders if len(points) <= 40 else orders[:1]
    tries = [_in_order(order, names, points, area) for order in orders]
    return min(tries, key=_cost)


def _cost(labels: Sequence[Label | None]) -> float:
    """Length of all lines; a missing label is worse than any line."""
    cost = 0.0
    for label in labels:
        if label is None:
            cost += 1e4
        elif label.leader is not None:
            cost += math.dist(label.leader[:2], label.leader[2:]) + 20
    return cost


def _in_order(
    order: Sequence[int], names: Sequence[str], points: Sequence[tuple[float, float]], area: Box
) -> list[Label | None]:
    markers = [(x - REACH, y - REACH, x + REACH, y + REACH) for x, y in points]
    placed: list[Label | None] = [None] * len(points)
    for i in order:
        name = names[i]
        text = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
        placed[i] = _best(_candidates(text, *points[i]), i, markers, placed, area)
    return placed


def _best(
    candidates: Iterable[Label], own: int, markers: Sequence[Box], placed: Sequence[Label | None],
    area: Box,
) -> Label | None:
    """The first place that covers nothing, and whose line meets nothing if there is such a one."""
    names = [label.box for label in placed if label]
    lines = [label.leader for label in placed if label and label.leader]
    others = [box for j, box in enumerate(markers) if j != own] + names
    second = None
    for label in candidates:
        box, leader = label.box, label.leader
        if not _inside(box, area) or overlap(box, markers[own]):
            continue
        if any(overlap(box, other) for other in others):
            continue
        second = second or label
        if any(_crosses(line, box) for line in lines):
            continue
        if leader is None or not (
            any(_crosses(leader, other) for other in others)
            or any(_cross(leader, line) for line in lines)
        ):
            return label
    return second


def _candidates(text: str, x: float, y: float) -> Iterator[Label]:
    """Places for a text from the nearest on."""
    wide = LETTER * len(text)
    for at_x, at_y, anchor in (
        (x + 9, y + 4, "start"), (x - 9, y + 4, "end"), (x, y - 10, "middle"), (x, y + 18, "middle")
    ):
        yield Label(text, at_x, at_y, anchor, _box(at_x, at_y, anchor, wide))
    for radius in RINGS:
        for turn in range(ANGLES):
            # Sideways first: a line into a text's beginning or end reads best.
            angle = math.tau * turn / ANGLES
            across, down = math.cos(angle), math.sin(angle)
            end_x, end_y = x + radius * across, y + radius * down
            if abs(across) > 0.25:
                anchor = "start" if across > 0 else "end"
                at_x, at_y = end_x + math.copysign(3, across), end_y + 4
            else:
                anchor, at_x = "middle", end_x
                at_y = end_y - 4 if down < 0 else end_y + ASCENT + 1
            # From the marker's edge, not from its middle.
            leader = (x + REACH * across, y + REACH * down, end_x, end_y)
            yield Label(text, at_x, at_y, anchor, _box(at_x, at_y, anchor, wide), leader)


def _box(x: float, y: float, anchor: str, wide: float) -> Box:
    left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
    return (left, y - ASCENT, left + wide, y + DESCENT)


def _inside(box: Box, area: Box) -> bool:
    return (
        box[0] >= area[0] and box[1] >= area[1] and box[2] <= area[2] and box[3] <= area[3]
    )


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _crosses(line: Segment, box: Box) -> bool:
    """Whether a segment meets a box (Liang and Barsky's clipping)."""
    x1, y1, x2, y2 = line
    enter, leave = 0.0, 1.0
    sides = (
        (x1 - x2, x1 - box[0]), (x2 - x1, box[2] - x1),
        (y1 - y2, y1 - box[1]), (y2 - y1, box[3] - y1),
    )
    for step, room in sides:
        if step == 0:
            if room < 0:
                return False
        elif step < 0:
            enter = max(enter, room / step)
        else:
            leave = min(leave, room / step)
    return enter <= leave


def _cross(a: Segment, b: Segment) -> bool:
    """Whether two segments cross."""
    def side(s: Segment, x: float, y: float) -> float:
        return (s[2] - s[0]) * (y - s[1]) - (s[3] - s[1]) * (x - s[0])

    return side(a, *b[:2]) * side(a, *b[2:]) < 0 and side(b, *a[:2]) * side(b, *a[2:]) < 0
