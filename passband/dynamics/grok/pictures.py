"""Pictures: IPR of the neurons, pruning curves, the plane of phases, a diagram of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from passband.bench.report.style import ACCENT, INK, PALETTE, picture, save
from passband.bench.task import Artifact
from passband.data.modular import UNKNOWN, Modular
from passband.dynamics.grok.model import QuadraticMLP
from passband.dynamics.grok.neurons import Neurons, neuron_table, order_of
from passband.dynamics.grok.pruning import PruneCurve, prune_curve
from passband.dynamics.grok.sweep import PHASES, Run, phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from passband.dynamics.grok.system import Grok

POINTS = 80  # of a pruning curve
SHOWN = 12  # neurons of the table
# One colour a split, one a phase, in the report's palette.
SPLITS = {"corrupt": PALETTE[1][0], "clean": PALETTE[0][0], "test": PALETTE[2][0]}
COLOURS = dict(zip(PHASES, (PALETTE[i][0] for i in (1, 5, 4, 2, 7, 3)), strict=True))
NAMES = {"corrupt": "corrupted labels", "clean": "clean labels", "test": "test"}


def draw(system: Grok, data: Modular, folder: Path) -> list[Artifact]:
    """Pictures and a table of one result; of a network without two layers the phase alone."""
    folder.mkdir(parents=True, exist_ok=True)
    predicted = torch.from_numpy(system.complete(data.pairs))
    found = data.accuracies(predicted)
    artifacts = []
    if "test" in found:
        artifacts.append(_phases(found, data, folder))
    network = system.network
    if not isinstance(network, QuadraticMLP):
        return artifacts
    reorder = order_of(data)
    neurons = neuron_table(network, reorder)
    with picture(4.6, 2.8) as fig:
        histogram(fig.subplots(), neurons)
        save(fig, folder / "ipr.svg")
    curves = [
        prune_curve(network, order, data, reorder=reorder, points=POINTS)
        for order in ("low", "high")
    ]
    with picture(7.2, 3.0) as fig:
        pruning(fig, curves)
        save(fig, folder / "pruning.svg")
    _table(neurons, folder / "neurons.json")
    return [
        *artifacts,
        Artifact(
            "image", "Inverse participation ratio of the neurons", "ipr.svg",
            "1: a neuron with one frequency, which generalises; low: one that memorises",
        ),
        Artifact(
            "image", "Accuracy as neurons are pruned", "pruning.svg",
            "those of low IPR first (left), of high IPR first (right)",
        ),
        Artifact("table", "Neurons, from the highest IPR to the lowest", "neurons.json"),
    ]


def histogram(axes: Axes, neurons: Neurons, bins: int = 30) -> None:
    """Neurons by IPR."""
    axes.hist(neurons.ipr.numpy(), bins=bins, range=(0, 1), color=ACCENT)
    axes.set(xlabel="inverse participation ratio", ylabel="neurons", xlim=(0, 1))


def pruning(fig: Figure, curves: Sequence[PruneCurve]) -> None:
    """Curves side by side, low IPR first and high IPR first."""
    panels = fig.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, curve, title in zip(panels, curves, ("low IPR first", "high IPR first"), strict=True):
        share = curve.pruned / len(curve.order)
        for name, colour in SPLITS.items():
            if name in curve.accuracy:
                axes.plot(share, 100 * curve.accuracy[name], color=colour, label=NAMES[name])
        axes.set(xlabel="neurons pruned", title=title, xlim=(0, 1))
        axes.xaxis.set_major_formatter(_percent)
    panels[0].set(ylabel="accuracy (%)")
    panels[0].legend(loc="center left")


def plane(axes: Axes, xi: float, classes: int) -> None:
    """Phases over the plane of training and test accuracy; what is in between stays blank."""
    levels = np.linspace(0, 1, 201)
    kinds = [[PHASES.index(phase(x, y, xi, classes)) for x in levels] for y in levels]
    named = np.array(kinds)
    _image(axes, np.where(named == PHASES.index("in between"), -1, named), (0, 100, 0, 100))
    axes.set(xlabel="training accuracy (%)", ylabel="test accuracy (%)")


def phase_diagram(axes: Axes, runs: Sequence[Run]) -> None:
    """The phase of each run of a `grid` over alpha and xi; the last of several seeds is shown.

    >>> from matplotlib.figure import Figure
    >>> from passband.dynamics.grok.sweep import grid, sweep
    >>> runs = sweep(grid(p=11, neurons=16, steps=3, alpha=[0.5, 0.7], xi=[0.0, 0.2]))
    >>> phase_diagram(Figure().subplots(), runs)
    """
    alphas = sorted({run.setting.alpha for run in runs})
    shares = sorted({run.setting.xi for run in runs})
    kinds = np.full((len(shares), len(alphas)), -1)
    for run in runs:
        place = shares.index(run.setting.xi), alphas.index(run.setting.alpha)
        kinds[place] = PHASES.index(run.phase)
    _image(axes, kinds, None)
    axes.set_xticks(range(len(alphas)), [f"{a:g}" for a in alphas])
    axes.set_yticks(range(len(shares)), [f"{x:g}" for x in shares])
    axes.set(xlabel="known share of the table", ylabel="share of random labels")


def _image(axes: Axes, kinds: np.ndarray, extent: Any) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    colours = np.array([to_rgba(COLOURS[name], 0.55) for name in PHASES] + [(0, 0, 0, 0)])
    axes.imshow(colours[kinds], origin="lower", extent=extent, aspect="auto")
    axes.grid(visible=False)
    there = [Patch(color=to_rgba(COLOURS[PHASES[k]], 0.55), label=PHASES[k])
             for k in np.unique(kinds) if k >= 0]
    axes.legend(handles=there, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _phases(found: dict[str, float], data: Modular, folder: Path) -> Artifact:
    name = phase(found["train"], found["test"], data.xi, data.classes)
    with picture(5.2, 3.0) as fig:
        axes = fig.subplots()
        plane(axes, data.xi, data.classes)
        axes.plot(
            100 * found["train"], 100 * found["test"], "o", color=INK, markersize=8,
            clip_on=False, zorder=5,
        )
        save(fig, folder / "phase.svg")
    caption = (
        f"{name}: {found['train']:.1%} of the training labels as given, {found['test']:.1%} of the "
        "pairs held back"
    )
    return Artifact("image", "Phase", "phase.svg", caption)


def _table(neurons: Neurons, path: Path) -> None:
    order = neurons.ipr.argsort(descending=True)
    picked = order[torch.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().long()]
    rows = neurons.rows()
    columns = ["neuron", "ipr", "frequency_u", "frequency_v", "frequency_w", "phase_error", "gain"]
    columns = [c for c in columns if any(c in row for row in rows)]
    shown = [[_figure(rows[i].get(c, "")) for c in columns] for i in picked.tolist()]
    path.write_text(json.dumps({"columns": columns, "rows": shown}))


def _figure(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def write_pictures(
    table: np.ndarray, completed: np.ndarray, neurons: Neurons, out: Path
) -> list[Path]:
    """table.png, as it came, as completed and where they contradict each other; neurons.png."""
    with picture(9.6, 3.3) as fig:
        panels = fig.subplots(1, 3, sharey=True)
        unknown = table == UNKNOWN
        most = max(int(table.max()), int(completed.max()))
        shown = {
            "given": np.where(unknown, np.nan, table.astype(float)),
            "completed": completed,
            # What agrees is left out: wrong entries are few and have to catch the eye.
            "contradicted": np.where(unknown | (table == completed), np.nan, 0.5 * most),
        }
        for axes, (title, values) in zip(panels, shown.items(), strict=True):
            colours = "Reds" if title == "contradicted" else "twilight"
            axes.imshow(values, cmap=colours, vmin=0, vmax=most, interpolation="nearest")
            axes.set(title=title, xlabel="n")
            axes.grid(visible=False)
        panels[0].set(ylabel="m")
        save(fig, out / "table.png")
    with picture(4.6, 2.8) as fig:
        histogram(fig.subplots(), neurons)
        save(fig, out / "neurons.png")
    return [out / "table.png", out / "neurons.png"]


def _percent(value: float, _: Any) -> str:
    return f"{100 * value:.0f} %"


