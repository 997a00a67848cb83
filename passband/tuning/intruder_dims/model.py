"""Intruder dimensions: what fine-tuning did to the spectrum of each matrix, and how to undo it.

Problem: LoRA and full fine-tuning reach the same accuracy by different solutions. LoRA's weights
have new dominant singular vectors, unlike any of the base: intruders. They go with forgetting.

    W0, W1 [m, n]   base and tuned matrix;   W0 = U0 S0 V0^T,  W1 = U S V^T
    intruder        y_j = U[:, j] among the k leading ones with max_i |y_j . U0[:, i]| < eps
    repair          W(factor) = W1 + (factor - 1) sum_{j in J} s_j u_j v_j^T
    adapter         dW(factor) = W(factor) - W0 has rank <= r + |J|

    measure            the report of a tuned model                     report.py, parts/intruders.py
    Repair, truncated  the intervention, its controls, choice of factor      repair.py
    LoRA               the variants that the paper compares                  adapters.py
    Growth             tasks one after the other                             sequence.py
    match_metric       checkpoints of equal quality                          equal_quality.py

Source: Shuttleworth, Andreas, Torralba, Sharma, LoRA vs Full Fine-tuning: An Illusion of
Equivalence, NeurIPS 2025, arXiv 2410.21228.

>>> model = torch.nn.Linear(32, 32, bias=False)
>>> with torch.no_grad():
...     _ = model.weight.copy_(torch.diag(0.8 ** torch.arange(32)))
>>> base = {"weight": model.weight.detach().clone()}
>>> handle = LoRA(rank=1, alpha=1.0).attach(model)
>>> with torch.no_grad():
...     _ = handle.trained()["lora_B"].fill_(3.0)           # as if training had gone far
>>> edit = handle.detach()
>>> measure(base, edit).count
1
>>> repaired = Repair(base, edit).edit(factor=0.0)
>>> measure(base, repaired).count
0
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from passband.parts.edits import Edit
from passband.tuning.intruder_dims.adapters import LoRA, LoRAHandle
from passband.tuning.intruder_dims.equal_quality import match_metric, nearest_checkpoint
from passband.tuning.intruder_dims.pairs import Pair, Weights, comparable, pairs
from passband.tuning.intruder_dims.repair import Choice, Repair, Truncated, truncated
from passband.tuning.intruder_dims.report import EPS, LayerReport, Report, analyse
from passband.tuning.intruder_dims.sequence import Growth, learn_in_turn

__all__ = [
    "EPS", "Choice", "Growth", "LayerReport", "LoRA", "LoRAHandle", "Pair", "Repair", "Report",
    "Truncated", "Weights", "analyse", "comparable", "learn_in_turn", "match_metric", "measure",
    "nearest_checkpoint", "pairs", "random_direction", "truncated",
]


def measure(
    base: Weights, tuned: Weights | Edit, *, names: Iterable[str] | None = None,
    transposed: Iterable[str] = (), **options: Any,
) -> Report:
    """The report of a tuned model, or of an edit of the base.

    options  k, eps, side, heat, share, within, workers, bases: see `report.analyse`
    Raises `DataError` that lists names and shapes which don't match.

    >>> base = torch.nn.Linear(4, 4)
    >>> measure(base, base).layers[0].note
    'unchanged'
    """
    return analyse(pairs(base, tuned, names=names, transposed=transposed), **options)


def random_direction(m: int, n: int, seed: int = 0) -> Tensor:
    """u v^T [m, n] of random unit vectors: times more than sigma_1, it makes an intruder of W + it.

    >>> round(float(torch.linalg.matrix_norm(random_direction(5, 3))), 6)
    1.0
    """
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (m, n))
    return torch.outer(u / u.norm(), v / v.norm())
