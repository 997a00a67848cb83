"""LAVDNN as a system: a character LSTM over the names of functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, train
from passband.bench.streams import Streams
from passband.bench.system import Config, Monitor
from passband.bench.task import Data
from passband.data.names.named import Named
from passband.parts.identifiers import LONGEST
from passband.parts.modes import evaluating
from passband.retrieval.character_lstm import (
    ALPHABET,
    CharacterLSTM,
    encode,
    probabilities,
    vulnerability,
    word_scores,
)
from passband.retrieval.flagger import Flagger
from passband.retrieval.flags import Array


class CharacterConfig(Config):
    """The network and its training."""

    units: int = Field(32, gt=0, description="of each of the three layers")
    activation: Literal["elu", "tanh"] = Field(
        "tanh", description="of the first two layers: elu is the published one, tanh has a kernel"
    )
    output: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="over the two classes, or for each; the cross-entropy is binary"
    )
    dropout: float = Field(0.25, ge=0, lt=1, description="of the second layer's inputs")
    noise: int = Field(0, ge=0, description="random strings added to the benign names")
    balanced: bool = Field(True, description="both classes weigh the same in the loss")
    epochs: int = Field(60, gt=0, description="passes over the names when the budget sets no limit")
    batch_size: int = Field(64, gt=0, description="names of a step")
    lr: float = Field(1e-3, gt=0, description="of Adam")
    clip: float | None = Field(5.0, gt=0, description="largest norm of the gradient; null: none")
    threshold: float = Field(0.5, ge=0, le=1, description="names with a higher score are flagged")


class CharacterFlagger(Flagger):
    """
    >>> system = CharacterFlagger.from_preset("small", activation="elu")
    """

    Config: ClassVar[type[Config]] = CharacterConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "units": 120, "activation": "elu", "noise": 1199, "balanced": False, "epochs": 300,
            "clip": None,
        },
        "small": {},
        "smoke": {"units": 8, "epochs": 5, "lr": 1e-2},
    }

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._network: CharacterLSTM | None = None

    @property
    def network(self) -> CharacterLSTM:
        """In evaluation mode; drawn from the seed when nothing was learned or loaded."""
        if self._network is None:
            with Streams(self.seed).initialising():
                self._network = self._build().eval()
        return self._network

    def _build(self) -> CharacterLSTM:
        c = self.config
        return CharacterLSTM(c.units, c.activation, c.dropout)

    def fit(
        self, data: Data[Named], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        c, named = self.config, data.train.needs(1, "a network to learn from")
        self._network = None
        places, labels = encode(named.names), torch.from_numpy(named.vulnerable)
        if c.noise:
            strings = noise(c.noise, self.seed)
            places = torch.cat([places, encode(strings)])
            labels = torch.cat([labels, torch.zeros(c.noise, dtype=torch.bool)])
        share = labels.double().mean().item()
        weights = torch.tensor([0.5 / (1 - share), 0.5 / share] if c.balanced else [1.0, 1.0])

        def loss(network: CharacterLSTM, batch: tuple[Tensor, Tensor]) -> Tensor:
            ids, bad = batch
            wanted = torch.stack([bad, ~bad], dim=1).float()
            found = probabilities(network(ids), c.output).clamp(1e-7, 1 - 1e-7)
            each = F.binary_cross_entropy(found, wanted, reduction="none").mean(1)
            return (each * weights.to(each)[bad.long()]).mean()

        outcome = train(
            self.network, loss, torch.utils.data.TensorDataset(places, labels), budget,
            LoopConfig(
                steps=c.epochs * ceil(len(labels) / c.batch_size), batch_size=c.batch_size,
                optimizer="adam", lr=c.lr, clip=c.clip, looks=1,
            ),
            streams=Streams(self.seed), system=self, monitor=monitor,
        )
        self.fitted = True
        return outcome.report()

    # ---- what Flagger asks for -----------------------------------------------------------------

    @property
    def threshold(self) -> float:
        limit: float = self.config.threshold
        return limit

    def scores(self, names: Sequence[str]) -> Array:
        with evaluating(self.network):
            found = vulnerability(self.network, encode(names), self.config.output)
        return found.double().numpy()

    def word_scores(self, words: Sequence[str]) -> Array:
        """[W] of each word alone, at its most dangerous place among blanks."""
        with evaluating(self.network):
            return np.array(word_scores(self.network, words, self.config.output))

    # ---- size and state ------------------------------------------------------------------------

    def parameter_count(self) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in self._build().parameters())

    def state(self) -> dict[str, Any]:
        return dict(self.network.state_dict())

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        network = self._build()
        network.load_state_dict({name: torch.as_tensor(array) for name, array in state.items()})
        self._network, self.fitted = network.eval(), True


def noise(count: int, seed: int) -> list[str]:
    """Random strings of 1 to 50 characters of a name.

    >>> len(noise(3, seed=0))
    3
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    letters = list(ALPHABET.strip())
    return ["".join(rng.choice(letters, rng.integers(1, LONGEST + 1))) for _ in range(count)]
