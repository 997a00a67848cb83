"""Distances between domains as coloured squares.

    heatmaps({"||g_e - g_f||": matrix, ...}, names, path)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from passband.bench.report.style import picture, save


def heatmaps(matrices: Mapping[str, Tensor], names: Sequence[str], path: Path) -> Path:
    """One square [E, E] beside the other, figures in the cells."""
    with picture(3.4 * len(matrices) + 1.2, 3.2) as fig:
        for axes, (title, matrix) in zip(
            fig.subplots(1, len(matrices), squeeze=False)[0], matrices.items(), strict=True
        ):
            top = max(float(matrix.max()), 1e-12)
            axes.imshow(matrix.numpy(), cmap="Blues", vmin=0, vmax=top)
            for e in range(len(names)):
                for f in range(len(names)):
                    dark = float(matrix[e, f]) > 0.5 * top
                    axes.text(f, e, f"{float(matrix[e, f]):.2g}", ha="center", va="center",
                              fontsize=8, color="white" if dark else "#30343a")
            axes.set_xticks(range(len(names)), [_short(n) for n in names], rotation=20, fontsize=7)
            axes.set_yticks(range(len(names)), [_short(n) for n in names], fontsize=7)
            axes.set_title(title, fontsize=9)
            axes.grid(visible=False)
        return save(fig, path)


def _short(name: str) -> str:
    return name if len(name) <= 22 else name[:21] + "…"
