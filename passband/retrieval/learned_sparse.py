"""Systems that learn sparse vectors: groups of documents, a teacher or labels, and FLOPS.

    loss = ranking(scores, teacher or labels) + lambda(t) L_FLOPS(documents) [+ the same of queries]

Two phases: first with the negatives that are given or that BM25 finds, then, for the last `second`
of the budget, with those that the model itself finds.

A subclass builds a network with `documents(ids, mask)` and `asked(ids, mask)`, both -> [B, V].
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from passband.bench.budget import Budget
from passband.bench.loop import Outcome
from passband.bench.optim import build_optimizer
from passband.bench.system import Config
from passband.bench.task import Data
from passband.errors import DataError, PassbandWarning
from passband.parts.losses.distillation import ensemble, kl_divergence, margin_mse
from passband.parts.losses.flops import flops, ramp
from passband.retrieval.first_stage import Bm25Stage, FirstStage
from passband.retrieval.impacts import Words
from passband.retrieval.lessons import Batch, Lessons, candidates, examples_of
from passband.retrieval.mining import found_by_stage, mined
from passband.retrieval.splade import encode_sparse, shared_entries
from passband.retrieval.teachers import Teacher, teacher_stage
from passband.retrieval.trained import RetrievalConfig, Run, TrainedRetriever, joined

if TYPE_CHECKING:
    from passband.data.documents.collection import Collection, Example

AVERAGE = 0.99  # of the ranking loss that is logged
SAMPLE = 200  # documents and queries that the cost of searching is counted on


class SparseConfig(RetrievalConfig):
    """What all learned sparse retrievers have in common."""

    loss: Literal["kl", "infonce", "margin_mse"] = Field(
        "kl", description="of the ranking: distillation by KL or MarginMSE, or labels (InfoNCE)"
    )
    candidates: Literal["own", "negatives", "batch"] = Field(
        "batch", description="what a query ranks: its own group, that and the negatives of others, "
        "or all documents of the batch"
    )
    group: int = Field(2, ge=1, description="documents of a query in a batch, its positive first")
    temperature: float = Field(1.0, gt=0, description="student's and teacher's scores are divided")
    teachers: tuple[str, ...] = Field(
        ("bm25",), description="bm25, lsa, a saved retriever's folder, or a system that is trained "
        "first; empty: the scores of the examples"
    )
    teacher_scale: float = Field(30.0, gt=0, description="largest score of the ensemble")
    normalise_teachers: bool = Field(True, description="min-max over a query's candidates")
    teacher_preset: str = Field("small", description="of a teacher that is trained first")
    teacher_share: float = Field(
        1.0, gt=0, description="steps of a teacher trained here over the student's"
    )
    negatives: Literal["given", "random", "bm25"] = Field(
        "bm25", description="where an example has none: refused, drawn from the corpus, or the "
        "best that BM25 finds"
    )
    mined: int = Field(50, gt=0, description="documents that are searched for negatives")
    second: float = Field(
        0.0, ge=0, lt=1, description="last share of the budget, with negatives that the model finds"
    )
    titles: int = Field(
        1000, ge=0, description="with fewer judged queries than this, titles (or first sentences) "
        "of documents are queries as well; they always are where there is none"
    )
    lambda_d: float = Field(1e-3, ge=0, description="weight of the documents' FLOPS")
    ramp: float = Field(
        150, gt=0, description="until lambda is whole: below 1 a share of the budget, else steps"
    )
    threshold: int = Field(0, ge=0, description="documents of at most so many entries are let be")
    flops_groups: bool = Field(
        True, description="FLOPS of each position in the groups apart, or of all documents at once"
    )
    l0: bool = Field(False, description="log(1 + .) a second time")
    prune: float = Field(
        0.0, ge=0, lt=1, description="entries of at most this share of the largest are not indexed"
    )
    query_length: int = Field(64, ge=3, description="tokens of a query at most")

    @model_validator(mode="after")
    def _enough_candidates(self) -> SparseConfig:
        if self.group == 1 and self.candidates != "batch":
            raise ValueError("group above 1, or candidates='batch': a query has to have a choice")
        if self.loss == "margin_mse" and self.group == 1:
            raise ValueError("group above 1 for margin_mse")
        if not self.teachers and self.loss != "infonce" and self.candidates != "own":
            raise ValueError("candidates='own' where the examples' own scores are the teacher")
        return self


class LearnedSparse(TrainedRetriever):
    """Training and encoding; see `SparseConfig`."""

    Config: ClassVar[type[Config]] = SparseConfig
    kind: ClassVar[Any] = "mlm"

    # ---- what a method gives ---------------------------------------------------------------

    def begin(self, network: Any, collection: Collection) -> None:
        """Called before the training, for what is counted rather than learned."""

    def penalty_of_queries(self, weights: Tensor) -> Tensor | None:
        """What the queries' weights [B, V] cost besides, before the ramp."""
        return None

    def groups_of_parameters(self, network: Any) -> list[dict[str, Any]]:
        return [{"params": network.parameters()}]

    # ---- training ----------------------------------------------------------------------------

    def learn(self, network: nn.Module, collection: Collection, run: Run) -> Outcome:
        self.begin(network, collection)
        examples = examples_of(collection, self.config.titles)
        stages = self._stages(collection, run)
        second = self.config.second
        found = self._first_negatives(collection, examples)
        outcomes = [self._phase(network, examples, found, stages, run, "first", 1 - second)]
        if second:
            found = self._own_negatives(collection, examples)
            outcomes.append(self._phase(network, examples, found, stages, run, "second", second))
        outcome = joined(*outcomes)
        return replace(outcome, values=outcome.values | self._cost(collection, examples))

    def _cost(self, collection: Collection, examples: Sequence[Example]) -> dict[str, float]:
        """What searching costs: entries, and the products that a score takes on average."""
        corpus = collection.corpus
        places = np.unique(np.linspace(0, len(corpus) - 1, SAMPLE).astype(int))
        documents = self.encode_documents([corpus[int(p)].full for p in places])
        queries = self.encode_queries([e.query for e in examples[:SAMPLE]])
        return {
            "flops": shared_entries(queries, documents),
            "nonzero_documents": documents.nnz / documents.shape[0],
            "nonzero_queries": queries.nnz / queries.shape[0],
        }

    def _phase(
        self, network: Any, examples: Sequence[Example],
        found: Mapping[int, Sequence[str]] | None, stages: Sequence[FirstStage], run: Run,
        phase: str, share: float,
    ) -> Outcome:
        c = self.config
        lessons = Lessons.of(examples, c.group, found)
        lessons.tokenise(self.pieces.rows, c.query_length, c.max_length)
        if not c.teachers and c.loss != "infonce":
            _all_scored(lessons)
        config = self.loop_config()
        carried = Carried(c.ramp, done=phase != "first")
        teachers = [Teacher(stage, lessons.documents, lessons.queries) for stage in stages]

        def objective(module: Any, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
            return self.objective(module, Batch(*batch), teachers, carried)

        return run.train(
            network, objective, lessons, config, phase=phase, share=share, state=carried,
            collate=lessons.collate,
            optimizer=build_optimizer(self.groups_of_parameters(network), config),
        )

    def objective(
        self, module: Any, batch: Batch, teachers: Sequence[Teacher], carried: Carried
    ) -> tuple[Tensor, dict[str, Any]]:
        """Ranking loss and penalties of a batch, and what is logged."""
        c = self.config
        documents = module.documents(batch.document_ids, batch.document_mask)  # [B g, V]
        queries = module.asked(batch.query_ids, batch.query_mask)  # [B, V]
        chosen = candidates(len(queries), c.group, c.candidates).to(documents.device)
        scores = (queries @ documents.mT).gather(1, chosen)  # [B, C], the positive first
        ranking = self._ranking(scores, batch, chosen, teachers)
        penalty = flops(documents, c.group if c.flops_groups else 1, c.threshold)
        scale = carried.scale * c.lambda_d
        loss = ranking + scale * penalty
        extra = self.penalty_of_queries(queries)
        if extra is not None:
            loss = loss + carried.scale * extra
        with torch.no_grad():
            active = documents > 0
            values = {
                "ranking": carried.averaged(ranking), "d_flops": penalty, "lambda": scale,
                "nonzero": active.sum(1).float().mean(),
                "q_nonzero": (queries > 0).sum(1).float().mean(),
                "weight": documents.sum() / active.sum().clamp_min(1), "largest": documents.max(),
            }
        return loss, values

    def _ranking(
        self, scores: Tensor, batch: Batch, chosen: Tensor, teachers: Sequence[Teacher]
    ) -> Tensor:
        c = self.config
        if c.loss == "infonce":
            # A copy of the positive among the candidates is no mistake.
            numbers = batch.documents.flatten()[chosen]
            copies = numbers == numbers[:, :1]
            copies[:, 0] = False
            scores = (scores / c.temperature).masked_fill(copies, -torch.inf)
            return F.cross_entropy(scores, chosen.new_zeros(len(scores)))
        if teachers:
            flat = batch.documents.flatten().cpu()
            given = [t.scores(batch.queries.cpu(), flat).to(scores.device).gather(1, chosen)
                     for t in teachers]
            wanted = ensemble(given, c.teacher_scale, c.normalise_teachers)
        else:
            wanted = batch.scores
        if c.loss == "margin_mse":
            return margin_mse(scores, wanted)
        return kl_divergence(scores, wanted, c.temperature)

    def _stages(self, collection: Collection, run: Run) -> list[FirstStage]:
        """The teachers; those that are trained here get the share of steps that is configured."""
        c = self.config
        if c.loss == "infonce":
            return []
        data = Data(train=collection, valid=run.valid)
        budget = Budget(steps=max(1, round(c.teacher_share * (run.budget.steps or c.steps))))
        stages = [
            teacher_stage(name, data, self.seed, budget, preset=c.teacher_preset)
            for name in c.teachers
        ]
        for name, stage in zip(c.teachers, stages, strict=True):
            self._cases(name, stage)
        return stages

    def _cases(self, name: str, stage: FirstStage) -> None:
        """Warn of a teacher that tells capitals apart where this system doesn't, or the reverse."""
        theirs = getattr(getattr(stage, "system", None), "pieces", None)
        if theirs is None or theirs.lowercase == self.pieces.lowercase:
            return
        one, other = ("lower-cases", "does not") if theirs.lowercase else ("keeps capitals",
                                                                             "does not")
        warnings.warn(
            f"the tokenizer of teacher {name} {one}, that of the backbone {other}: texts that "
            "differ in their capitals alone get different targets for the same vector, or the "
            "reverse", PassbandWarning, stacklevel=2,
        )

    # ---- negatives ---------------------------------------------------------------------------

    def _first_negatives(
        self, collection: Collection, examples: Sequence[Example]
    ) -> dict[int, list[str]] | None:
        c = self.config
        least = c.group - 1
        given = all(len(e.negatives) >= least or e.scores is not None for e in examples)
        if not least or given or c.negatives == "given":
            return None
        rng = np.random.default_rng(self.seed)
        found: Sequence[Sequence[int]] = [()] * len(examples)
        if c.negatives == "bm25":
            stage = Bm25Stage(Words("english"))
            asked = [e.query for e in examples]
            found = found_by_stage(stage, collection.corpus, asked, c.mined)
        return mined(collection.corpus, examples, found, least, rng)

    def _own_negatives(
        self, collection: Collection, examples: Sequence[Example]
    ) -> dict[int, list[str]]:
        self.index(collection.corpus)
        index: Any = self._index
        vectors = self.encode_queries([e.query for e in examples])
        places = index.find(vectors, min(self.config.mined, len(index))).places
        self._index = None  # of weights that go on changing
        found = [row[row >= 0].tolist() for row in places]
        rng = np.random.default_rng(self.seed)
        return mined(collection.corpus, examples, found, max(1, self.config.group - 1), rng)

    # ---- texts -------------------------------------------------------------------------------

    def encode_documents(self, texts: Sequence[str]) -> Any:
        """Weights of vocabulary entries, CSR [N, V] float32; texts are cut at max_length."""
        network: Any = self.network
        return warned(encode_sparse(
            network.documents, self.rows(list(texts)), network.vocabulary, prune=self.config.prune
        ))


def warned(vectors: Any) -> Any:
    """Vectors of documents as they are; empty ones, which nothing finds, are warned of."""
    empty = int((np.diff(vectors.indptr) == 0).sum())
    if empty:
        warnings.warn(
            f"{empty} of {vectors.shape[0]} documents have no weight above 0 and are never found; "
            "where it is most of them, lambda_d was too large", PassbandWarning, stacklevel=3,
        )
    return vectors


class Carried:
    """What a run remembers from step to step: where the ramp stands, the averaged loss."""

    def __init__(self, length: float, done: bool = False) -> None:
        self.length, self.done = length, done
        self.steps, self.fraction, self.mean = 0, 0.0, 0.0

    def at(self, fraction: float) -> None:
        self.steps, self.fraction = self.steps + 1, fraction

    @property
    def scale(self) -> float:
        """Share of the penalty in this step, in (0, 1]."""
        if self.done:
            return 1.0
        if self.length < 1:
            return min(1.0, self.fraction / self.length) ** 2
        return ramp(self.steps - 1, round(self.length))

    def averaged(self, value: Tensor) -> float:
        """Moving average, free of the bias towards its start."""
        self.mean += (1 - AVERAGE) * (float(value) - self.mean)
        return self.mean / (1 - AVERAGE ** max(1, self.steps))

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "fraction": self.fraction, "mean": self.mean}

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        self.steps, self.fraction = int(tree["steps"]), float(tree["fraction"])
        self.mean = float(tree["mean"])


def _all_scored(lessons: Lessons) -> None:
    without = [i for i, scores in enumerate(lessons.scores) if scores is None]
    if without:
        raise DataError(
            f"{len(without)} examples have no scores of a teacher, the first is "
            f"{lessons.queries[without[0]][:40]!r}", expected="scores, or teachers",
            mend='teachers=("bm25",), or loss="infonce"',
        )
