"""Pictures of one adapted model for the report: where its weights changed, and what leads there.

    draw(system, data, folder)      artifacts (SVG and a table)
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from passband.bench.report.style import picture, save
from passband.bench.results import write_atomic
from passband.bench.task import Artifact, Data
from passband.parts.edits import Edit
from passband.tuning.tuner import Tuner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST = 20  # rows of the table


def draw(system: Tuner, data: Data[Any], folder: Path) -> list[Artifact]:
    """The relative change of each matrix by block and kind; the largest changes as a table."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: p.detach() for n, p in data.train.model().named_parameters()}
    changes = relative_changes(system.fitted(), weights)
    if not changes:
        return []
    with picture(7.0, 0.55 + 0.32 * len({_kind(n) for n in changes})) as figure:
        _heat(figure, changes)
        save(figure, folder / "change.svg")
    rows = sorted(changes.items(), key=lambda item: -item[1])[:LARGEST]
    table = {"columns": ["tensor", "|dW| / |W|"], "rows": [[n, f"{v:.3g}"] for n, v in rows]}
    write_atomic(folder / "changes.json", json.dumps(table).encode())
    return [
        Artifact(
            "image", "Where the weights changed", "change.svg",
            "Frobenius norm of the change over that of the weight, by block and kind of tensor; "
            "blank: untouched.",
        ),
        Artifact("table", "Largest changes", "changes.json", "relative to the pretrained weight"),
    ]


def relative_changes(edit: Edit, weights: dict[str, Any]) -> dict[str, float]:
    """|dW|_F / |W|_F by name, fresh heads left out; inf where a zero tensor changed."""
    found = {}
    for name, change in edit.changes.items():
        if change.kind == "replace":
            continue
        size = float(weights[name].float().norm())
        moved = float(change.delta(weights[name]).norm())
        if moved:
            found[name] = moved / size if size else float("inf")
    return found


def _kind(name: str) -> str:
    """A tensor's name without the number of its block.

    >>> _kind("model.layers.3.self_attn.q_proj.weight")
    'self_attn.q_proj'
    """
    inside = re.split(r"\.\d+\.", name, maxsplit=1)[-1]
    return inside.removesuffix(".weight")


def _block(name: str) -> int:
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else -1


def _heat(figure: Figure, changes: dict[str, float]) -> None:
    kinds = list(dict.fromkeys(_kind(n) for n in changes))
    blocks = sorted({_block(n) for n in changes})
    values = np.full((len(kinds), len(blocks)), np.nan)
    for name, value in changes.items():
        values[kinds.index(_kind(name)), blocks.index(_block(name))] = value
    finite = np.where(np.isfinite(values), values, np.nan)
    axes = figure.subplots()
    image = axes.imshow(finite, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xticks(range(len(blocks)), [str(b) if b >= 0 else "outside" for b in blocks])
    axes.set_xlabel("block")
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="|dW| / |W|")
