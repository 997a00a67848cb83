"""Heat maps: |cosine| of tuned (rows) and base singular vectors (columns), leading ones first.

Full fine-tuning leaves a bright diagonal. An intruder is a dark row that shifts the diagonal below
it; rows are marked at the left edge where the report counts one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from passband.bench.report.style import POSITIVE, SECOND, picture, save
from passband.tuning.intruder_dims.report import LayerReport, Report

COLUMNS, ROWS = 4, 6  # maps of a page


def draw_heat_maps(report: Report, folder: Path, title: str = "similarity") -> list[Path]:
    """PNG pages of heat maps, `title`-1.png and so on; [] where the report has no similarities."""
    shown = [layer for layer in report.layers if layer.similarity is not None]
    folder.mkdir(parents=True, exist_ok=True)
    size = COLUMNS * ROWS
    pages = [shown[i : i + size] for i in range(0, len(shown), size)]
    return [
        _page(page, folder / f"{title}-{number}.png") for number, page in enumerate(pages, start=1)
    ]


def _page(layers: Sequence[LayerReport], path: Path) -> Path:
    columns = min(COLUMNS, len(layers))
    rows = -(-len(layers) // columns)
    with picture(2.6 * columns, 2.7 * rows + 0.3) as fig:
        grid = fig.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(layers) :]:
            axes.set_axis_off()
        for axes, layer in zip(grid.flat, layers, strict=False):
            assert layer.similarity is not None
            image = axes.imshow(
                layer.similarity.numpy(), vmin=0, vmax=1, cmap=POSITIVE, interpolation="nearest",
                aspect="auto",
            )
            axes.grid(visible=False)
            axes.set_title(_short(layer.name), fontsize=7)
            at = [i.position for i in layer.intruders if i.position < len(layer.similarity)]
            axes.plot([-0.5] * len(at), at, ">", color=SECOND, markersize=4, clip_on=False)
        fig.supxlabel("base vector", fontsize=9)
        fig.supylabel("tuned vector", fontsize=9)
        fig.colorbar(image, ax=grid, label="|cosine|", shrink=0.7)
        save(fig, path)
    return path


def _short(name: str, most: int = 34) -> str:
    name = name.removesuffix(".weight")
    return name if len(name) <= most else f"...{name[3 - most :]}"
