"""Pictures of a companded network: its curves over the stored weights, and the weights as used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from passband.bench.report.style import ACCENT, INK, PALETTE, picture, save
from passband.bench.task import Artifact
from passband.dynamics.weight_compander.distribution import weight_stats
from passband.dynamics.weight_compander.model import companders

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 4  # layers drawn: the first, the last, and some between
BINS = 60


def draw(network: nn.Module, folder: Path) -> list[Artifact]:
    """curves.svg and weights.json of a trained network."""
    folder.mkdir(parents=True, exist_ok=True)
    wrapped = companders(network)
    names = list(wrapped)
    picked = {round(i * (len(names) - 1) / max(1, SHOWN - 1)) for i in range(SHOWN)}
    shown = [names[i] for i in sorted(picked)]
    with picture(2.5 * len(shown), 2.6) as fig:
        panels = fig.subplots(1, len(shown), squeeze=False)[0]
        for axes, name in zip(panels, shown, strict=True):
            _layer(axes, network.get_submodule(name))
            axes.set(title=name)
        save(fig, folder / "curves.svg")
    rows = weight_stats(network)
    columns = ["layer", "count", "std", "largest", "bound", "near_zero", "at_bound", "kurtosis"]
    table = [[_figure(row.to_json()[c]) for c in columns] for row in rows]
    (folder / "weights.json").write_text(json.dumps({"columns": columns, "rows": table}))
    return [
        Artifact(
            "image", "Weights", "curves.svg",
            "weights as used, over those stored; blue: how many; dashed: the bound",
        ),
        Artifact("table", "Weights of each layer", "weights.json"),
    ]


@torch.no_grad()
def _layer(axes: Axes, layer: Any) -> None:
    chain = layer.parametrizations["weight"]
    psi = next(iter(companders(layer).values()))
    if psi.log_a.numel() > 1:  # a curve a channel: no single one to draw
        axes.hist(cast(Tensor, layer.weight).flatten().numpy(), BINS, color=ACCENT)
        axes.set(xlabel="w")
        return
    v = chain.original.detach().cpu() if chain.is_tensor else layer.weight.detach().cpu()
    edge = float(v.abs().max()) or 1.0
    line = torch.linspace(-edge, edge, 200)
    counts = axes.twinx()
    counts.hist(v.flatten().numpy(), BINS, color=ACCENT, alpha=0.35)
    counts.set_yticks([])
    counts.grid(visible=False)
    axes.plot(line, psi.cpu()(line), color=PALETTE[1][0])
    if torch.isfinite(psi.bound):
        for sign in (-1, 1):
            axes.axhline(sign * float(psi.bound), color=INK, linewidth=0.8, linestyle="--")
    axes.set(xlabel="v", ylabel="w")


def _figure(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else "" if value is None else value
