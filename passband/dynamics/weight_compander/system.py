"""The classifier whose weights are companded: configuration and presets around `model.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from passband.bench.loop import Outcome
from passband.bench.optim import build_optimizer
from passband.bench.system import Config
from passband.bench.task import Artifact, Data
from passband.dynamics.classifier import Classifier, ClassifierConfig, Run
from passband.dynamics.weight_compander.curves import CURVES
from passband.dynamics.weight_compander.distribution import WeightStats, weight_stats
from passband.dynamics.weight_compander.model import (
    cached,
    compand,
    decay_penalty,
    export_plain_state_dict,
    parameter_groups,
)
from passband.parts.indexed import Item

CIFAR: dict[str, Any] = {
    "shape": (3, 32, 32), "augment": "crop-flip", "epochs": 200, "batch_size": 128, "lr": 0.1,
    "weight_decay": 5e-4, "schedule": "cosine", "clip": 1.0,
}


class WeightCompanderConfig(ClassifierConfig):
    """Network and training as for every classifier; the curve and its place."""

    curve: str = Field("arctan", description=f"one of {', '.join(CURVES)}")
    bound: float = Field(
        1.0, gt=0, description="a, in units of three standard deviations of a layer's first weights"
    )
    slope: float = Field(1.5, gt=0, description="a / b: steepness of the curve at zero")
    learn: bool = Field(True, description="train a and b, from there on")
    scope: Literal["layer", "channel", "global"] = Field(
        "layer", description="one pair (a, b) for each layer, each output channel, or for all"
    )
    init: Literal["match", "raw"] = Field(
        "match", description="match: v starts such that the weights are the usual ones; raw: v does"
    )
    first: bool = Field(True, description="wrap the first layer too")
    last: bool = Field(True, description="wrap the last layer too")
    decay_on: Literal["v", "w"] = Field("v", description="what weight decay acts on")
    scale_lr: float = Field(0.1, gt=0, description="learning rate of a and b, in units of lr")
    steady: bool = Field(
        False, description="divide the rate of v by (a/b)^2: weights near zero move at rate lr"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a label that all classes divide among them"
    )

    @field_validator("curve")
    @classmethod
    def _curve(cls, name: str) -> str:
        if name not in CURVES:
            raise ValueError(f"one of {', '.join(CURVES)}")
        return name


class WeightCompander(Classifier):
    """
    >>> system = WeightCompander.from_preset("smoke", slope=2.0)
    >>> [row.layer for row in system.weights()]
    ['body.1', 'head']
    """

    Config: ClassVar[type[Config]] = WeightCompanderConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {**CIFAR, "network": "resnet50"},
        "paper-wide": {**CIFAR, "network": "wide_resnet28", "width": 160},
        "small": {
            "hidden": (256, 256), "epochs": 60, "lr": 0.1, "weight_decay": 5e-4, "clip": 1.0,
        },
        "smoke": {"hidden": (64,), "steps": 100, "batch_size": 32, "lr": 0.05, "clip": 1.0},
    }

    def build(self) -> nn.Module:
        c = self.config
        return compand(
            super().build(), bound=c.bound, slope=c.slope, curve=c.curve, learn=c.learn,
            scope=c.scope, init=c.init, first=c.first, last=c.last,
        )

    def objective(self, module: Any, batch: Item) -> Tensor:
        c = self.config
        # A weight is computed once a step, however often the network asks for it.
        with cached():
            loss = F.cross_entropy(module(batch.x), batch.y, label_smoothing=c.label_smoothing)
            if c.decay_on == "w" and c.weight_decay:
                loss = loss + decay_penalty(module, c.weight_decay)
        return loss

    def learn(self, network: nn.Module, labelled: Any, run: Run) -> Outcome:
        config = self.loop_config(len(labelled))
        c = self.config
        groups = parameter_groups(
            network, c.lr, c.weight_decay, scale_lr=c.scale_lr, decay_on=c.decay_on,
            steady=c.steady,
        )
        optimizer = build_optimizer(groups, config)
        return run.train(network, self.objective, labelled, config, optimizer=optimizer)

    def _through(self, function: Any, x: Tensor) -> Tensor:
        with torch.no_grad(), cached():  # all chunks see weights computed once
            return super()._through(function, x)

    # ---- what is learned ---------------------------------------------------------------------

    def weights(self) -> list[WeightStats]:
        """Size, share near zero and tails of each layer's weights."""
        return weight_stats(self.network)

    def plain_state(self) -> dict[str, Tensor]:
        """State dict of the same network without companders, for use anywhere else."""
        return export_plain_state_dict(self.network)

    def pictures(self, data: Data[Any], folder: Path) -> list[Artifact]:
        from passband.dynamics.weight_compander.pictures import draw

        return draw(self.network, folder)
