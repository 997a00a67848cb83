"""ELR and ELR+ as a system."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from passband.bench.loop import LoopConfig, Outcome
from passband.bench.optim import build_optimizer
from passband.bench.streams import Streams
from passband.bench.system import Config, Monitor
from passband.bench.task import Artifact, Data
from passband.dynamics.classifier import Classifier, ClassifierConfig, Run
from passband.dynamics.elr.memorization import MemorizationTracker
from passband.dynamics.elr.model import ELRLoss
from passband.dynamics.elr.plus import ELRPlus, Pair, taking_turns
from passband.dynamics.elr.suspects import Suspects, flag_mislabeled
from passband.dynamics.elr.targets import STORAGES
from passband.errors import CheckpointError, DataError, PassbandWarning
from passband.parts.indexed import Item
from passband.parts.probes import Probe, Probes

if TYPE_CHECKING:
    from passband.data.labelled.labelled import Labelled


class ELRConfig(ClassifierConfig):
    """The common fields, the loss, and with `plus` the second network."""

    lam: float = Field(
        3.0, ge=0, description="weight of the term; 0 is cross-entropy, 3 for labels wrong at "
        "random, 1 for classes mistaken for each other, 7 for a hundred classes"
    )
    beta: float = Field(
        0.7, ge=0, lt=1, description="memory of the targets; 0.9 with lam 1 or 7"
    )
    storage: str = Field("float32", description=f"of the targets: {', '.join(STORAGES)}")
    top: int = Field(8, gt=0, description="topk: classes kept of each example")
    track_every: int = Field(
        5, ge=0, description="epochs between counts of memorised labels, where the truth is known; "
        "0: never"
    )

    plus: bool = Field(
        False, description="ELR+: two networks that teach each other; steps are divided between "
        "them, epochs are of each"
    )
    mixup: float = Field(1.0, gt=0, description="plus: alpha of mixup's Beta distribution")
    teacher_ema: float = Field(0.997, ge=0, lt=1, description="plus: memory of the teachers")
    teacher_ramp: float = Field(
        1 / 3, ge=0, description="plus: until the teachers have it; below 1 a share of the run, "
        "else steps of one network, 0: from the start"
    )
    teacher_buffers: bool = Field(
        False, description="plus: average statistics of batch normalisation too, in place of those "
        "of the batch at hand"
    )
    coef_ramp: float = Field(
        0.0, ge=0, description="plus: until the term has its whole weight, in the same measure"
    )
    modulate_labels: bool = Field(
        False, description="plus: multiply mixed labels by the targets, for a hundred classes"
    )
    ensemble: Literal["students", "student-teacher"] = Field(
        "students", description="plus: whose logits are averaged in the end: both students', or "
        "the first student's and the second's teacher's"
    )

    @field_validator("storage")
    @classmethod
    def _known_storage(cls, name: str) -> str:
        if name not in STORAGES:
            raise ValueError(f"one of {', '.join(STORAGES)}")
        return name


_CIFAR = {
    "network": "resnet34", "shape": (3, 32, 32), "augment": "crop-flip", "batch_size": 128,
}
_PLUS = {
    **_CIFAR, "plus": True, "network": "preact_resnet18", "weight_decay": 5e-4, "epochs": 200,
    "schedule": "step", "drop_at": (0.75,), "teacher_ramp": 40000,
}


class ELR(Classifier):
    """
    >>> from passband.data.labelled.digits import symmetric_noise
    >>> parts = symmetric_noise(seed=0, size="smoke")
    >>> system = ELR.from_preset("smoke", steps=30)
    >>> _ = system.fit(Data(train=parts.train, valid=parts.valid))
    >>> suspects = system.suspects()                      # training labels that look wrong
    >>> suspects.table()["columns"]
    ['index', 'label', 'suggested', 'score', 'probability']

    method   `ELRLoss` or `ELRPlus` of the last fit, None before; it holds the targets
    memory   rows of `MemorizationTracker`, with their steps, where the truth was known
    watch    more probes for the next fit, each (network, step) -> numbers
    """

    Config: ClassVar[type[Config]] = ELRConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            **_CIFAR, "epochs": 150, "schedule": "cosine", "periods": 15, "final": 0.05,
        },
        "paper-asymmetric": {
            **_CIFAR, "epochs": 120, "lam": 1.0, "beta": 0.9, "schedule": "step", "drop": 0.01,
            "drop_at": (1 / 3, 2 / 3),
        },
        "paper-cifar100": {
            **_CIFAR, "classes": 100, "epochs": 150, "lam": 7.0, "beta": 0.9, "schedule": "step",
            "drop": 0.01, "drop_at": (80 / 150, 120 / 150),
        },
        "plus-cifar10": _PLUS,
        "plus-cifar100": {
            **_PLUS, "classes": 100, "epochs": 250, "lam": 7.0, "beta": 0.9, "drop_at": (0.8,),
            "coef_ramp": 40000, "modulate_labels": True,
        },
        # `weights` names the ImageNet weights that both networks start from.
        "plus-clothing1m": {
            "plus": True, "network": "resnet50", "shape": (3, 224, 224), "classes": 14,
            "augment": "crop-flip", "steps": 90_000, "batch_size": 64, "lr": 0.002,
            "weight_decay": 1e-3, "schedule": "step", "drop_at": (7 / 15,),
            "teacher_ema": 0.9999, "teacher_ramp": 0.0,
        },
        "plus-webvision": {
            "plus": True, "network": "inception_resnet_v2", "shape": (3, 227, 227), "classes": 50,
            "augment": "crop-flip", "epochs": 100, "batch_size": 32, "weight_decay": 5e-4,
            "schedule": "step", "drop_at": (0.5,), "mixup": 1.5,
            "teacher_ramp": 0.0,
        },
        "small": {"epochs": 100, "schedule": "cosine", "periods": 10, "final": 0.05},
        "plus-small": {
            "plus": True, "network": "conv", "channels": (16, 32, 64), "norm": True, "epochs": 40,
            "schedule": "step", "drop_at": (0.75,), "teacher_ema": 0.97,
        },
        "smoke": {"hidden": (64,), "steps": 100, "batch_size": 32},
    }

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.method: ELRLoss | ELRPlus | None = None
        self.labels = torch.zeros(0, dtype=torch.int64)
        self.names: tuple[str, ...] = ()
        self.memory: list[dict[str, Any]] = []
        self.watch: tuple[Probe, ...] = ()
        self._learned_from = ""

    def build(self) -> nn.Module:
        first = super().build()
        return Pair(first, super().build()) if self.config.plus else first

    # ---- learning ----------------------------------------------------------------------------

    def objective(self, module: Any, batch: Item) -> Tensor:
        assert isinstance(self.method, ELRLoss)
        self.method.to(batch.x.device)
        found: Tensor = self.method(module(batch.x), batch.y, batch.index)
        return found

    def loop_config(self, examples: int, **changes: Any) -> LoopConfig:
        found = super().loop_config(examples, **changes)
        if not self.config.plus or self.config.epochs is None or "steps" in changes:
            return found
        return found.model_copy(update={"steps": 2 * found.steps})  # a step moves one network

    def learn(self, network: nn.Module, labelled: Labelled, run: Run) -> Outcome:
        self.labels, self.names = labelled.y, labelled.names
        self._learned_from = labelled.fingerprint
        config = self.loop_config(len(labelled))
        per_epoch = math.ceil(len(labelled) / config.batch_size)
        tracker, probes = self._probes(labelled, per_epoch)
        self.method = self._made(network)
        if isinstance(self.method, ELRPlus):
            outcome = self._learn_plus(network, self.method, labelled, run, probes, per_epoch)
        else:
            # The loop's batches run on across epochs: an example may come twice in one of them.
            outcome = run.train(
                network, self.objective, labelled, config, state=_Carried(self.method),
                probes=probes,
            )
        self.method.cpu()
        self.memory = probes.rows if probes is not None else []
        if tracker is not None:
            tracker.rows = self.memory  # those from before a resume too
            if advice := tracker.advice():
                warnings.warn(advice, PassbandWarning, stacklevel=2)
        return outcome

    def _learn_plus(
        self, network: nn.Module, plus: ELRPlus, labelled: Labelled, run: Run,
        probes: Probes | None, per_epoch: int,
    ) -> Outcome:
        assert isinstance(network, Pair)
        config = self.loop_config(len(labelled))
        optimizers = {
            str(i): build_optimizer(student.parameters(), config)
            for i, student in enumerate(network.networks)
        }
        outcome = run.train(
            network, None, labelled, config, step=taking_turns(plus, per_epoch), state=plus,
            optimizer=optimizers, probes=probes,
        )
        if self.config.ensemble == "student-teacher":
            network.networks[1] = plus.cpu().teachers[1].module.eval()
        return outcome

    def _made(self, network: nn.Module) -> ELRLoss | ELRPlus:
        c, rows, classes = self.config, len(self.labels), len(self.classes)
        if isinstance(network, Pair):
            return ELRPlus(
                network, rows, classes, c.lam, c.beta, mixup=c.mixup, ema=c.teacher_ema,
                ema_ramp=c.teacher_ramp, ema_buffers=c.teacher_buffers, coef_ramp=c.coef_ramp,
                modulate=c.modulate_labels, storage=c.storage, k=c.top,
            )
        return ELRLoss(rows, classes, c.lam, c.beta, c.storage, k=c.top, warn_duplicates=False)

    def _probes(
        self, labelled: Labelled, per_epoch: int
    ) -> tuple[MemorizationTracker | None, Probes | None]:
        every = self.config.track_every * per_epoch
        tracker = None
        if every and labelled.wrong.any() and not labelled.wrong.all():
            tracker = MemorizationTracker(
                self.ready(labelled.x), labelled.right, labelled.y
            )
        watched = (*([tracker] if tracker else []), *self.watch)
        if not watched:
            return None, None
        return tracker, Probes(*watched, every=max(1, every))

    # ---- what looks wrong ----------------------------------------------------------------------

    def suspects(self) -> Suspects:
        """Training labels that the targets contradict, the most suspicious first.

        Raises DataError before a fit.
        """
        if self.method is None:
            raise DataError(
                "nothing was learned yet", expected="a system after fit or load",
                mend="fit it on labelled data first",
            )
        return flag_mislabeled(
            self.method, self.labels, classes=self.classes, names=self.names
        )

    def targets(self) -> np.ndarray:
        """[N, C] float32, what the network said of each training example early on."""
        self.suspects()
        store = self.method.store if isinstance(self.method, ELRLoss) else self.method
        found: np.ndarray = store.dense().numpy()  # type: ignore[union-attr]
        return found

    def suspicion(self, labelled: Labelled) -> np.ndarray:
        """[N] scores of `suspects` for the training set; 1 - p(label) for other examples."""
        if self.method is not None and labelled.fingerprint == self._learned_from:
            return self.suspects().scores.numpy()
        return super().suspicion(labelled)

    def write_suspects(self, folder: Path) -> list[Path]:
        """suspects.csv, suspects.json and targets.npy."""
        from passband.dynamics.elr.pictures import write_findings

        return write_findings(self, folder)

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """As every classifier, and the suspects of the training set beside it."""
        written = super().apply_file(path, out, monitor)
        return written + (self.write_suspects(out) if self.method is not None else [])

    def pictures(self, data: Data[Labelled], folder: Path) -> list[Artifact]:
        from passband.dynamics.elr.pictures import draw

        return draw(self, data, folder)

    # ---- state -----------------------------------------------------------------------------------

    def extra(self) -> dict[str, Any]:
        return {
            **super().extra(), "names": list(self.names), "learned_from": self._learned_from,
        }

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        super().load_state(state, extra)
        self.names = tuple(extra.get("names", ()))
        self._learned_from = extra.get("learned_from", "")

    def extra_state(self) -> dict[str, Tensor]:
        """Labels and targets; teachers too, so that ELR+ is whole."""
        if self.method is None:
            return {}
        return {"labels": self.labels, **self.method.state_dict()}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        if not state:
            return
        if "labels" not in state:
            raise CheckpointError(
                "the saved state has targets and no labels", expected="what save() writes",
                mend="train again or copy it again",
            )
        self.labels = state["labels"]
        with Streams(self.seed).initialising():
            self.method = self._made(self.network)
        self.method.load_state_dict({n: t for n, t in state.items() if n != "labels"})


class _Carried:
    """A loss with targets as the `state` of the loop: it goes into checkpoints with the weights."""

    def __init__(self, loss: ELRLoss) -> None:
        self.loss = loss

    def at(self, fraction: float) -> None:
        return None

    def state_dict(self) -> Mapping[str, Any]:
        return self.loss.state_dict()

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        self.loss.load_state_dict(tree)
