"""Contriever as a system: crops of raw text, then questions with answers where there are some."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, Outcome, Stage
from passband.bench.system import Config, Monitor
from passband.bench.task import Data
from passband.errors import DataError, PassbandWarning
from passband.parts.asam import sharp_gradients
from passband.parts.momentum import nearest_multiple
from passband.retrieval.contriever.crops import CropRecipe, Crops
from passband.retrieval.contriever.finetune import Pairs, inputs
from passband.retrieval.contriever.model import InBatch, MoCo
from passband.retrieval.contriever.plain_text import plain_text
from passband.retrieval.lessons import examples_of
from passband.retrieval.mining import mined
from passband.retrieval.token_files import token_counts, token_file
from passband.retrieval.trained import (
    RetrievalConfig,
    Run,
    TrainedRetriever,
    joined,
    untrained,
)

if TYPE_CHECKING:
    from passband.data.documents.collection import Collection, Example
    from passband.retrieval.search_page.encoders import PageEncoder


class ContrieverConfig(RetrievalConfig):
    """Pairs, loss, and the fine-tuning that may follow."""

    betas: tuple[float, float] = Field((0.9, 0.98), description="Adam's decay rates, in [0, 1)")
    eps: float = Field(1e-6, gt=0, description="Adam's term in the denominator")
    objective: Literal["moco", "in-batch", "none"] = Field(
        "moco", description="against a queue of earlier keys; against the batch; none leaves the "
        "start as it is, for comparisons and for fine-tuning alone"
    )
    queue_size: int = Field(2048, gt=0, description="keys, a multiple of batch_size")
    queue_start: Literal["random", "warm"] = Field(
        "random", description="unit Gaussians until they are replaced, as published; or warm: "
        "only what was pushed"
    )
    momentum: float = Field(0.99, ge=0, lt=1, description="of the key encoder")
    key_dropout: bool = Field(True, description="dropout when keys are encoded, as published")
    temperature: float = Field(0.05, gt=0, description="what dot products are divided by")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="spread over all candidates")
    pairs: Literal["crop", "ict"] = Field(
        "crop", description="two crops of a chunk; or ict: a span and what is left of the chunk"
    )
    chunk_length: int = Field(
        128, ge=4, description="tokens of a chunk, at most"
    )
    within_documents: bool = Field(
        False, description="chunks end where documents do; false: they run over, as published, "
        "which pairs words of several documents where documents are shorter than a chunk"
    )
    ratio_min: float = Field(0.1, gt=0, le=1, description="shortest crop / chunk")
    ratio_max: float = Field(0.5, gt=0, le=1, description="longest crop / chunk")
    augmentation: Literal["delete", "mask", "replace", "shuffle", "none"] = Field(
        "delete", description="what happens to single tokens of a crop"
    )
    augmented: float = Field(0.1, ge=0, lt=1, description="share of the tokens of a crop")
    dataset_power: float = Field(
        0.0, ge=0, le=1, description="several data sets: drawn by size to this power, 0 is uniform"
    )
    pooling: Literal["average", "cls"] = Field("average", description="of the last states")
    norm_query: bool = Field(False, description="queries of length 1")
    norm_doc: bool = Field(False, description="documents of length 1")
    normalize_text: bool = Field(
        False, description="fold Unicode quotes, dashes, slashes and blanks first"
    )
    finetune_steps: int = Field(0, ge=0, description="on questions with answers, after the crops")
    mined_steps: int = Field(0, ge=0, description="more of them, with negatives of its own search")
    finetune_lr: float = Field(5e-4, gt=0, description="peak learning rate of fine-tuning")
    finetune_pairs: int | None = Field(
        None, gt=1, description="questions that fine-tuning sees; null: all"
    )
    titles: int = Field(
        0, ge=0, description="with fewer judged queries than this, titles (or first sentences) "
        "of documents are queries as well; they always are where there is none"
    )
    negatives: int = Field(1, ge=0, description="of each question, besides the batch's answers")
    hard_share: float = Field(0.1, ge=0, le=1, description="chance of a negative to be a hard one")
    mined: int = Field(50, gt=0, description="hits of its own search that are mined")
    asam: float | None = Field(
        None, gt=0, description="fine-tune by adaptive sharpness-aware steps of this size"
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> ContrieverConfig:
        if self.objective == "moco" and self.queue_size % self.batch_size:
            near = nearest_multiple(self.queue_size, self.batch_size)
            raise ValueError(
                f"queue_size a multiple of batch_size = {self.batch_size}; the nearest is {near}"
            )
        if self.ratio_min > self.ratio_max:
            raise ValueError("ratio_min not above ratio_max")
        return self


_PAPER: dict[str, Any] = {
    "backbone": "bert-base-uncased", "queue_size": 131_072, "momentum": 0.9995,
    "batch_size": 2048, "lr": 5e-5, "warmup": 20_000, "steps": 500_000, "chunk_length": 256,
    "ratio_min": 0.05, "max_length": 512, "finetune_lr": 1e-5,
}


class Contriever(TrainedRetriever):
    """
    >>> system = Contriever.from_preset("smoke", objective="none")
    >>> system.encode_documents(["Rivers of ice.", "Hot springs."]).shape
    (2, 32)
    """

    Config: ClassVar[type[Config]] = ContrieverConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _PAPER,
        "multilingual": {
            **_PAPER, "backbone": "bert-base-multilingual-cased", "lowercase": False,
            "queue_size": 32_768, "momentum": 0.999, "batch_size": 4096, "ratio_min": 0.1,
            "augmentation": "none", "normalize_text": True,
        },
        "msmarco": {
            **_PAPER, "batch_size": 1024, "finetune_steps": 20_000, "mined_steps": 10_000,
            "asam": 0.5,
        },
        # From a random start: see the card for why lengths are 1 here.
        "small": {"lr": 5e-3, "norm_query": True, "norm_doc": True, "finetune_lr": 2e-3},
        # From a trained sentence encoder: fine-tuned on the user's questions, or on titles.
        "minilm": {
            "backbone": "minilm", "objective": "none", "norm_query": True, "norm_doc": True,
            "finetune_steps": 40, "finetune_lr": 2e-5, "warmup": 0.1, "batch_size": 32,
            "titles": 1000, "negatives": 0,
        },
        "smoke": {
            "backbone": "smoke", "steps": 60, "warmup": 5, "batch_size": 16, "queue_size": 64,
            "momentum": 0.99, "lr": 5e-3, "chunk_length": 48, "finetune_lr": 2e-3,
            "queue_start": "warm",
        },
    }

    # ---- training ----------------------------------------------------------------------------

    def fit(
        self, data: Data[Any], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        """Learn from a Collection, or from a list of them as several data sets.

        Word pieces and crops come from the documents alone. Questions are read with
        `finetune_steps` or `mined_steps`. Raises `DataError` for less text than one chunk.
        """
        return super().fit(data, budget, monitor)

    def vocabulary_of(self, train: Any) -> Any:
        collections = _listed(train)
        if len(collections) == 1:
            return collections[0].corpus
        return chain.from_iterable(one.corpus for one in collections)

    def learn(self, network: nn.Module, collection: Any, run: Run) -> Outcome:
        c, collections = self.config, _listed(collection)
        steps = {
            "crops": 0 if c.objective == "none" else c.steps, "pairs": c.finetune_steps,
            "mined": c.mined_steps,
        }
        total = sum(steps.values())
        outcomes = []
        for phase, count in steps.items():
            if not count:
                continue
            work = getattr(self, f"_{phase}")
            outcomes.append(work(
                network, collections, partial(run.train, phase=phase, share=count / total), total
            ))
        return joined(*outcomes) if outcomes else untrained()

    def _crops(self, network: Any, collections: Sequence[Any], train: Any, total: int) -> Outcome:
        c, pieces = self.config, self.pieces
        fold = plain_text if c.normalize_text else None
        recipe = CropRecipe(
            c.chunk_length, c.ratio_min, c.ratio_max, c.pairs, c.augmentation, c.augmented
        )
        crops = Crops(
            [token_file(one.corpus, pieces, fold) for one in collections], recipe, c.batch_size,
            cls=pieces.cls, sep=pieces.sep, mask=pieces.mask or 0, vocabulary=len(pieces),
            plain=max(pieces.special) + 1 if max(pieces.special) < len(pieces) // 2 else 0,
            coefficient=c.dataset_power, seed=self.seed,
            documents=[token_counts(one.corpus, pieces, fold) for one in collections]
            if c.within_documents else None,
        )
        module = self._contrast(network)
        return train(
            module, _loss, crops, self.loop_config(steps=total, select="last"),
            state=getattr(module, "key", None),
        )

    def _contrast(self, network: Any) -> nn.Module:
        c = self.config
        common: dict[str, Any] = {
            "temperature": c.temperature, "label_smoothing": c.label_smoothing,
            "pooling": c.pooling, "norm_query": c.norm_query, "norm_doc": c.norm_doc,
        }
        if c.objective == "in-batch":
            return InBatch(network, **common)
        return MoCo(
            network, queue=c.queue_size, momentum=c.momentum, key_dropout=c.key_dropout,
            queue_start=c.queue_start, seed=self.seed, **common,
        )

    # ---- fine-tuning -------------------------------------------------------------------------

    def _pairs(self, network: Any, collections: Sequence[Any], train: Any, total: int) -> Outcome:
        examples = self._examples(collections)
        own = {i: one.negatives for i, one in enumerate(examples)}
        return self._finetune(network, examples, own, train, total)

    def _mined(self, network: Any, collections: Sequence[Any], train: Any, total: int) -> Outcome:
        """Search all documents with the model as it is; what is found and wrong is a negative."""
        examples = self._examples(collections)
        asked = self.encode_queries([one.query for one in examples])
        hard: dict[int, list[str]] = {i: [] for i in range(len(examples))}
        for one in collections:
            index: Any = self.index(one.corpus)
            hits = index.find(asked, min(self.config.mined, len(one.corpus)))
            places = [row[row >= 0].tolist() for row in hits.places]
            rng = np.random.default_rng(self.seed)
            for i, texts in mined(one.corpus, examples, places, 0, rng).items():
                hard[i] += texts
        self._index = None  # of weights that go on changing
        return self._finetune(network, examples, hard, train, total)

    def _examples(self, collections: Sequence[Any]) -> Sequence[Example]:
        found = list(chain.from_iterable(
            examples_of(one, self.config.titles) for one in collections
        ))
        most = self.config.finetune_pairs
        if most is None or most >= len(found):
            return found
        order = np.random.default_rng([self.seed, 5]).permutation(len(found))
        return [found[i] for i in order[:most]]

    def _finetune(
        self, network: Any, examples: Sequence[Example],
        negatives: Mapping[int, Sequence[str]], train: Any, total: int,
    ) -> Outcome:
        c = self.config
        pairs = Pairs.of(examples, 1, negatives)
        pairs.negatives_each, pairs.hard_share = c.negatives, c.hard_share
        pairs.tokenise(self._token_rows, c.max_length, c.max_length)
        module = InBatch(
            network, temperature=c.temperature, label_smoothing=c.label_smoothing,
            pooling=c.pooling, norm_query=c.norm_query, norm_doc=c.norm_doc,
        )
        config: LoopConfig = self.loop_config(steps=total, lr=c.finetune_lr)
        if c.asam is None:
            return train(module, _pair_loss, pairs, config, collate=pairs.collate)
        step = partial(_sharp_step, rho=c.asam)
        return train(module, None, pairs, config, collate=pairs.collate, step=step)

    def _token_rows(self, texts: Sequence[str], max_length: int) -> Any:
        return self.pieces.rows(self._folded(texts), max_length)

    # ---- texts to vectors --------------------------------------------------------------------

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """[N, d] float32; texts are cut at max_length tokens, `cut` says how many were."""
        return self._encoded(texts, "documents", self.config.norm_doc)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """[N, d] float32, by the same encoder."""
        return self._encoded(texts, "queries", self.config.norm_query)

    def page_encoder(self) -> PageEncoder | None:
        c = self.config
        if c.normalize_text:  # a page does not fold texts
            return None
        from passband.retrieval.search_page.encoders import SmallBert

        return SmallBert(self.network, self.pieces, c.max_length, c.pooling, c.norm_query)

    def _encoded(self, texts: Sequence[str], what: str, norm: bool) -> np.ndarray:
        rows = self.rows(self._folded(texts))
        empty = int((rows.lengths <= 2).sum())
        if empty:
            warnings.warn(
                f"{empty} of {len(rows)} {what} are empty: they get the vector of [CLS] [SEP]",
                PassbandWarning, stacklevel=3,
            )
        vectors = self.encode_rows(rows, self.config.pooling)
        return F.normalize(torch.from_numpy(vectors), dim=-1).numpy() if norm else vectors

    def _folded(self, texts: Sequence[str]) -> list[str]:
        if self.config.normalize_text:
            return [plain_text(text) for text in texts]
        return list(texts)


def _listed(train: Any) -> list[Collection]:
    found = list(train) if isinstance(train, (list, tuple)) else [train]
    if not found:
        raise DataError("no data set to learn from", expected="a Collection, or a list of them")
    return found


def _loss(module: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return module(*batch)


def _pair_loss(module: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return module(*inputs(batch))


def _sharp_step(stage: Stage, batch: Any, rho: float) -> dict[str, Any]:
    """An ASAM step: the optimiser gets the gradient at the perturbed weights."""
    module = stage.module
    parameters = [p for p in module.parameters() if p.requires_grad]
    given = inputs(batch)
    gradients, (loss, logged) = sharp_gradients(lambda: module(*given), parameters, rho=rho)
    # A linear function with just these gradients, so that clipping and processes work as always.
    surrogate = sum((p * g).sum() for p, g in zip(parameters, gradients, strict=True))
    stage.update(surrogate)
    return {"loss": loss, **logged}
