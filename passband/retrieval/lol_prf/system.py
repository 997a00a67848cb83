"""LoL as a system: a first search that stays, a reformulator that is trained on top of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import scipy.sparse
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from passband.bench.loop import LoopConfig, Outcome
from passband.bench.system import Config
from passband.data.documents.collection import Collection, Corpus
from passband.errors import CheckpointError, ConfigError, PassbandWarning
from passband.parts.modes import evaluating
from passband.retrieval.first_stage import Bm25Stage, FirstStage, LatentStage, SavedStage
from passband.retrieval.impacts import Pieces
from passband.retrieval.lol_prf import curves, lessons
from passband.retrieval.lol_prf.documents import Frozen, FrozenDense, FrozenSparse
from passband.retrieval.lol_prf.heads import SPARSE, Dense, PassageScores, silent_ids
from passband.retrieval.lol_prf.lessons import Lessons
from passband.retrieval.lol_prf.model import Reformulator
from passband.retrieval.lol_prf.objective import Objective, Weights
from passband.retrieval.lol_prf.sequences import Frame, Read, stack
from passband.retrieval.prf import FeedbackRetriever, Found
from passband.retrieval.trained import RetrievalConfig, Run, TrainedRetriever

if TYPE_CHECKING:
    from passband.retrieval.index import Index

FEW = 500  # queries
ROWS = 64  # revisions encoded at a time
STAGE = "stage."  # of names in the saved state
WORDS = ("bm25", "lsa")  # first searches that are made here
OURS = ("small", "smoke")  # backbones that bring no word pieces
PAPER: dict[str, Any] = {
    "max_length": 512, "max_query": 128, "max_passage": 128, "batch_size": 36,
    "select": "highest mrr@10",
}
SMALL: dict[str, Any] = {"pretrained": True, "vocabulary": "embedded"}


class LolConfig(RetrievalConfig):
    """First search, reformulator, the comparison of revisions, training."""

    head: Literal["dqrsm", "dqrss", "dqrs", "dqrd"] = Field(
        "dqrsm", description="MLM head, weights of read tokens, or tied linear head for a sparse "
        "index; dqrd for a dense one"
    )
    first_stage: str = Field(
        "bm25", min_length=1, description="of both searches: bm25 over word pieces, lsa (dense), "
        "or the folder of a saved retriever"
    )
    axes: int = Field(128, gt=0, description="of the latent first stage")
    k1: float = Field(0.9, ge=0, le=10, description="saturation of repeated words in BM25")
    b: float = Field(0.4, ge=0, le=1, description="how much a document's length counts in BM25")
    log_saturation: bool = Field(False, description="log(1 + v) of a sparse query")
    norm: float | None = Field(
        None, gt=0, description="power of the norm that dense queries are divided by; null: none"
    )

    feedback: int = Field(5, ge=0, le=100, description="passages that are read, K")
    compared: int = Field(1, ge=0, le=10, description="revisions compared with each one, c")
    fixed: int | None = Field(
        None, ge=0, le=100, description="read this many passages always (ANCE-PRF, with c = 0)"
    )
    shuffle: bool = Field(True, description="passages in random order in training")
    lambda_pr: float = Field(1.0, gt=0, le=100, description="weight of ranking")
    lambda_cr: float = Field(1.0, ge=0, le=100, description="weight of the comparative term")
    lambda_qr: float = Field(0.0, ge=0, le=100, description="weight of ranking queries")
    lambda_rr: float = Field(0.0, ge=0, le=100, description="weight of scoring passages")
    lambda_sr: float = Field(0.0, ge=0, le=100, description="weight of sparse queries' L1 norm")
    sparsity_start: float = Field(
        0.0, ge=0, lt=1, description="share of the run before the L1 norm counts"
    )
    label: Literal["hardest", "drawn"] = Field(
        "hardest", description="the relevant document that a query is trained to rank first: the "
        "one with the lowest score, or one drawn anew each time (for queries with many)"
    )
    candidates: int = Field(
        10, gt=0, description="best documents of each training query that are ranked over"
    )
    keep: int | None = Field(
        None, gt=0, description="documents a query whose errors go back; null: all"
    )

    max_length: int = Field(
        256, ge=16, le=4096, description="tokens of the text that is read at most"
    )
    max_query: int = Field(32, ge=1, le=4096, description="of a query, in tokens")
    max_passage: int = Field(64, ge=1, le=4096, description="of a passage, in tokens")

    steps: int = Field(400, gt=0, description="optimiser steps when the budget sets no limit")
    batch_size: int = Field(
        32, gt=0, description="revisions of a step, c + 1 of each query: all c cost the same"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled, on every parameter")
    warmup: float = Field(0.1, ge=0, description="below 1: share of the budget, else steps")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: none")
    select: str = Field(
        "last", description="last, or highest mrr@10 of validation queries with all feedback"
    )
    prune: float = Field(
        0.0, ge=0, lt=1, description="terms below this share of a query's largest weight are not "
        "searched for"
    )

    @model_validator(mode="after")
    def _fits(self) -> LolConfig:
        if self.fixed is not None and self.compared:
            raise ValueError("compared must be 0 where fixed passages are read")
        if self.compared > self.feedback:
            raise ValueError(
                f"compared must be at most feedback ({self.feedback}): sizes are distinct"
            )
        if self.first_stage in ("bm25", "lsa"):
            dense = self.first_stage == "lsa"
            if dense != (self.head == "dqrd"):
                raise ValueError(
                    f"the head {self.head} does not fit {self.first_stage}: dqrd is for dense "
                    "indexes, the others for sparse ones"
                )
        if self.batch_size <= self.compared:
            raise ValueError(f"batch_size must be above compared = {self.compared}")
        if self.max_length < self.max_query + 2:
            raise ValueError(f"max_length must be at least max_query + 2 = {self.max_query + 2}")
        return self


class LoL(FeedbackRetriever, TrainedRetriever):
    """
    >>> system = LoL.from_preset("smoke")
    >>> _ = system.index(["ice melts in spring", "spring water", "moss and fern"])
    >>> found = system.search_prf("ice", k=2, feedback=1)
    >>> found.first.ids, found.read, len(found.second.ids[0])
    ([['0']], [['0']], 2)
    """

    Config: ClassVar[type[Config]] = LolConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {**PAPER, "backbone": "bert-base-uncased", "lr": 2e-5},
        "paper-dense": {
            **PAPER, "backbone": "roberta-base", "lr": 1e-5, "head": "dqrd", "first_stage": "lsa",
            "axes": 768, "candidates": 20,
        },
        "small": {**SMALL},
        # For few judged queries: it weighs words that were read, and starts from all alike.
        "small-weights": {**SMALL, "head": "dqrss", "steps": 100},
        "small-dense": {**SMALL, "head": "dqrd", "first_stage": "lsa", "candidates": 20},
        "smoke": {
            "backbone": "smoke", "head": "dqrss", "label": "drawn", "max_length": 64,
            "max_query": 16, "max_passage": 16, "feedback": 2, "batch_size": 96, "lr": 1e-2,
            "axes": 16,
        },
    }

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.kind = "mlm" if self.config.head == "dqrsm" else "encoder"
        self._stage: FirstStage | None = None
        self._checked: tuple[Collection, Lessons, Frozen] | None = None

    # ---- parts ---------------------------------------------------------------------------------

    @property
    def stage(self) -> FirstStage:
        if self._stage is None:
            c = self.config
            if c.first_stage not in WORDS:
                self._stage = SavedStage(c.first_stage)
            else:
                size = self.network.encoder.config.vocab_size
                impacts = Bm25Stage(Pieces(self.pieces, size), c.k1, c.b)
                self._stage = impacts if c.first_stage == "bm25" else LatentStage(impacts, c.axes)
        return self._stage

    @property
    def frame(self) -> Frame:
        c, p = self.config, self.pieces
        return Frame(p.cls, p.sep, c.max_query, c.max_passage, c.max_length)

    def build(self, backbone: Any) -> Reformulator:
        c = self.config
        if c.head == "dqrd":
            out = c.axes if c.first_stage == "lsa" else self.stage.width
            head: nn.Module = Dense(backbone, out=out, norm=c.norm)
        else:
            head = SPARSE[c.head](backbone, log_saturation=c.log_saturation)
        width = backbone.config.hidden_size
        return Reformulator(backbone, head, PassageScores(width) if c.lambda_rr else None)

    def _start(self, collection: Collection | None = None) -> None:
        if self.config.first_stage in WORDS:
            self._stage = None  # of other word pieces
        super()._start(collection)
        if self.config.head != "dqrd":
            self._share_words()
            self.network.head.silence(silent_ids(self.pieces))

    def _share_words(self) -> None:
        """A sparse query is made of the index's terms: both have to mean the same ones."""
        c = self.config
        if c.first_stage in WORDS:
            return
        stage = self.stage
        theirs = getattr(getattr(stage, "system", None), "pieces", None)
        size = self.network.encoder.config.vocab_size
        if not stage.sparse or theirs is None or stage.width != size:
            kind = f"{stage.width} {'terms' if stage.sparse else 'axes'}"
            raise ConfigError(
                f"the index of {c.first_stage} has {kind}, the head {c.head} {size} word pieces",
                expected="a sparse index over the backbone's word pieces",
                mend="take head='dqrd' for a dense index, or a backbone of the same vocabulary",
            )
        if c.vocabulary == "own" and c.backbone in OURS:
            self._pieces = theirs
        mine = self.pieces.tokens
        wrong = [(a, b) for a, b in zip(mine, theirs.tokens, strict=False) if a != b]
        if wrong or len(mine) != len(theirs.tokens):
            shown = ", ".join(f"{a!r} for {b!r}" for a, b in wrong[:5]) or "their number"
            raise ConfigError(
                f"the word pieces of the backbone are not those of {c.first_stage}: {shown}",
                expected="one vocabulary", mend="take the backbone that the index was made with",
            )

    def prepare(self, corpus: Corpus, folder: Path | None) -> None:
        _ = self.network  # says what does not fit before a corpus is read
        super().prepare(corpus, folder)

    # ---- training ------------------------------------------------------------------------------

    def loop_config(self, **changes: Any) -> LoopConfig:
        c = self.config
        # Equal compute: as many revisions a step whatever c, so fewer queries.
        return super().loop_config(**{"batch_size": c.batch_size // (1 + c.compared), **changes})

    def learn(self, network: nn.Module, collection: Collection, run: Run) -> Outcome:
        c = self.config
        self._checked = None
        index = self.index(collection.corpus)
        learned, documents = self.lessons(
            collection, index, revisions=1 + c.compared, fixed=c.fixed, shuffle=c.shuffle,
            label=c.label,
        )
        if c.head in ("dqrsm", "dqrs") and len(learned) < FEW:
            warnings.warn(
                f"{len(learned)} queries to learn from: the head {c.head} makes every weight of a "
                f"query anew and needs thousands; the preset small-weights, which weighs the words "
                f"that were read, gets by with fewer", PassbandWarning, stacklevel=2,
            )
        weights = Weights(c.lambda_pr, c.lambda_cr, c.lambda_qr, c.lambda_rr, c.lambda_sr)
        objective = Objective(learned, documents, weights, sparsity_start=c.sparsity_start)
        return run.train(
            network, objective, learned, collate=learned.collate,
            state=objective.progress if c.lambda_sr else None,
        )

    def lessons(
        self, collection: Collection, index: Index, **options: Any
    ) -> tuple[Lessons, Frozen]:
        """A collection's judged queries with what the first search found, and the documents that
        they are ranked over; options of `Lessons`."""
        c = self.config
        found = lessons.given_rankings(collection)
        if found is None:
            texts = [collection.queries[q] for q in lessons.judged(collection)]
            hits = self.first_search(texts, max(c.feedback, c.candidates), index)
            found = [places.tolist() for places in hits.places]
        made = lessons.gather(
            collection, found, self.pieces, self.frame, feedback=c.feedback,
            candidates=c.candidates, **options,
        )
        vectors = index.vectors(made.subset)
        dense = isinstance(vectors, np.ndarray)
        return made, FrozenDense(vectors) if dense else FrozenSparse(vectors, c.keep)

    def validate(self, module: Any, collection: Collection) -> Mapping[str, float]:
        """MRR@10 over the subset of the validation queries, all feedback read in its order."""
        if self._checked is None or self._checked[0] is not collection:
            made = self.lessons(
                collection, self._chosen(None), revisions=1, fixed=self.config.feedback
            )
            self._checked = (collection, *made)
        return {"mrr@10": curves.subset_mrr(self.vectors, *self._checked[1:])}

    # ---- two searches ----------------------------------------------------------------------------

    def revise(self, queries: Sequence[str], found: Found, index: Index) -> Any:
        places = sorted({p for some in found.places for p in some})
        texts = self.texts(places, index) if places else []
        rows = self.pieces.rows(texts, self.config.max_passage, specials=False)
        passages = {p: rows[i].tolist() for i, p in enumerate(places)}
        asked = lessons.tokens_of(self.pieces, queries, self.config.max_query)
        frame = self.frame
        vectors = self.vectors([
            frame.assemble(tokens, [passages[p] for p in some])
            for tokens, some in zip(asked, found.places, strict=True)
        ])
        return vectors if self.config.head == "dqrd" else sparse_rows(vectors, self.config.prune)

    def vectors(self, reads: Sequence[Read]) -> np.ndarray[Any, Any]:
        """Revised queries [Q, D] in float32, in batches of like length."""
        network = self.network
        device = next(network.parameters()).device
        order = sorted(range(len(reads)), key=lambda i: len(reads[i].ids))
        found: np.ndarray[Any, Any] = np.empty((0, 0), np.float32)
        with torch.no_grad(), evaluating(network):
            for start in range(0, len(order), ROWS):
                rows = order[start : start + ROWS]
                batch = stack([reads[i] for i in rows], self.pieces.pad)
                part: Tensor = network(type(batch)(*(x.to(device) for x in batch))).vectors
                if not len(found):
                    found = np.empty((len(reads), part.shape[1]), np.float32)
                found[rows] = part.float().cpu().numpy()
        return found

    def curve(self, collection: Collection, sizes: Sequence[int] = range(6)) -> curves.Curve:
        """Losses and rankings of a collection's queries by number of passages: see `curves`.

        >>> system = LoL.from_preset("smoke")
        >>> from passband.data.documents.topics import ambiguous_topics
        >>> system.curve(ambiguous_topics(size="smoke").test, sizes=(0, 2)).losses.shape[1]
        2
        """
        return curves.measure(self, collection, sizes)

    # ---- state -----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return super().state() | {
            STAGE + name: array for name, array in self.stage.state().items()
        }

    def extra(self) -> dict[str, Any]:
        return super().extra() | {"stage": self.stage.extra()}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        own = {n: a for n, a in state.items() if not n.startswith(STAGE)}
        theirs = {n.removeprefix(STAGE): a for n, a in state.items() if n.startswith(STAGE)}
        if "stage" not in extra:
            raise CheckpointError(
                "the saved state has no first search", expected="what save() writes",
                mend="train again or copy it again",
            )
        saved = self.config.first_stage not in WORDS
        # Before the network: a dense head has the width of the index.
        self._stage = SavedStage.restore(theirs, extra["stage"]) if saved else None
        super().load_state(own, extra)
        if not saved:
            self.stage.load(theirs, extra["stage"])
        if self.config.head != "dqrd":
            self.network.head.silence(silent_ids(self.pieces))


def sparse_rows(vectors: np.ndarray[Any, Any], prune: float = 0.0) -> Any:
    """Non-negative rows as CSR, without entries below a share of the row's largest.

    >>> sparse_rows(np.float32([[0.0, 2.0, 0.1]]), prune=0.1).toarray()
    array([[0., 2., 0.]], dtype=float32)
    """
    least = prune * vectors.max(1, keepdims=True, initial=0.0)
    return scipy.sparse.csr_array(np.where((vectors > 0) & (vectors >= least), vectors, 0.0))
