"""The table of `passband list`, without Rich: importing Rich would take half of its time."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from passband.cli.output import PIPE_WIDTH

if TYPE_CHECKING:
    from passband.catalog import Card

NARROWEST = 24  # columns for the summary


def show_cards(cards: Sequence[Card], states: Mapping[str, str]) -> None:
    """Id, family, verbs, summary and state of the claims, the summary wrapped to what is left."""
    head = ("id", "family", "verbs", "summary", "claims")
    rows = [(c.id, c.family, ", ".join(c.verbs), c.summary, states[c.id]) for c in cards]
    width = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    total = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns
    width[3] = min(width[3], max(NARROWEST, total - sum(width) + width[3] - 2 * len(head)))
    rule = tuple("-" * w for w in width)
    lines = []
    for row in (head, rule, *rows):
        parts = textwrap.wrap(row[3], width[3]) if row is not rule else [row[3]]
        for i, part in enumerate(parts or [""]):
            cells = (*row[:3], part, row[4]) if i == 0 else ("", "", "", part, "")
            lines.append("  ".join(f"{c:<{w}}" for c, w in zip(cells, width, strict=True)).rstrip())
    sys.stdout.write("\n".join(lines) + "\n")
