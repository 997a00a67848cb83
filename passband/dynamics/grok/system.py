"""Tables of residues completed by a small network, and what its neurons say about the labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, train
from passband.bench.optim import build_optimizer
from passband.bench.streams import Streams
from passband.bench.system import Config, Monitor, System
from passband.bench.task import Artifact, Data
from passband.data.modular import LARGEST, Known, Modular, all_pairs
from passband.dynamics.grok.encoder import TinyEncoder
from passband.dynamics.grok.model import QuadraticMLP
from passband.dynamics.grok.monitor import measure_layers
from passband.dynamics.grok.neurons import neuron_table, order_of
from passband.dynamics.grok.sweep import LOSSES, batch_factor, check_rates
from passband.errors import ConfigError, DataError, PassbandError
from passband.parts.modes import evaluating

ROWS = 8192  # pairs at a time


class GrokConfig(Config):
    """A network and how it is regularised."""

    p: int = Field(97, ge=3, le=LARGEST, description="residues; data of another size set their own")
    network: Literal["mlp", "encoder"] = Field(
        "mlp", description="two layers, or a small transformer"
    )
    neurons: int = Field(500, gt=0, description="of the mlp")
    act: Literal["square", "relu"] = Field("square", description="activation of the mlp")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the activation's input, in the mlp")
    norm: Literal["none", "bn", "ln"] = Field(
        "none", description="normalisation after the activation, in the mlp"
    )
    width: int = Field(128, gt=0, description="of the encoder; a multiple of heads")
    heads: int = Field(4, gt=0, description="of the encoder")
    blocks: int = Field(1, gt=0, description="of the encoder")
    s: Literal[0, 1] = Field(1, description="scales of the encoder: 1 muP, 0 standard")

    loss: Literal["mse", "cross-entropy"] = Field(
        "mse", description="mean square distance to one-hots, or cross-entropy"
    )
    steps: int = Field(500, gt=0, description="of AdamW, when the budget sets no limit")
    lr: float = Field(0.01, gt=0, description="batches below 256 take lr sqrt(batch_size / 256)")
    weight_decay: float = Field(
        0.0, ge=0, description="decoupled, of weight matrices; times lr it has to stay below 1"
    )
    batch_size: int | None = Field(
        None, gt=0, description="pairs a step; None: all known pairs in every step"
    )
    held_out: float = Field(
        0.1, ge=0, le=0.5, description="share of the known entries of a user's table that apply "
        "does not train on, to say how many of the unknown ones come out right"
    )

    @model_validator(mode="after")
    def _fits(self) -> GrokConfig:
        try:
            check_rates(self.lr, self.weight_decay, self.batch_size)
        except ConfigError as error:
            raise ValueError(f"{error.expected}: {error.what}") from None
        if self.width % self.heads:
            raise ValueError(f"width a multiple of heads, not {self.width} with {self.heads}")
        return self


class Grok(System):
    """
    >>> from passband.data.modular import modular_dataset
    >>> data = modular_dataset(31, alpha=0.7, xi=0.2)
    >>> system = Grok.from_preset("smoke", steps=30)
    >>> _ = system.fit(Data(train=data.known))
    >>> system.complete().shape                          # the whole table
    (31, 31)
    >>> system.complete([[3, 5], [30, 30]]).shape
    (2,)

    network  a `QuadraticMLP` or a `TinyEncoder`
    """

    Config: ClassVar[type[Config]] = GrokConfig
    verbs = ("complete",)
    needs_fit = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"weight_decay": 15.0},  # full inversion at alpha 0.5, xi 0.35
        "clean": {"weight_decay": 5.0, "steps": 100},
        "coexistence": {"steps": 1000},
        "partial-inversion": {"weight_decay": 5.0},
        "forgetting": {"weight_decay": 20.0, "steps": 5000},
        "batch-norm": {"norm": "bn", "batch_size": 64, "steps": 2000},
        "minibatch": {"batch_size": 64, "steps": 2000},
        "dropout": {"dropout": 0.6, "steps": 300},
        "transformer": {
            "network": "encoder", "loss": "cross-entropy", "weight_decay": 0.5, "steps": 1000,
        },
        "small": {"weight_decay": 15.0, "steps": 300},
        "smoke": {"p": 31, "neurons": 192, "weight_decay": 10.0, "steps": 300},
    }

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.fitted = False
        self._build(self.config.p, self.config.p)

    def _build(self, p: int, classes: int) -> None:
        c = self.config
        self.p, self.classes = p, classes
        with Streams(self.seed).initialising():
            self.network: nn.Module = QuadraticMLP(
                p, c.neurons, c.act, dropout=c.dropout, norm=c.norm, classes=classes
            ) if c.network == "mlp" else TinyEncoder(
                p, c.width, c.heads, c.blocks, s=c.s, classes=classes
            )
        self.network.eval()

    # ---- learning ------------------------------------------------------------------------------

    def fit(
        self, data: Data[Known], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        """Learn the known entries. The network is built anew, for their p and classes."""
        c, known = self.config, _checked(data.train)
        self._build(known.p, known.classes)
        self.fitted = True
        size = None if c.batch_size is None else min(c.batch_size, len(known))
        config = LoopConfig(
            steps=c.steps, batch_size=size or len(known), lr=c.lr * batch_factor(c.batch_size),
            betas=(0.9, 0.98), weight_decay=c.weight_decay,
        )
        weights = list(self.network.parameters())
        groups = [
            {"params": [w for w in weights if w.dim() > 1]},
            {"params": [w for w in weights if w.dim() <= 1], "weight_decay": 0.0},
        ]
        loss = LOSSES[c.loss]

        def objective(network: Any, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Any]]:
            pairs, labels = batch
            scores = network(pairs)
            right = (scores.detach().argmax(-1) == labels).float().mean()
            return loss(scores, labels), {"train_accuracy": right}

        # All pairs in every step need no shuffling, which costs more than it seems.
        whole = _Same((known.pairs, known.labels))
        outcome = self._trained(
            objective, whole if size is None else TensorDataset(known.pairs, known.labels),
            budget, config, build_optimizer([g for g in groups if g["params"]], config), monitor,
        )
        return outcome.report()

    def _trained(
        self, objective: Any, data: Any, budget: Budget, config: LoopConfig, optimizer: Any,
        monitor: Monitor | None,
    ) -> Any:
        try:
            return train(
                self.network, objective, data, budget, config, streams=Streams(self.seed),
                system=self, monitor=monitor, optimizer=optimizer,
                validate=_measured if self.config.network == "mlp" else None,
            )
        except PassbandError as error:
            if not error.what.startswith("loss ="):
                raise
            c = self.config
            raise PassbandError(
                error.what, expected=error.expected,
                mend=f"lower lr (now {c.lr:g}) or dropout (now {c.dropout:g}), or raise "
                f"weight_decay (now {c.weight_decay:g}): squares of large sums overflow",
            ) from None

    # ---- the verb ------------------------------------------------------------------------------

    def complete(self, pairs: Any = None) -> np.ndarray:
        """Labels of pairs of residues, int64.

        pairs  [B, 2] in 0..p-1 -> [B]; None -> the whole table [p, p], row m, column n
        """
        if pairs is None:
            return self.scores(all_pairs(self.p)).argmax(1).reshape(self.p, self.p)
        return self.scores(pairs).argmax(1)

    def scores(self, pairs: Any) -> np.ndarray:
        """[B, 2] -> [B, C] float32 outputs of the network."""
        rows = self._pairs(pairs)
        with torch.no_grad(), evaluating(self.network):
            found = [self.network(part) for part in rows.split(ROWS)]
        return torch.cat(found).numpy()

    def _pairs(self, pairs: Any) -> Tensor:
        rows = torch.as_tensor(pairs if isinstance(pairs, Tensor) else np.asarray(pairs))
        if rows.dim() != 2 or rows.shape[1] != 2 or rows.is_floating_point() or not len(rows):
            raise DataError(
                f"pairs of shape {list(rows.shape)} and type {rows.dtype}",
                expected="[B, 2] whole numbers, at least one pair",
            )
        rows = rows.long()
        if rows.min() < 0 or rows.max() >= self.p:
            raise DataError(
                f"residues from {int(rows.min())} to {int(rows.max())}",
                expected=f"0 to {self.p - 1}",
            )
        return rows

    # ---- what its neurons say --------------------------------------------------------------------

    def diagnose(self, data: Data[Known]) -> dict[str, float]:
        """Metrics of the task that only a look inside can give; the encoder has none."""
        if not isinstance(self.network, QuadraticMLP):
            return {}
        return {"ipr": float(neuron_table(self.network, order_of(data.test)).ipr.mean())}

    def draw(self, data: Modular, folder: Path) -> list[Artifact]:
        """Pictures for the report."""
        from passband.dynamics.grok.pictures import draw

        return draw(self, data, folder)

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """A table p x p (.npy, .csv; -1 or nothing where unknown) -> `completed.csv` and more.

        A system that has learned nothing yet learns the known entries first, all but `held_out`.
        """
        from passband.dynamics.grok.files import complete_file

        return complete_file(self, Path(path), Path(out), monitor)

    # ---- size and state ------------------------------------------------------------------------

    def parameter_count(self) -> int:
        return sum(weight.numel() for weight in self.network.parameters())

    def state(self) -> dict[str, Any]:
        return dict(self.network.state_dict())

    def extra(self) -> dict[str, Any]:
        return {"p": self.p, "classes": self.classes, "fitted": self.fitted}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        self._build(int(extra["p"]), int(extra["classes"]))
        self.network.load_state_dict({n: torch.as_tensor(a) for n, a in state.items()})
        self.fitted = bool(extra["fitted"])


class _Same:
    """One batch again and again."""

    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.batch


def _measured(network: QuadraticMLP) -> dict[str, float]:
    found = measure_layers(network.layers())
    return {name: value for name, value in found.items() if isinstance(value, float)}


def _checked(known: Any) -> Known:
    if not isinstance(known, Known):
        raise DataError(
            f"{type(known).__name__} as training data", expected="a Known",
            mend="take modular_dataset(...).known, or known_part(table)",
        )
    if not len(known):
        raise DataError("no entry of the table is known", expected="at least one")
    return known
