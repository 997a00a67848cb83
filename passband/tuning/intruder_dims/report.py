"""The report: how each matrix of a model differs from what it was.

    W1 = U S V^T, W0 = U0 S0 V0^T, dW = W1 - W0
    count            intruders among the k leading y_j = U[:, j]   (see `parts.intruders`)
    curve            the same count for thresholds 0.05, 0.10, ... 1
    share            ||u_j^T dW||^2 / ||dW||_F^2: how much of the update an intruder carries
    effective rank   exp(-sum p ln p), p = sigma(dW) / sum sigma(dW)
    stable rank      ||dW||_F^2 / sigma_1(dW)^2
    similarity       |U^T U0| of the leading vectors: diagonal after full fine-tuning; LoRA's
                     intruders are blank rows that shift the rest
Counts follow the size of the update: read them beside its norm, at equal quality of the models.

>>> from passband.tuning.intruder_dims.pairs import pairs
>>> base, tuned = torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.full((3, 3), 9.0)
>>> report = analyse(pairs({"w": base}, {"w": tuned}), eps=0.6)
>>> report.count, report.layers[0].intruders[0].position
(1, 0)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from passband.errors import ConfigError
from passband.parts.intruders import Base, Intruders, Side, check_threshold, detect
from passband.parts.spectral import effective_rank, gram, stable_rank
from passband.tuning.intruder_dims.pairs import Pair

EPS = tuple(round(0.05 * i, 2) for i in range(1, 21))  # thresholds of the curves
Bases = Callable[[str, Tensor], Base]  # (name, weight) -> its base vectors


@dataclass(frozen=True)
class IntruderFacts:
    """One intruder. position: its rank among the tuned singular vectors, from 0."""

    position: int
    sigma: float
    cosine: float  # largest |cosine| to a base vector
    share: float  # of ||dW||_F^2


@dataclass(frozen=True, eq=False)
class LayerReport:
    """One matrix [m, n].

    count           intruders among the k leading vectors; k is clipped to the rank
    curve           counts for the thresholds `EPS`
    cosines, sigma  of the k leading tuned vectors
    update_norm     ||dW||_F;  relative: over ||W0||_F
    similarity      [K, K] of the K leading tuned (rows) and base vectors; None where not asked for
    note            what a reader should know
    """

    name: str
    shape: tuple[int, int]
    k: int
    count: int
    curve: tuple[int, ...]
    cosines: tuple[float, ...]
    sigma: tuple[float, ...]
    intruders: tuple[IntruderFacts, ...]
    update_norm: float
    relative: float
    effective_rank: float
    stable_rank: float
    note: str = ""
    similarity: Tensor | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the similarity matrix."""
        facts = {n: v for n, v in self.__dict__.items() if n not in ("similarity", "intruders")}
        return facts | {"intruders": [asdict(one) for one in self.intruders]}


@dataclass(frozen=True, eq=False)
class Report:
    """All matrices of a model."""

    layers: tuple[LayerReport, ...]
    k: int
    eps: float
    side: Side

    @property
    def count(self) -> int:
        """Intruders of the whole model."""
        return sum(layer.count for layer in self.layers)

    @property
    def curve(self) -> tuple[int, ...]:
        """Counts of the whole model for the thresholds `EPS`."""
        return tuple(map(sum, zip(*(layer.curve for layer in self.layers), strict=True)))

    @property
    def update_norm(self) -> float:
        """||dW||_F of all matrices together."""
        return float(sum(layer.update_norm**2 for layer in self.layers) ** 0.5)

    @property
    def effective_rank(self) -> float:
        """Mean over the matrices that changed; 0 where none did."""
        return self._mean("effective_rank")

    @property
    def stable_rank(self) -> float:
        return self._mean("stable_rank")

    def _mean(self, name: str) -> float:
        found = [getattr(layer, name) for layer in self.layers if layer.update_norm > 0]
        return float(sum(found) / len(found)) if found else 0.0

    def facts(self) -> dict[str, Any]:
        """The model's own numbers."""
        return {
            "count": self.count, "matrices": len(self.layers), "k": self.k, "eps": self.eps,
            "side": self.side, "update_norm": self.update_norm,
            "effective_rank": self.effective_rank, "stable_rank": self.stable_rank,
            "thresholds": list(EPS), "curve": list(self.curve),
        }

    def to_json(self) -> dict[str, Any]:
        return self.facts() | {"layers": [layer.to_json() for layer in self.layers]}

    def table(self) -> dict[str, Any]:
        """{"columns": [...], "rows": [[...]]} with a row a matrix."""
        columns = [
            "matrix", "shape", "intruders", "positions", "||dW||", "||dW|| / ||W0||",
            "effective rank", "stable rank", "note",
        ]
        rows = [
            [layer.name, "x".join(map(str, layer.shape)), layer.count,
             " ".join(str(one.position) for one in layer.intruders), f"{layer.update_norm:.3g}",
             f"{layer.relative:.3g}", f"{layer.effective_rank:.1f}", f"{layer.stable_rank:.2f}",
             layer.note]
            for layer in self.layers
        ]
        return {"columns": columns, "rows": rows}

    def text(self) -> str:
        """The table for a terminal or a text file, the sum in its last line."""
        table = self.table()
        rows = [table["columns"], *([str(v) for v in row] for row in table["rows"])]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        total = (
            f"{self.count} intruders among the {self.k} leading vectors of {len(self.layers)} "
            f"matrices (eps {self.eps:g}, {self.side}); ||dW|| {self.update_norm:.4g}, "
            f"mean effective rank {self.effective_rank:.1f}"
        )
        return "\n".join([*lines, "", total, ""])


def analyse(
    matrices: Iterable[Pair], k: int = 10, eps: float = 0.5, *, side: Side = "left",
    heat: int = 0, share: float | None = None, within: float = 0.0, workers: int = 1,
    bases: Bases | None = None,
) -> Report:
    """The report of matrices before and after tuning.

    k        leading vectors that are looked at
    share    in place of k: a share of each matrix' rank, in (0, 1]
    heat     size of the similarity matrices; 0: none
    within   see `parts.intruders.Base`: robustness against near-equal singular values
    workers  threads; matrices are independent
    bases    (name, weight) -> Base, where base vectors have been kept from an earlier run
    Raises `ConfigError` for k, eps or share out of range, `DataError` as `parts.intruders.detect`.
    """
    check_threshold(eps)
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"share = {share}", expected="a share of the rank in (0, 1]")
    if k < 1 or heat < 0 or workers < 1:
        raise ConfigError(
            f"k = {k}, heat = {heat}, workers = {workers}", expected="k, workers >= 1; heat >= 0"
        )
    made = bases or (lambda name, weight: Base(weight, within=within))

    def one(pair: Pair) -> LayerReport:
        size = k if share is None else max(1, round(share * min(pair.before.shape)))
        return _layer(pair, made, size, eps, side, heat)

    if workers == 1:
        layers = tuple(map(one, matrices))
    else:
        with ThreadPoolExecutor(workers) as pool:
            layers = tuple(pool.map(one, matrices))
    return Report(layers, k, eps, side)


def _layer(
    pair: Pair, bases: Bases, k: int, eps: float, side: Side, heat: int
) -> LayerReport:
    base = bases(pair.name, pair.before)
    found = detect(base, pair.after, max(k, heat), eps, side=side)
    delta = pair.delta
    norm = float(torch.linalg.matrix_norm(delta))
    spectrum = update_spectrum(pair)
    positions = tuple(j for j in found.positions if j < k)
    shown = min(k, len(found.sigma))
    return LayerReport(
        pair.name, base.shape, shown, len(positions), tuple(found.curve(EPS, k).tolist()),
        tuple(found.cosines[:k].tolist()), tuple(found.sigma[:k].tolist()),
        tuple(_facts(found, j, delta, norm) for j in positions), norm,
        norm / max(float(torch.linalg.matrix_norm(pair.before.double())), 1e-300),
        float(effective_rank(spectrum)), float(stable_rank(spectrum)),
        _note(norm, k, shown, positions, spectrum),
        _similarity(base, found, heat) if heat else None,
    )


def _facts(found: Intruders, j: int, delta: Tensor, norm: float) -> IntruderFacts:
    along = float(torch.linalg.vector_norm(found.U[:, j] @ delta))
    return IntruderFacts(
        j, float(found.sigma[j]), float(found.cosines[j]), (along / norm) ** 2 if norm else 0.0
    )


def update_spectrum(pair: Pair) -> Tensor:
    """Singular values of dW, largest first; from its factors where it has them."""
    if pair.factors is not None and pair.factors[0].shape[1] < min(pair.before.shape):
        left, right = (torch.linalg.qr(f.double()).R for f in (pair.factors[0], pair.factors[1].T))
        small: Tensor = torch.linalg.svdvals(left @ right.T)
        return small
    delta = pair.delta
    wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
    # Rounding of the squares shows below 1e-8 of the largest: nothing to these sums.
    squares: Tensor = torch.linalg.eigvalsh(gram(wide))
    return squares.clamp(min=0.0).sqrt().flip(0)


def _similarity(base: Base, found: Intruders, heat: int) -> Tensor:
    return base.similarity(found.U[:, :heat])[:heat].T.float()


def _note(norm: float, k: int, shown: int, positions: tuple[int, ...], spectrum: Tensor) -> str:
    if norm == 0.0:
        return "unchanged"
    notes = []
    if shown < k:
        notes.append(f"k clipped to the rank {shown}")
    size = int((spectrum > 0.1 * spectrum[0]).sum())
    if len(positions) > size:
        # More new vectors than the update has directions: flat parts of the spectrum mixed.
        notes.append("more intruders than directions in the update: near-equal singular values?")
    return "; ".join(notes)
