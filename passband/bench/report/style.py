"""One look for every picture: colours of the report, and matplotlib drawn for light and dark.

    with picture(7.2, 3.0) as fig:
        axes = fig.subplots()
        axes.plot(x, y, color=ACCENT)
        save(fig, folder / "solution.svg")

An SVG takes the colour of the text around it (everything drawn in INK becomes `currentColor`, the
background is transparent); a PNG gets an opaque light card.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passband.bench.results import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# (light, dark) pairs: told apart by people with colour-blindness, 3:1 or more on their background.
PALETTE: tuple[tuple[str, str], ...] = (
    ("#1b6ca8", "#6cb4ee"),  # blue
    ("#c8501a", "#f2905a"),  # vermilion
    ("#0b7f64", "#3ec9a5"),  # bluish green
    ("#9a4189", "#dd94cd"),  # purple
    ("#96700a", "#e0b84a"),  # ochre
    ("#3c93c9", "#a5dafa"),  # sky
    ("#8a2f41", "#e08a98"),  # wine
    ("#646a73", "#aab0b8"),  # grey
)
DASHES: tuple[str, ...] = ("", "7 3", "2 3", "9 3 2 3", "4 2")
MARKERS: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "nabla", "cross", "plus")

INK = "#1d2329"  # text and axes
ACCENT = "#2b83c4"  # the main curve; readable on light and on dark
SECOND = "#d9662b"  # the curve it is compared with
CARD = "#fbfaf7"  # background of PNG pictures
SIGNED = "RdBu_r"  # colour map of signed fields
POSITIVE = "magma"  # colour map of errors

_RC: dict[str, Any] = {
    "font.family": "sans-serif", "font.size": 10.0, "axes.titlesize": 10.5,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8.0,
    "axes.labelsize": 9.5, "xtick.labelsize": 9.0, "ytick.labelsize": 9.0, "legend.fontsize": 9.0,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "grid.color": INK, "grid.alpha": 0.13,
    "grid.linewidth": 0.7, "axes.grid": True, "axes.axisbelow": True,
    "axes.linewidth": 0.7, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.major.size": 3.0, "ytick.major.size": 3.0, "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0, "lines.linewidth": 1.4, "lines.solid_capstyle": "round",
    "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none", "svg.fonttype": "none", "path.simplify": True,
    "axes.formatter.use_mathtext": False, "axes.unicode_minus": True,
}


@contextmanager
def picture(width: float, height: float) -> Iterator[Figure]:
    """A figure in the house style, sizes in inches. It never touches pyplot's global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):  # type: ignore[arg-type]
        yield Figure(figsize=(width, height), layout="constrained")


def save(fig: Figure, path: Path) -> Path:
    """Write an .svg (adapts to light and dark) or a .png (opaque card), all or nothing."""
    buffer = io.BytesIO()
    if path.suffix == ".svg":
        facts = {"Date": None, "Creator": None, "Format": None, "Type": None}
        fig.savefig(buffer, format="svg", transparent=True, dpi=100, metadata=facts)
        payload = _adapt(buffer.getvalue().decode("utf-8")).encode("utf-8")
    else:
        fig.savefig(buffer, format="png", facecolor=CARD, dpi=160)
        payload = buffer.getvalue()
    write_atomic(path, payload)
    return path


def _adapt(svg: str) -> str:
    """Ink becomes the colour of the text around; the font becomes the reader's own."""
    svg = re.sub(re.escape(INK), "currentColor", svg, flags=re.IGNORECASE)
    # Unstyled paths and text are black in SVG: give the root the reader's colour.
    svg = svg.replace("<svg ", '<svg fill="currentColor" ', 1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg)
    return re.sub(r"(font: [^;\"']*?[\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
