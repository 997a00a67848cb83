"""The system around every classifier of the family: build, train in the common loop, save.

    class Mine(Classifier):
        Config = MineConfig                        # a ClassifierConfig with the method's own fields
        def objective(self, module, batch):        # batch.x, .y, .index, .group
            return my_loss(module(batch.x), batch.y, batch.index)

`batch` is an `Item`: x [B, *shape] normalised and augmented, y [B] labels, index [B] places in the
training set, group [B] domains. What a method keeps besides the network goes into `extra_state`;
one with its own kind of step overrides `learn` and calls `run.train(..., step=...)`.

A method is never bound to this class: its loss or module in `model.py` works in any loop.

>>> system = Classifier.from_preset("smoke")
>>> system.classify(np.zeros((3, 1, 8, 8), np.float32)).shape
(3,)
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, Outcome, train
from passband.bench.optim import OPTIMIZERS
from passband.bench.results import write_atomic
from passband.bench.schedule import SCHEDULES
from passband.bench.streams import Streams
from passband.bench.system import Config, Monitor, NullMonitor, System, validate
from passband.bench.task import Artifact, Data
from passband.dynamics.augment import AUGMENTATIONS
from passband.dynamics.networks import NETWORKS, build, count, normalisation
from passband.dynamics.published_weights import load_published
from passband.errors import CheckpointError, DataError
from passband.parts.indexed import Item, unpack
from passband.parts.modes import evaluating

if TYPE_CHECKING:
    from passband.data.labelled.labelled import Labelled
    from passband.parts.probes import Probes

CHUNK = 2**22  # numbers that go through the network at once
LOOKS = 10  # at the test part in a run, which the run's time doesn't count: its curve in the report
Objective = Callable[[Any, Item], Any]


class ClassifierConfig(Config):
    """Network and training, common to all; a method's own fields follow in its subclass."""

    network: str = Field("mlp", description=f"one of {', '.join(NETWORKS)}")
    hidden: tuple[int, ...] = Field((512, 512), description="mlp: widths between in and out")
    channels: tuple[int, ...] = Field((32, 64, 128), description="conv: of each convolution")
    pool: Literal["mean", "flat"] = Field("mean", description="conv: what the head sees of pixels")
    width: int = Field(64, gt=0, description="residual networks: channels of the first stage")
    weights: str | None = Field(
        None, description="resnet34, resnet50: safetensors file of published weights to start from"
    )
    frozen_norm: bool = Field(
        False, description="batch normalisation keeps the statistics it starts with"
    )
    norm: bool = Field(False, description="mlp, conv: batch normalisation before each ReLU")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of features dropped in training")
    shape: tuple[int, ...] = Field(
        (1, 8, 8), min_length=1, description="of one example as long as nothing was learned; a fit "
        "takes that of its data"
    )
    classes: int = Field(10, ge=2, description="number of them as long as nothing was learned")
    normalise: bool = Field(
        True, description="shift and scale inputs by the training set's mean and deviation"
    )
    augment: Literal["none", "crop-flip"] = Field(
        "none", description="of training images: shifts by an eighth and mirror images"
    )
    steps: int = Field(600, gt=0, description="optimiser steps when the budget sets no limit")
    epochs: int | None = Field(
        None, gt=0, description="passes over the training set in place of steps; null: steps"
    )
    batch_size: int = Field(64, gt=0, description="examples of a step; at most the training set")
    optimizer: str = Field("sgd", description=f"one of {', '.join(OPTIMIZERS)}")
    lr: float = Field(0.02, gt=0, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's decay rates, in [0, 1)")
    eps: float = Field(1e-8, gt=0, description="Adam's term in the denominator")
    weight_decay: float = Field(1e-3, ge=0, description="decoupled for adamw, L2 for the others")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; null: none")
    schedule: str = Field("constant", description=f"one of {', '.join(SCHEDULES)}")
    warmup: float = Field(0.0, ge=0, description="below 1: share of the budget, else steps")
    final: float = Field(0.0, ge=0, le=1, description="cosine, linear: last lr / peak lr")
    periods: int = Field(1, gt=0, description="cosine, linear: runs from peak to final; 2 or more "
                         "are warm restarts")
    drop: float = Field(0.1, gt=0, le=1, description="step: lr is multiplied by this each time")
    drop_at: tuple[float, ...] = Field(
        (0.5,), description="step: places, shares of the budget (below 1) or steps"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of averaged weights, which are then the ones kept"
    )
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="of autocast")
    validate_every: int | None = Field(
        None, gt=0, description="steps from validation to validation; null: 20 times a run"
    )
    select: str = Field(
        "last", description="last, or lowest NAME / highest NAME of what `validate` gives: "
        "valid_accuracy, valid_loss"
    )

    @field_validator("network", "optimizer", "schedule")
    @classmethod
    def _known(cls, name: str, info: Any) -> str:
        tables = {"network": NETWORKS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
        known = tables[info.field_name]
        if name not in known:
            raise ValueError(f"one of {', '.join(known)}")
        return name

    @field_validator("hidden", "channels", "shape")
    @classmethod
    def _positive(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 for size in sizes):
            raise ValueError("sizes of 1 or more each")
        return sizes

    @property
    def network_options(self) -> dict[str, Any]:
        """What the named network is built with."""
        plain = {"norm": self.norm, "dropout": self.dropout}
        residual = {"width": self.width, "dropout": self.dropout}
        return {
            "mlp": {"hidden": self.hidden, **plain},
            "conv": {"channels": self.channels, "pool": self.pool, **plain},
            "inception_resnet_v2": {"dropout": self.dropout},
        }.get(self.network, residual)


class Classifier(System):
    """Base of the family's classifiers, and the plain one: cross-entropy.

    network    the module; built at the first use, so that counts and errors cost nothing
    shape      of one example; classes: their names; both from the data of the fit
    mean, std  of the inputs, broadcast against [B, *shape]
    """

    Config: ClassVar[type[Config]] = ClassifierConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "network": "resnet34", "shape": (3, 32, 32), "augment": "crop-flip", "epochs": 150,
            "batch_size": 128, "schedule": "cosine", "periods": 15, "final": 0.05,
        },
        "small": {"epochs": 100, "schedule": "cosine", "periods": 10, "final": 0.05},
        "smoke": {"hidden": (64,), "steps": 100, "batch_size": 32},
    }
    verbs: ClassVar[tuple[str, ...]] = ("classify",)

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._network: nn.Module | None = None
        self._published: str | None = None  # weights that `build` starts from: not when loading
        self.shape: tuple[int, ...] = tuple(self.config.shape)
        self.classes: tuple[str, ...] = tuple(map(str, range(self.config.classes)))
        self.mean, self.std = torch.zeros(1), torch.ones(1)

    # ---- what a method gives ---------------------------------------------------------------

    def build(self) -> nn.Module:
        """The network for `self.shape` and `self.classes`, fresh; also on the meta device."""
        c = self.config
        network = build(c.network, self.shape, self.outputs, **c.network_options)
        network.frozen_norm = c.frozen_norm
        if self._published is not None:
            load_published(network, self._published)
        return network

    @property
    def outputs(self) -> int:
        """Of the head."""
        return len(self.classes)

    def objective(self, module: Any, batch: Item) -> Tensor | tuple[Tensor, Mapping[str, Any]]:
        """Loss of a batch, a mean over its examples, and values to log."""
        return F.cross_entropy(module(batch.x), batch.y)

    def learn(self, network: nn.Module, labelled: Labelled, run: Run) -> Outcome:
        """Train on all of `labelled`. One loss by default; see `Run.train`."""
        return run.train(network, self.objective, labelled)

    def validate(self, module: Any, labelled: Labelled) -> Mapping[str, float]:
        """Figures on the validation set, judged by its given labels, wrong ones included."""
        logits = self._through(module, self.ready(labelled.x))
        right = logits.argmax(1) == labelled.y
        loss = F.cross_entropy(logits, labelled.y)
        return {"valid_accuracy": 100 * float(right.double().mean()), "valid_loss": float(loss)}

    def logits(self, x: Tensor) -> Tensor:
        """[B, *shape] normalised -> [B, C], in evaluation mode; a method may average networks."""
        found: Tensor = self.network(x)
        return found

    def suspicion(self, labelled: Labelled) -> np.ndarray:
        """[N] how much each label looks wrong, more is worse. Here 1 - p(label)."""
        p = np.asarray(self.scores(labelled.x.numpy()))
        return 1.0 - p[np.arange(len(p)), labelled.y.numpy()]

    def diagnose(self, data: Data[Labelled]) -> Mapping[str, float]:
        """More metrics after a fit, by the names that the task declares; `data` has its test."""
        return {}

    def pictures(self, data: Data[Labelled], folder: Path) -> list[Artifact]:
        """What the report shows of a fit besides the family's pictures; files go to `folder`."""
        return []

    def extra_state(self) -> dict[str, Tensor]:
        """Tensors that a method keeps besides its network; saved and loaded with it."""
        return {}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `extra_state` gave; the network is there already."""

    def loop_config(self, examples: int, **changes: Any) -> LoopConfig:
        """The configured training on so many examples."""
        c = self.config
        size = min(c.batch_size, examples)
        steps = c.steps if c.epochs is None else math.ceil(c.epochs * examples / size)
        return cast(LoopConfig, validate(LoopConfig, {
            "steps": steps, "batch_size": size, "optimizer": c.optimizer, "lr": c.lr,
            "momentum": c.momentum, "betas": c.betas, "eps": c.eps,
            "weight_decay": c.weight_decay, "clip": c.clip, "schedule": c.schedule,
            "warmup": c.warmup, "final": c.final, "periods": c.periods, "drop": c.drop,
            "drop_at": c.drop_at, "ema": c.ema, "precision": c.precision,
            "validate_every": c.validate_every, "select": c.select, "looks": LOOKS, **changes,
        }))

    # ---- the verb --------------------------------------------------------------------------

    def classify(self, x: Any) -> Any:
        """[B, *shape] -> [B] int64 places in `self.classes`, as the array type that came.

        x  arrays or tensors, [B, height, width] too for grey images; bytes are taken as 0 to 255;
           or a path of an image, or a list of them
        Raises `DataError` for another shape, values that are not finite and files that aren't
        images.
        """
        p = self.scores(x)
        return p.argmax(-1)

    def scores(self, x: Any) -> Any:
        """[B, *shape] -> [B, C] float32 probabilities, as `classify`."""
        rows, tensor = self._inputs(x)
        logits = self._through(self.logits, self.ready(rows))
        p = logits.float().softmax(1)
        return p if tensor else p.numpy()

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """Write NAME.csv (file, label, probability) for a folder of images, an image, an .npz with
        an array `x`, or a .csv of columns x0, x1, ...
        """
        from passband.data.labelled.inputs import read_inputs

        x, names = read_inputs(path, self.shape)
        p = self.scores(x.numpy())
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["file", "label", "probability"])
        for name, row in zip(names, p, strict=True):
            table.writerow([name, self.classes[int(row.argmax())], f"{row.max():.6f}"])
        file = out / f"{path.stem}.csv"
        write_atomic(file, text.getvalue().encode())
        return [file]

    def ready(self, x: Tensor) -> Tensor:
        """Inputs as the network is given them: shifted and scaled."""
        return (x - self.mean) / self.std

    def _through(self, function: Any, x: Tensor) -> Tensor:
        """A function of batches on the network's device, in chunks; back on the CPU."""
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        size = max(1, CHUNK // max(1, math.prod(self.shape)))
        with torch.no_grad(), evaluating(self.network):
            found = [function(part.to(device)).cpu() for part in x.split(size)]
        return torch.cat(found) if found else torch.zeros(0, len(self.classes))

    def _inputs(self, x: Any) -> tuple[Tensor, bool]:
        """Checked inputs [B, *shape] and whether they came as a tensor."""
        if isinstance(x, (str, Path)):
            x = [x]
        if isinstance(x, (list, tuple)) and x and isinstance(x[0], (str, Path)):
            from passband.data.labelled.inputs import read_images

            return read_images([Path(p) for p in x], self.shape), False
        tensor = isinstance(x, Tensor)
        try:
            found = x.detach().cpu() if tensor else torch.as_tensor(np.asarray(x))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"inputs that are no numbers: {error}", expected=f"[B, {_commas(self.shape)}]"
            ) from None
        found = found.float() / 255 if found.dtype == torch.uint8 else found.float()
        if self.shape[:1] == (1,) and found.shape[1:] == self.shape[1:] and found.dim() > 1:
            found = found[:, None]
        if tuple(found.shape[1:]) != self.shape or found.dim() < 2:
            alone = " (one example needs x[None])" if tuple(found.shape) == self.shape else ""
            raise DataError(
                f"inputs of shape {list(found.shape)}{alone}",
                expected=f"[B, {_commas(self.shape)}], as in training",
                mend="bring images to that size and those channels first",
            )
        if not torch.isfinite(found).all():
            raise DataError("inputs with values that are not finite", expected="finite numbers")
        return found, tensor

    # ---- fit -------------------------------------------------------------------------------

    @property
    def network(self) -> nn.Module:
        """In evaluation mode; drawn from the system's seed when nothing was learned or loaded."""
        if self._network is None:
            self._published = self.config.weights
            with Streams(self.seed).initialising():
                self._network = self.build().eval()
            self._published = None
        return self._network

    def fit(
        self, data: Data[Labelled], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        train = _checked(data.train)
        if data.valid is not None and (
            data.valid.shape != train.shape or data.valid.classes != train.classes
        ):
            raise DataError(
                f"validation of shape {list(data.valid.shape)}, {len(data.valid.classes)} classes",
                expected=f"{list(train.shape)} and {len(train.classes)}, as in training",
            )
        self._network = None
        self.shape, self.classes = train.shape, train.classes
        if self.config.normalise:
            self.mean, self.std = normalisation(train.x)
        run = Run(self, budget, monitor, data.valid)
        return self.learn(self.network, train, run).report()

    # ---- size and state ----------------------------------------------------------------------

    def parameter_count(self) -> int:
        if self._network is not None:
            return count(self._network)
        with torch.device("meta"):
            return count(self.build())

    def state(self) -> dict[str, Any]:
        return {
            "input.mean": self.mean, "input.std": self.std,
            **{f"network.{name}": t for name, t in self.network.state_dict().items()},
            **{f"method.{name}": t for name, t in self.extra_state().items()},
        }

    def extra(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "classes": list(self.classes)}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        tensors = {name: torch.as_tensor(array) for name, array in state.items()}
        if not {"input.mean", "input.std"} <= tensors.keys() or not extra.get("classes"):
            raise CheckpointError(
                "the saved state has no normalisation or no classes",
                expected="what save() writes", mend="train again or copy it again",
            )
        self.shape, self.classes = tuple(extra["shape"]), tuple(extra["classes"])
        self.mean, self.std = tensors["input.mean"], tensors["input.std"]
        network = self.build()
        network.load_state_dict(_under(tensors, "network."))
        self._network = network.eval()
        self.load_extra_state(_under(tensors, "method."))


class Run:
    """What one call of `fit` passes on to the loop.

    streams  random numbers of the run; valid  the validation set, if there is one
    """

    def __init__(
        self, system: Classifier, budget: Budget, monitor: Monitor | None, valid: Labelled | None
    ) -> None:
        self.system, self.budget, self.valid = system, budget, valid
        self.monitor = monitor or NullMonitor()
        self.streams = Streams(system.seed)

    def train(
        self, module: Any, objective: Objective | None, data: Any,
        config: LoopConfig | None = None, *, step: Callable[[Any, Item], Any] | None = None,
        probes: Probes | None = None, **more: Any,
    ) -> Outcome:
        """`bench.loop.train` with this run's budget, streams, monitor and checkpoints.

        module     a network or several by name; what has to be in checkpoints is part of it
        objective  (module, Item) -> loss; or None and `step`: (stage, Item) -> values
        data       `Labelled`: normalised, augmented and indexed here; or whatever the loop takes,
                   its batches (x, y, index, group)
        config     None: the system's `loop_config`
        probes     looked at as they ask for; their rows go to the monitor too
        """
        from passband.data.labelled.labelled import Labelled

        system, own = self.system, isinstance(data, Labelled)
        if config is None:
            config = system.loop_config(len(data))
        augment = AUGMENTATIONS[system.config.augment] if own else None
        fill = system.ready(torch.zeros(())) if own else None

        def item(batch: Any) -> Item:
            found = unpack(batch)
            if augment is None:
                return found
            return found._replace(x=augment(found.x, fill.to(found.x.device)))

        if self.valid is not None and "validate" not in more:
            valid = self.valid
            more["validate"] = lambda inner: system.validate(inner, valid)
        watching = None
        if probes is not None:
            watching = probes.watching(module, self.monitor, more.get("state"))
            more["state"] = watching
        outcome = train(
            module, None if objective is None else lambda m, batch: objective(m, item(batch)),
            self.rows(data) if own else data, self.budget, config, streams=self.streams,
            system=system, monitor=self.monitor,
            step=None if step is None else lambda stage, batch: step(stage, item(batch)), **more,
        )
        if watching is not None:
            watching.finish()
        return outcome

    def rows(self, labelled: Labelled) -> TensorDataset:
        """(x normalised, y, index, group), of which the loop takes whole batches at once."""
        groups = torch.zeros_like(labelled.y) if labelled.groups is None else labelled.groups
        x = self.system.ready(labelled.x)
        return TensorDataset(x, labelled.y, torch.arange(len(labelled)), groups)


def _checked(data: Any) -> Labelled:
    from passband.data.labelled.labelled import Labelled

    if not isinstance(data, Labelled):
        raise DataError(
            f"training data of type {type(data).__name__}", expected="a Labelled",
            mend="Labelled(x, y, classes=(...)) from passband.data.labelled.labelled; for a data "
            "set of your own use the method's loss in your own loop",
        )
    if len(data.y.unique()) < 2:
        raise DataError(
            f"all {len(data)} training labels are {data.classes[int(data.y[0])]!r}",
            expected="two classes or more", mend="show examples of others too",
        )
    return data


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return found


def _commas(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
