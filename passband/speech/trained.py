"""The system around every network of the family: build, train in the common loop, save.

    class Mine(Trained):
        Config = MineConfig                          # a SpeechConfig with the method's own fields
        def build(self): return Network(self.config.width)
        def objective(self, module, batch):          # batch.input [B, L], batch.target [B, (K,) L]
            return loss(module(batch.input), batch.target)

A subclass of `Separator`, `Enhancer` or `Vocoder` has the verb as well; one with more than one loss
overrides `learn`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, Outcome, train
from passband.bench.streams import Streams
from passband.bench.system import Config, Monitor, System
from passband.bench.task import Data
from passband.parts.modes import evaluating

if TYPE_CHECKING:
    from passband.data.speech.pairs import Example, Pairs


class SpeechConfig(Config):
    """Rate, training and segments, common to all; a method's own fields follow in its subclass."""

    sample_rate: int = Field(16_000, ge=4_000, le=192_000, description="of the network, in Hz")
    seconds: float = Field(1.0, gt=0, le=60, description="of one training segment")
    steps: int = Field(300, gt=0, description="optimiser steps when the budget sets no limit")
    batch_size: int = Field(4, gt=0, description="segments of a step")
    optimizer: str = Field("adam", description="of the loop's")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's decay rates, in [0, 1)")
    weight_decay: float = Field(0.0, ge=0, description="of the optimiser")
    clip: float | None = Field(5.0, gt=0, description="largest norm of the gradient; null: none")
    schedule: str = Field("constant", description="of the learning rate")
    warmup: float = Field(0.0, ge=0, description="below 1: share of the budget, else steps")
    drop_every: float = Field(
        0.5, gt=0, description="schedule step: share of the budget (below 1) or steps"
    )
    drop: float = Field(
        0.1, gt=0, le=1, description="schedules step and plateau: lr is multiplied by this"
    )
    patience: int = Field(
        5, gt=0, description="schedule plateau: validations without a better one until lr drops"
    )
    reload: bool = Field(
        False, description="schedule plateau: go on from the best weights when lr drops"
    )
    stop_after: int | None = Field(
        None, gt=0, description="validations without a better one until training ends; null: the "
        "budget ends it"
    )
    validate_every: int | None = Field(
        None, gt=0, description="steps from validation to validation; null: 20 times a run"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of averaged weights, which are then the ones kept"
    )
    precision: str = Field("no", description="of autocast: no, bf16 or fp16")
    select: str = Field(
        "last", description="last, or lowest NAME / highest NAME of what `validate` gives"
    )


class Trained(System):
    """Base of the family's systems.

    network  the module; built at the first use, so that counts and errors cost nothing
    """

    Config: ClassVar[type[Config]] = SpeechConfig

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._network: nn.Module | None = None

    # ---- what a method gives ---------------------------------------------------------------

    @abstractmethod
    def build(self) -> nn.Module:
        """The configured network with fresh weights; also on the meta device."""

    def objective(
        self, module: Any, batch: Example
    ) -> Tensor | tuple[Tensor, Mapping[str, Tensor]]:
        """Loss of a batch of segments, a mean over its items, and values to log."""
        raise NotImplementedError(f"{type(self).__name__} learns in its own way")

    def validate(self, module: Any, pairs: Pairs) -> Mapping[str, float]:
        """Figures on validation pairs, asked for when `select` names one."""
        raise NotImplementedError(f"{type(self).__name__} has no validation")

    def learn(self, network: nn.Module, pairs: Pairs, run: Run) -> Outcome:
        """Train on `pairs`, which have the network's rate. One loss by default."""
        c = self.config
        validate = None
        if c.select != "last" and run.valid is not None:
            valid = run.valid.at(c.sample_rate)

            def validate(module: Any) -> Mapping[str, float]:
                return self.validate(module, valid)

        return run.train(
            network, lambda module, batch: self.objective(module, _example(batch)),
            pairs.segments(self.segment), self.loop_config(), validate=validate,
        )

    @property
    def segment(self) -> int:
        """Samples of a training segment."""
        return round(self.config.seconds * self.config.sample_rate)

    def loop_config(self, **changes: Any) -> LoopConfig:
        c = self.config
        return LoopConfig(**{
            "steps": c.steps, "batch_size": c.batch_size, "optimizer": c.optimizer, "lr": c.lr,
            "betas": c.betas, "weight_decay": c.weight_decay, "clip": c.clip,
            "schedule": c.schedule, "warmup": c.warmup, "ema": c.ema, "precision": c.precision,
            "drop_every": c.drop_every, "drop": c.drop, "patience": c.patience,
            "reload": c.reload, "stop_after": c.stop_after, "validate_every": c.validate_every,
            "select": c.select, "looks": 1, **changes,
        })

    # ---- fit ---------------------------------------------------------------------------------

    @property
    def network(self) -> nn.Module:
        """In evaluation mode; drawn from the system's seed when nothing was learned or loaded."""
        if self._network is None:
            with Streams(self.seed).initialising():
                self._network = self.build().eval()
        return self._network

    def fit(
        self, data: Data[Pairs], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        self._network = None
        pairs = data.train.at(self.config.sample_rate)
        run = Run(self, budget, monitor, data.valid)
        return self.learn(self.network, pairs, run).report()

    def compute(self, function: Any, *arrays: Tensor) -> Any:
        """A function of tensors on the network's device, without gradients; back on the CPU."""
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        with torch.no_grad(), evaluating(self.network):
            return function(*(x.to(device) for x in arrays)).cpu()

    # ---- size and state ----------------------------------------------------------------------

    def parameter_count(self) -> int:
        if self._network is not None:
            return sum(p.numel() for p in self._network.parameters())
        with torch.device("meta"):
            return sum(p.numel() for p in self.build().parameters())

    def state(self) -> dict[str, Any]:
        return dict(self.network.state_dict())

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        network = self.build()
        network.load_state_dict({name: torch.as_tensor(array) for name, array in state.items()})
        self._network = network.eval()


class Run:
    """What one call of `fit` passes on to the loop."""

    def __init__(
        self, system: Trained, budget: Budget, monitor: Monitor | None, valid: Pairs | None
    ) -> None:
        self.system, self.budget, self.monitor, self.valid = system, budget, monitor, valid
        self.streams = Streams(system.seed)

    def train(self, module: Any, loss: Any, data: Any, config: LoopConfig, **more: Any) -> Outcome:
        """`bench.loop.train` with this run's budget, streams, monitor and checkpoints."""
        return train(
            module, loss, data, self.budget, config, streams=self.streams, system=self.system,
            monitor=self.monitor, **more,
        )


def _example(batch: Any) -> Example:
    from passband.data.speech.pairs import Example

    return Example(*batch)
