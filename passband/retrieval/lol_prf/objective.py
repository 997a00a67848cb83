"""The loss of a step: ranking, the comparative term, and three that are off by default.

    total = l_pr ranking + l_cr comparative + l_qr query ranking + l_rr reranking + l_sr |v|_1
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from passband.errors import DataError
from passband.retrieval.lol_prf import losses
from passband.retrieval.lol_prf.documents import Frozen
from passband.retrieval.lol_prf.lessons import Lessons, Step


@dataclass(frozen=True)
class Weights:
    """Of the terms, in the names of the paper."""

    ranking: float = 1.0  # lambda_pr
    comparative: float = 1.0  # lambda_cr
    queries: float = 0.0  # lambda_qr
    reranking: float = 0.0  # lambda_rr
    sparsity: float = 0.0  # lambda_sr, at the end of its staircase


class Progress:
    """The share of the run that is done, for the staircase; resumes with the run."""

    fraction = 0.0

    def at(self, fraction: float) -> None:
        self.fraction = fraction

    def state_dict(self) -> Mapping[str, Any]:
        return {}  # told anew before every step

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        self.fraction = 0.0


class Objective:
    """Called with the reformulator and a step; gives the loss and what to log.

    sparsity_start  share of the run before the L1 term begins
    """

    def __init__(
        self, lessons: Lessons, documents: Frozen, weights: Weights, *, sparsity_start: float = 0.0
    ) -> None:
        self.lessons, self.documents, self.weights = lessons, documents, weights
        self.start, self.progress = sparsity_start, Progress()

    def __call__(self, model: Any, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        w = self.weights
        out = model(step.batch)
        scores = self.documents.scores(out.vectors)
        each = losses.ranking(
            scores, step.positives, step.left_out, step.label if step.label.shape[1] else None
        )
        table = each.view(-1, self.lessons.revisions)
        comparative = losses.comparative(table)
        total = w.ranking * each.mean() + w.comparative * comparative
        values = {"ranking": each.mean(), "comparative": comparative}
        if table.shape[1] > 1:
            values["violations"] = losses.violations(table)
        if w.queries:
            values["queries"] = losses.query_ranking(scores, step.positives, step.owners)
            total = total + w.queries * values["queries"]
        if w.reranking:
            values["reranking"] = losses.reranking(out.passages, step.relevant)
            total = total + w.reranking * values["reranking"]
        if w.sparsity:
            values["l1"] = out.vectors.float().abs().sum(1).mean()
            stair = losses.staircase(self.progress.fraction, self.start)
            total = total + w.sparsity * stair * values["l1"]
        if not bool(torch.isfinite(total)):
            asked = dict.fromkeys(self.lessons.asked[i].id for i in step.owners.tolist())
            raise DataError(
                f"the loss is {total.item()} on the queries " + ", ".join(map(repr, asked)),
                expected="a finite loss", mend="lower lr, or look at these queries' texts",
            )
        return total, {name: value.detach() for name, value in values.items()}
