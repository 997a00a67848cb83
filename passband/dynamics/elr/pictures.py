"""What the report shows of ELR: labels memorised on the way, suspects, how well they were found."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from passband.bench.report.style import PALETTE, picture, save
from passband.bench.results import write_atomic
from passband.bench.task import Artifact, Data

if TYPE_CHECKING:
    from passband.data.labelled.labelled import Labelled
    from passband.dynamics.elr.system import ELR

SHOWN = 12  # suspects of the report's table; the file has all
CURVES = {
    "clean_right": ("clean, right", PALETTE[0][0]), "recovered": ("wrong, seen through",
    PALETTE[2][0]), "memorised": ("wrong, memorised", PALETTE[1][0]),
}


def draw(system: ELR, data: Data[Labelled], folder: Path) -> list[Artifact]:
    folder.mkdir(parents=True, exist_ok=True)
    suspects = system.suspects()
    write_findings(system, folder)
    _write(folder / "suspects-shown.json", json.dumps(suspects.table(SHOWN)))
    artifacts = [Artifact(
        "table", "Suspects among the training labels", "suspects-shown.json",
        f"{len(suspects)} of {len(suspects.scores)} labels; all of them in suspects.csv",
    )]
    if system.memory and "memorised" in system.memory[-1]:
        memory_picture(system.memory, folder / "memory.svg")
        artifacts.append(Artifact(
            "image", "Training examples on the way", "memory.svg",
            "shares of rightly and of wrongly labelled ones, by the truth, which training didn't "
            "see",
        ))
    if data.train.wrong.any():
        judged = suspects.judged(data.train.wrong)
        rows = [[name.replace("_", " "), round(value, 4)] for name, value in judged.items()]
        _write(folder / "found.json", json.dumps({"columns": ["measure", "value"], "rows": rows}))
        artifacts.append(Artifact(
            "table", "How well wrong labels were found", "found.json",
            "precision at recall: where the highest scores hold 90 % of them",
        ))
    return artifacts


def write_findings(system: ELR, folder: Path) -> list[Path]:
    """suspects.csv, suspects.json and targets.npy [N, C]."""
    suspects = system.suspects()
    files = [suspects.save(folder / f"suspects.{kind}") for kind in ("csv", "json")]
    stream = io.BytesIO()
    np.save(stream, system.targets(), allow_pickle=False)
    write_atomic(folder / "targets.npy", stream.getvalue())
    return [*files, folder / "targets.npy"]


def memory_picture(rows: list[dict[str, Any]], path: Path) -> Path:
    """Shares over steps."""
    with picture(4.8, 2.8) as fig:
        axes = fig.subplots()
        steps = [row["step"] for row in rows]
        for name, (label, colour) in CURVES.items():
            axes.plot(steps, [row[name] for row in rows], color=colour, label=label)
        axes.set(xlabel="step", ylabel="share", ylim=(-0.03, 1.03))
        axes.legend()
        return save(fig, path)


def _write(path: Path, text: str) -> None:
    write_atomic(path, text.encode())
