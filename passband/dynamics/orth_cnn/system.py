"""Classifiers with near-isometric convolutions, and certificates of any checkpoint.

>>> system = create("orth-cnn", preset="smoke")
>>> certificate = system.certify()
>>> [row.case for row in certificate.convolutions]
['columns', 'rows', 'square']

    passband train orth-cnn --task digits-robust
    passband apply orth-cnn model.safetensors -o out/     certificate.html, certificate.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from passband.bench.budget import Budget
from passband.bench.loop import Outcome
from passband.bench.results import write_atomic
from passband.bench.system import Config, Monitor, NullMonitor
from passband.bench.task import Artifact, Data
from passband.dynamics.attacks import EPS
from passband.dynamics.classifier import Classifier, ClassifierConfig, Run
from passband.dynamics.networks import NETWORKS
from passband.dynamics.orth_cnn.alternatives import orthogonal_kernel_, spectral_kernel_
from passband.dynamics.orth_cnn.certify import Certificate, certified_radii, certify
from passband.dynamics.orth_cnn.checkpoint import SIZE, SUFFIXES, read_checkpoint
from passband.dynamics.orth_cnn.initialisers import block_orthogonal_, delta_orthogonal_
from passband.dynamics.orth_cnn.network import ACTIVATIONS, CircularNet, circular_
from passband.dynamics.orth_cnn.page import write
from passband.dynamics.orth_cnn.regularizer import (
    CONVOLUTIONS,
    OrthRegularizer,
    Penalty,
    convolutions,
)
from passband.errors import ConfigError
from passband.parts.indexed import Item

if TYPE_CHECKING:
    from passband.data.labelled.labelled import Labelled


class OrthCNNConfig(ClassifierConfig):
    """The common fields, the circular network's, and the penalty's."""

    network: str = Field("circular", description=f"circular, or one of {', '.join(NETWORKS)}")
    channels: tuple[int, ...] = Field((16, 32, 32), description="circular, conv: of each layer")
    strides: tuple[int, ...] = Field((1, 2, 1), description="circular: of each convolution")
    kernel: int = Field(3, ge=1, description="circular: odd size of all kernels")
    activation: str = Field("groupsort", description=f"circular: {', '.join(ACTIVATIONS)}")
    circular: bool = Field(True, description="other networks: pad their convolutions circularly")

    lam: float = Field(1e-2, ge=0, description="weight of the penalty")
    penalty: Penalty = Field(
        "lorth", description="lorth; kernel and spectral look at the kernel's matrix alone"
    )
    form: Literal["squared", "norm"] = Field("squared", description="of L_orth: norm is its root")
    every: int = Field(1, ge=1, description="steps from one evaluation of the penalty to the next")
    lam_warmup: float = Field(0.0, ge=0, le=1, description="share of the run in which lam rises")
    skip_first: bool = Field(False, description="leave the first convolution free")
    dense: bool = Field(True, description="penalise dense layers too, by ||W W^T - I||^2")
    impossible: Literal["raise", "ignore"] = Field(
        "raise", description="layers of which no orthogonal one exists: an error, or a penalty "
        "that ends above 0"
    )
    init: Literal["default", "delta", "block"] = Field(
        "default", description="of convolutions: torch's, or orthogonal ones"
    )
    parametrise: Literal["none", "kernel", "spectral"] = Field(
        "none", description="hold kernels, as matrices, orthogonal or of norm 1"
    )
    size: int = Field(
        SIZE, ge=1, description="apply to a checkpoint: pixels where its file doesn't say"
    )
    stride: int = Field(1, ge=1, description="apply to a checkpoint: where its file doesn't say")

    @field_validator("network", "optimizer", "schedule")
    @classmethod
    def _known(cls, name: str, info: Any) -> str:
        return name if name == "circular" else ClassifierConfig._known(name, info)  # type: ignore

    @model_validator(mode="after")
    def _fits(self) -> OrthCNNConfig:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation one of {', '.join(ACTIVATIONS)}")
        return self


class OrthCNN(Classifier):
    """
    >>> system = OrthCNN.from_preset("smoke", lam=0.1, init="delta")
    """

    Config: ClassVar[type[Config]] = OrthCNNConfig
    needs_fit: ClassVar[bool] = False  # a checkpoint of the user's is certified as it is
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "shape": (3, 32, 32), "channels": (64, 64, 128, 128, 256, 256),
            "strides": (1, 1, 2, 1, 2, 1), "augment": "crop-flip", "epochs": 200,
            "batch_size": 128, "schedule": "cosine", "lam": 1e-1, "skip_first": True,
            "dense": False, "weight_decay": 0.0,
        },
        # Wang et al.'s: norms of all layers but the first and the last; zeros at the edges.
        "imagenet": {
            "network": "resnet50", "shape": (3, 224, 224), "classes": 1000, "circular": False,
            "augment": "crop-flip", "epochs": 90, "batch_size": 220, "lr": 0.1,
            "weight_decay": 1e-4, "schedule": "step", "drop_at": (1 / 3, 2 / 3), "lam": 0.5,
            "form": "norm", "skip_first": True, "dense": False, "impossible": "ignore",
        },
        "small": {
            "steps": 200, "lr": 0.05, "schedule": "cosine", "weight_decay": 0.0,
            "normalise": False,
        },
        "smoke": {
            "channels": (8, 16, 16), "steps": 60, "batch_size": 32, "weight_decay": 0.0,
            "normalise": False,
        },
    }
    _regularizer: OrthRegularizer | None = None
    _learned = False

    # ---- the method --------------------------------------------------------------------------

    def build(self) -> nn.Module:
        c = self.config
        network = super().build() if c.network != "circular" else CircularNet(
            self.shape, len(self.classes), channels=c.channels, strides=c.strides, kernel=c.kernel,
            activation=c.activation,
        )
        if c.circular:
            circular_(network)
        for layer in list(convolutions(network)) if c.init != "default" else []:
            module, fill = layer.module, _INITS[c.init]
            fill(module.weight, module.stride, module.groups, dilation=module.dilation)
        if c.parametrise != "none":
            for module in [m for m in network.modules() if isinstance(m, CONVOLUTIONS)]:
                _HOLDS[c.parametrise](module)
        return network

    def learn(self, network: nn.Module, labelled: Labelled, run: Run) -> Outcome:
        self._regularizer = self.regularizer(network)
        return run.train(network, self.objective, labelled, state=self._regularizer)

    def regularizer(self, network: nn.Module) -> OrthRegularizer:
        """The configured penalty of a network."""
        c = self.config
        return OrthRegularizer(
            network, c.lam, skip_first=c.skip_first, dense=c.dense, penalty=c.penalty, form=c.form,
            every=c.every, warmup=c.lam_warmup, impossible=c.impossible, square="ignore",
        )

    def objective(self, module: Any, batch: Item) -> tuple[Tensor, Mapping[str, Any]]:
        if self._regularizer is None:
            self._regularizer = self.regularizer(module)
        task, penalty = F.cross_entropy(module(batch.x), batch.y), self._regularizer()
        return task + penalty, {"task": task.detach(), "penalty": penalty.detach()}

    def fit(
        self, data: Data[Labelled], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        found = super().fit(data, budget, monitor)
        self._learned, self._regularizer = True, None
        return found

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        super().load_state(state, extra)
        self._learned = True

    # ---- what is certain of it -----------------------------------------------------------------

    def certify(self) -> Certificate:
        """Of the network as it is now; distances are between normalised inputs."""
        return certify(self.network, self.shape)

    def radii(self, x: Any) -> Tensor:
        """[B] distances in the inputs' own units within which no class can change.

        Raises `ConfigError` for a network without a proved constant.
        """
        certificate = self.certify()
        if certificate.before_head is None:
            raise ConfigError(
                f"no constant of this network: {'; '.join(certificate.reasons[:3])}",
                expected="layers that follow each other, each with a constant",
                mend="network='circular'",
            )
        rows, _ = self._inputs(x)
        logits = self._through(self.logits, self.ready(rows))
        head: Any = self.network.head
        # Normalisation divides distances by at least the smallest deviation.
        constant = certificate.before_head / float(self.std.min())
        return certified_radii(logits, head.weight.detach().cpu(), constant)

    def diagnose(self, data: Data[Labelled]) -> Mapping[str, float]:
        """`certified` share of the test part and `lipschitz`, of circular networks."""
        certificate = self.certify() if self.config.network == "circular" else None
        if certificate is None or certificate.lipschitz is None:
            return {}
        found = {"lipschitz": certificate.lipschitz / float(self.std.min())}
        if data.test is not None:
            x = data.test.x.numpy()
            right = torch.as_tensor(self.classify(x)) == data.test.right
            safe = self.radii(x) > EPS
            found["certified"] = 100 * float((right & safe).double().mean())
        return found

    def pictures(self, data: Data[Labelled], folder: Path) -> list[Artifact]:
        certificate = self.certify()
        page, *_ = write(certificate.convolutions, folder, source="this network", whole=certificate)
        return [
            Artifact("page", "Certificate of every convolution", page.name,
                     "measured singular values beside what L_orth says of every image size"),
        ]

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """Of a checkpoint (.safetensors, .pt, .pth): certificate.html, .json, .svg and
        NAME.layers.json, which says what was assumed; of images: labels, as every classifier.
        """
        if path.suffix in SUFFIXES:
            return self.certify_file(path, out, monitor)
        if not self._learned:
            raise ConfigError(
                f"{path.name} for a system that has learned nothing",
                expected=f"a checkpoint ({', '.join(SUFFIXES)}) to certify",
                mend="passband train orth-cnn first, and apply the folder it writes to images",
            )
        return super().apply_file(path, out, monitor)

    def certify_file(
        self, path: Path, out: Path, monitor: Monitor | None = None
    ) -> list[Path]:
        """A certificate of every convolution in a file of weights."""
        monitor = monitor or NullMonitor()
        found = read_checkpoint(path, size=self.config.size, stride=self.config.stride)
        rows = []
        for number, name in enumerate(found.weights):
            monitor.progress(number / len(found.weights), name)
            rows.append(found.certificate(name))
        monitor.progress(1.0)
        more = {"assumed": list(found.assumed), "skipped": found.skipped}
        written = write(rows, out, source=path.name, more=more)
        template = out / f"{path.stem}.layers.json"
        write_atomic(template, json.dumps(found.template(), indent=1).encode())
        return [*written, template]


_INITS: dict[str, Any] = {"delta": delta_orthogonal_, "block": block_orthogonal_}
_HOLDS: dict[str, Any] = {"kernel": orthogonal_kernel_, "spectral": spectral_kernel_}
