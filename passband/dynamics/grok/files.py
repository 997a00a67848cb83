"""A user's table completed: labels of all pairs, known entries that look wrong, the neurons.

    completed.csv   p lines of p labels, as the network gives them
    suspects.csv    known entries that the network contradicts, the surest first
    neurons.csv     IPR, frequencies and phases (mlp alone)
    report.json     what was learned and how well
    *.png           the table, the neurons
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from passband.bench.results import write_atomic
from passband.bench.system import Monitor
from passband.bench.task import Data
from passband.data.modular import Known, discrete_log_order, known_part, read_table
from passband.dynamics.grok.model import QuadraticMLP
from passband.dynamics.grok.neurons import Neurons, neuron_table
from passband.errors import ConfigError, DataError

if TYPE_CHECKING:
    from passband.dynamics.grok.system import Grok


def complete_file(system: Grok, path: Path, out: Path, monitor: Monitor | None) -> list[Path]:
    """What `apply` does for one table; returns the files written."""
    table = read_table(path)
    known = known_part(table)
    report: dict[str, Any] = {"file": path.name, "p": known.p, "known": len(known)}
    if system.fitted:
        _fits(system, known)
    else:
        learned, held = held_back(known, system.config.held_out)
        report |= system.fit(Data(train=learned), monitor=monitor)
        if len(held):
            right = system.complete(held.pairs) == held.labels.numpy()
            report["accuracy_held_out"] = float(right.mean())
            report["held_out"] = len(held)
    out.mkdir(parents=True, exist_ok=True)
    scores = system.scores(known.pairs)
    completed = system.complete()
    wrong = suspects(known, scores)
    report |= {"agrees_with_known": 1.0 - len(wrong) / len(known), "suspects": len(wrong)}
    written = [
        _csv(out / "completed.csv", completed.tolist()),
        _csv(out / "suspects.csv", [["m", "n", "given", "found", "margin"], *wrong]),
    ]
    if isinstance(system.network, QuadraticMLP):
        order, neurons = best_order(system.network)
        report |= {"residues": order, "ipr": float(neurons.ipr.mean())}
        rows = neurons.rows()
        names = list(dict.fromkeys(name for row in rows for name in row))
        written.append(_csv(
            out / "neurons.csv", [names, *([row.get(name, "") for name in names] for row in rows)]
        ))
        from passband.dynamics.grok.pictures import write_pictures

        written += write_pictures(table, completed, neurons, out)
    write_atomic(out / "report.json", json.dumps(report, indent=2).encode())
    return [*written, out / "report.json"]


def _fits(system: Grok, known: Known) -> None:
    if system.p != known.p or system.classes < known.classes:
        raise DataError(
            f"a table of {known.p} residues and {known.classes} classes",
            expected=f"{system.p} residues and at most {system.classes} classes, which this "
            "system has learned",
            mend="apply the untrained system `grok` to it, or train on it (--data)",
        )


def held_back(known: Known, share: float, seed: int = 0) -> tuple[Known, Known]:
    """(learned, held back): a share of the entries is not learned.

    >>> table = np.arange(25).reshape(5, 5) % 5
    >>> learned, held = held_back(known_part(table), 0.2)
    >>> len(learned), len(held)
    (20, 5)
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(known)))
    size = int(share * len(known))
    if size >= len(known):
        raise ConfigError(f"held_out = {share} leaves no entry", expected="some to learn from")

    def part(rows: torch.Tensor) -> Known:
        rows = rows.sort().values
        return replace(known, pairs=known.pairs[rows], labels=known.labels[rows])

    return part(order[size:]), part(order[:size])


def suspects(known: Known, scores: np.ndarray) -> list[list[Any]]:
    """[m, n, given, found, margin] of known entries that get another label, surest first.

    margin  score of the label found minus that of the one given
    """
    given, found = known.labels.numpy(), scores.argmax(1)
    rows = np.arange(len(given))
    margin = scores[rows, found] - scores[rows, given]
    wrong = np.flatnonzero(found != given)
    wrong = wrong[np.argsort(-margin[wrong], kind="stable")]
    return [
        [*known.pairs[i].tolist(), int(given[i]), int(found[i]), round(float(margin[i]), 6)]
        for i in wrong.tolist()
    ]


def best_order(network: QuadraticMLP) -> tuple[str, Neurons]:
    """("added" or "multiplied", the neurons): in which order of the residues they are waves."""
    found = {"added": neuron_table(network)}
    layers = network.layers()
    if layers.w.shape[0] == network.p:
        try:
            found["multiplied"] = neuron_table(network, discrete_log_order(network.p))
        except ConfigError:
            return "added", found["added"]
    best = max(found, key=lambda name: float(found[name].ipr.mean()))
    return best, found[best]


def _csv(path: Path, rows: Sequence[Sequence[Any]]) -> Path:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomic(path, text.getvalue().encode())
    return path
