"""How fine-tuning moves the spectrum of a weight: the analysis of arXiv 2409.00055.

    values      mean_i |sigma_i(W_t) - sigma_i(W_0)|
    vectors     1 - mean_j (|<u_j^t, u_j^0>| + |<v_j^t, v_j^0>|) / 2
    condition   s_max / s_min of what is trained, W_p = B diag(S) A

All of W's triples count, paired by their order. Works on the edit of any method, so also on the
edits that a run leaves beside its checkpoints.

>>> drift(torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([4.0, 1.0])))
Drift(values=0.5, vectors=0.0, condition=None)
>>> edit = Edit({"w": LowRank(torch.eye(2, 1), torch.eye(1, 2))})       # or Edit.load(path)
>>> report(edit, {"w": torch.diag(torch.tensor([3.0, 1.0]))})
{'w': Drift(values=0.5, vectors=0.0, condition=1.0)}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from passband.parts.edits import Edit, LowRank
from passband.parts.spectral import gram_svd


@dataclass(frozen=True)
class Drift:
    """One layer after tuning against before; `condition` of methods that train two factors."""

    values: float
    vectors: float
    condition: float | None = None


def drift(before: Tensor, after: Tensor) -> Drift:
    """Of one matrix [m, n]."""
    old, new = gram_svd(before), gram_svd(after)
    u = (old.U * new.U).sum(0).abs()
    v = (old.Vh * new.Vh).sum(1).abs()
    values = float((new.s - old.s).abs().mean())
    return Drift(values, round(max(0.0, 1 - float((u + v).mean()) / 2), 12))


def condition_number(B: Tensor, A: Tensor) -> float:
    """s_1 / s_r of B A, B [m, r], A [r, n], without the product; inf where the rank is lower.

    >>> condition_number(torch.eye(3, 2), torch.tensor([[4.0, 0.0], [0.0, 2.0]]))
    2.0
    """
    left = torch.linalg.qr(B.detach().double(), mode="r").R
    right = torch.linalg.qr(A.detach().double().T, mode="r").R
    s = torch.linalg.svdvals(left @ right.T)
    return float(s[0] / s[-1])


@torch.no_grad()
def report(edit: Edit, weights: Mapping[str, Tensor]) -> dict[str, Drift]:
    """Drift of every matrix (or kernel) that an edit changes.

    weights  the pretrained ones, by name
    """
    found = {}
    for name, change in edit.changes.items():
        if len(change.shape) < 2 or change.kind == "replace":
            continue
        before = weights[name].float()
        moved = drift(before.flatten(1), (before + change.delta(before)).flatten(1))
        of = condition_number(change.B, change.A) if isinstance(change, LowRank) else None
        found[name] = Drift(moved.values, moved.vectors, of)
    return found
