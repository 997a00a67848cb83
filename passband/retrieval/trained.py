"""The system around every trained network of the family: start, train in the common loop, save.

    class Mine(TrainedRetriever):
        Config = MineConfig                     # a RetrievalConfig with the method's own fields
        kind = "mlm"                            # of the backbone: "encoder" or "mlm"
        def learn(self, network, collection, run):      # -> Outcome, of `run.train(...)`
            return run.train(network, loss, batches)
        def encode_documents(self, texts): ...
        def encode_queries(self, texts): ...

`self.network` is the module that is trained and saved, `self.pieces` its word pieces; `build`
wraps the backbone where a method has more than that. Several phases: one `run.train` each, with a
name and a share of the budget; `joined` adds their outcomes up.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, Outcome, train
from passband.bench.streams import Streams
from passband.bench.system import Config, Monitor, NullMonitor, System
from passband.bench.task import Data
from passband.errors import CheckpointError
from passband.retrieval.backbones import SHAPES, Kind, build, encode, start
from passband.retrieval.retriever import Retriever
from passband.retrieval.wordpieces import WordPieces, wordpieces

if TYPE_CHECKING:
    from passband.data.documents.collection import Collection
    from passband.retrieval.token_rows import TokenRows

PIECES = "word_pieces"  # name of the tokenizer in the saved state


class RetrievalConfig(Config):
    """Backbone and training, common to all; a method's own fields follow in its subclass."""

    backbone: str = Field(
        "small", description="a shape (small, smoke, bert-base-uncased, ...), minilm, or the "
        "folder of a transformers model with its tokenizer"
    )
    pretrained: bool = Field(
        False, description="start small or smoke from weights pretrained here on docstrings by "
        "masked language modelling, about a minute once"
    )
    vocabulary: str = Field(
        "own", pattern="^(own|embedded)$",
        description="own: word pieces learned from the corpus of the fit; embedded: from "
        "docstrings of installed packages. minilm and folders bring theirs"
    )
    lowercase: bool = Field(True, description="of word pieces that are learned")
    max_length: int = Field(
        128, ge=8, description="tokens of a text at most, [CLS] and [SEP] included"
    )
    steps: int = Field(600, gt=0, description="optimiser steps when the budget sets no limit")
    batch_size: int = Field(64, gt=0, description="examples of a step")
    optimizer: str = Field("adamw", description="of the loop's")
    lr: float = Field(5e-4, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's decay rates, in [0, 1)")
    eps: float = Field(1e-8, gt=0, description="Adam's term in the denominator")
    weight_decay: float = Field(0.01, ge=0, description="decoupled, on every parameter")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; null: none")
    schedule: str = Field("linear", description="of the learning rate, after the warm-up")
    warmup: float = Field(50, ge=0, description="below 1: share of the budget, else steps")
    final: float = Field(0.0, ge=0, le=1, description="learning rate at the end / peak")
    precision: str = Field("no", description="of autocast: no, bf16 or fp16")
    select: str = Field(
        "last", description="last, or lowest NAME / highest NAME of what `validate` gives"
    )

    @model_validator(mode="after")
    def _pretrained_knows_its_words(self) -> RetrievalConfig:
        if self.pretrained and self.vocabulary != "embedded":
            raise ValueError("pretrained=True with vocabulary='embedded'")
        return self


class TrainedRetriever(Retriever):
    """Base of the family's trained systems.

    network  the module; made at the first use, so that counts and errors cost nothing
    pieces   its word pieces; learned at `fit` with vocabulary "own"
    cut      texts so far that were longer than max_length
    """

    Config: ClassVar[type[Config]] = RetrievalConfig
    kind: ClassVar[Kind] = "encoder"

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._network: nn.Module | None = None
        self._pieces: WordPieces | None = None
        self._architecture: dict[str, Any] | None = None
        self.cut = 0

    # ---- what a method gives ---------------------------------------------------------------

    def build(self, backbone: Any) -> nn.Module:
        """The network around a backbone; also called on the meta device. The backbone itself."""
        return backbone

    @abstractmethod
    def learn(self, network: nn.Module, collection: Collection, run: Run) -> Outcome:
        """Train on a collection. See `Run.train` and `joined`."""

    def validate(self, module: Any, collection: Collection) -> Mapping[str, float]:
        """Figures on the validation collection, asked for when `select` names one.

        Ranks the whole corpus: a method that knows something cheaper overrides this.
        """
        from passband.retrieval import scores
        from passband.retrieval.tasks import rank

        ranked = rank(self, collection)  # without what equals its query
        return scores.mean(ranked, collection.judgements, ignore_identical_ids=False)

    def loop_config(self, **changes: Any) -> LoopConfig:
        c = self.config
        return LoopConfig(**{
            "steps": c.steps, "batch_size": c.batch_size, "optimizer": c.optimizer, "lr": c.lr,
            "betas": c.betas, "eps": c.eps, "weight_decay": c.weight_decay, "clip": c.clip,
            "schedule": c.schedule, "warmup": c.warmup, "final": c.final,
            "precision": c.precision, "select": c.select, "looks": 1, **changes,
        })

    # ---- texts -----------------------------------------------------------------------------

    @property
    def pieces(self) -> WordPieces:
        """Before a fit with vocabulary "own": those of the docstrings, so that all verbs work."""
        if self._pieces is None:
            self._start()
        assert self._pieces is not None
        return self._pieces

    def rows(self, texts: Sequence[str], max_length: int | None = None) -> TokenRows:
        """Token ids of texts, [CLS] and [SEP] around them, cut at max_length."""
        found = self.pieces.rows(texts, max_length or self.config.max_length)
        self.cut += found.cut
        return found

    def encode_rows(self, rows: TokenRows, pool: Any = "average") -> np.ndarray:
        """Dense vectors [N, d] float32 of rows by the network; see `backbones.encode`."""
        return encode(self.network, rows, pool)

    def term(self, number: int) -> str:
        return self.pieces.tokens[number]

    # ---- fit -------------------------------------------------------------------------------

    @property
    def network(self) -> nn.Module:
        """In evaluation mode; as it starts when nothing was learned or loaded."""
        if self._network is None:
            self._start()
        assert self._network is not None
        return self._network

    def vocabulary_of(self, train: Any) -> Any:
        """The texts that word pieces are learned from: the corpus of what `fit` is given."""
        return train.corpus

    def _start(self, train: Any = None) -> None:
        """Network and word pieces as a training finds them."""
        c = self.config
        with Streams(self.seed).initialising():
            backbone, pieces = start(
                c.backbone, self.kind, pretrained=c.pretrained, seed=self.seed
            )
            self._architecture = _facts(backbone.config)
            self._network = self.build(backbone).eval()
        if pieces is None:
            own = c.vocabulary == "own" and train is not None
            corpus = self.vocabulary_of(train) if own else None
            pieces = wordpieces(backbone.config.vocab_size, corpus, lowercase=c.lowercase)
        self._pieces = pieces

    def fit(
        self, data: Data[Collection], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        self._index = None  # vectors of other weights
        self._start(data.train)
        run = Run(self, budget, monitor, data.valid)
        return self.learn(self.network, data.train, run).report()

    # ---- size and state ----------------------------------------------------------------------

    def parameter_count(self) -> int:
        if self._network is not None:
            return sum(p.numel() for p in self._network.parameters())
        if self.config.backbone not in SHAPES:
            return sum(p.numel() for p in self.network.parameters())
        with torch.device("meta"):
            backbone = build(SHAPES[self.config.backbone], self.kind)
            return sum(p.numel() for p in self.build(backbone).parameters())

    def state(self) -> dict[str, Any]:
        tensors = dict(self.network.state_dict())
        for name in (PIECES, *tied(self.network)):  # a tied decoder is the embeddings: saved once
            tensors.pop(name, None)
        return {**tensors, PIECES: torch.from_numpy(self.pieces.state())}

    def extra(self) -> dict[str, Any]:
        _ = self.network
        return {"architecture": self._architecture}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        if PIECES not in state or not isinstance(extra.get("architecture"), Mapping):
            raise CheckpointError(
                "the saved state has no word pieces or no architecture",
                expected="what save() writes", mend="train again or copy it again",
            )
        self._architecture = dict(extra["architecture"])
        network = self.build(build(self._architecture, self.kind))
        tensors = {n: torch.as_tensor(a) for n, a in state.items() if n != PIECES}
        # Tied weights are left out, or there twice; what is missing otherwise is an error.
        tensors |= {
            name: tensors[first] for name, first in tied(network).items()
            if name not in tensors and first in tensors
        }
        network.load_state_dict(tensors)
        self._pieces = WordPieces.of(state[PIECES])
        self._network = network.eval()


def tied(network: nn.Module) -> dict[str, str]:
    """Name in the state of a weight that is another one again -> name of that, the earlier one.

    >>> from passband.retrieval.backbones import mlm
    >>> tied(mlm("smoke"))["cls.predictions.decoder.weight"]
    'bert.embeddings.word_embeddings.weight'
    """
    first: dict[int, str] = {}
    found = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        earlier = first.setdefault(id(tensor), name)
        if earlier != name:
            found[name] = earlier
    return found


def _facts(config: Any) -> dict[str, Any]:
    """A transformers configuration as plain values, without the user's paths."""
    facts = json.loads(config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "architectures", "transformers_version", "dtype"):
        facts.pop(name, None)
    return facts


class Run:
    """What one call of `fit` passes on to the loop.

    streams  random numbers of the run; valid  the validation collection, if there is one
    """

    def __init__(
        self, system: TrainedRetriever, budget: Budget, monitor: Monitor | None,
        valid: Collection | None,
    ) -> None:
        self.system, self.budget, self.valid = system, budget, valid
        self.monitor = monitor or NullMonitor()
        self.streams = Streams(system.seed)
        self._steps, self._seconds, self._share = 0, 0.0, 0.0

    def train(
        self, module: Any, loss: Any, data: Any, config: LoopConfig | None = None, *,
        phase: str = "", share: float = 1.0, **more: Any,
    ) -> Outcome:
        """`bench.loop.train` with this run's budget, streams, monitor and checkpoints.

        config  None: the system's `loop_config()`
        phase   name of a phase, where there are several: each has its own checkpoint, and a
                resumed run passes over those that are done
        share   of the budget, and of the config's steps where no budget is given; the shares of
                all phases add up to 1
        """
        system = self.system
        config = config or system.loop_config()
        whole = self.budget if self.budget != Budget() else Budget(steps=config.steps)
        budget = whole.part(share)
        if config.select != "last" and "validate" not in more and self.valid is not None:
            valid = self.valid
            more["validate"] = lambda inner: system.validate(inner, valid)
        folder = system.checkpoints
        monitor = _Phase(self.monitor, self._steps, self._seconds, self._share, share)
        outcome = train(
            module, loss, data, budget, config, streams=self.streams, system=system,
            monitor=monitor, checkpoints=folder / f"loop-{phase}" if folder and phase else None,
            **more,
        )
        self._steps += outcome.steps
        self._seconds += outcome.seconds
        self._share += share
        return outcome


class _Phase:
    """A monitor that sees several phases as one run."""

    def __init__(
        self, monitor: Monitor, steps: int, seconds: float, done: float, share: float
    ) -> None:
        self.monitor, self.steps, self.seconds = monitor, steps, seconds
        self.done, self.share = done, share

    def log(self, step: int, seconds: float, **values: float) -> None:
        self.monitor.log(self.steps + step, self.seconds + seconds, **values)

    def progress(self, fraction: float, text: str = "") -> None:
        self.monitor.progress(min(1.0, self.done + self.share * fraction), text)

    def test_error(self, system: System) -> None:
        self.monitor.test_error(system)


def joined(*outcomes: Outcome) -> Outcome:
    """Several phases as one: what was spent adds up, the rest is that of the last.

    >>> first, last = (Outcome(n, 1.0, 2 * n, 0.0, "last", "budget", {"loss": 1.0 / n})
    ...                for n in (2, 3))
    >>> whole = joined(first, last)
    >>> whole.steps, whole.seconds, whole.examples, round(whole.values["loss"], 2)
    (5, 2.0, 10, 0.33)
    """
    last = outcomes[-1]
    return Outcome(
        steps=sum(o.steps for o in outcomes), seconds=sum(o.seconds for o in outcomes),
        examples=sum(o.examples for o in outcomes), looked=sum(o.looked for o in outcomes),
        selected=last.selected, stopped=last.stopped,
        values={k: v for o in outcomes for k, v in o.values.items()},
        rows=[row for o in outcomes for row in o.rows],
    )


def untrained() -> Outcome:
    """The outcome of a fit that trains nothing, for comparisons with what training adds."""
    return Outcome(
        steps=0, seconds=0.0, examples=0, looked=0.0, selected="last", stopped="budget", values={},
    )
