"""Classifiers of several domains: the mean of the domains' risks, and a penalty that grows late.

    loss = mean_e L_e + l2 ||theta||^2 + weight(step) penalty(features, head, labels)

    class Mine(DomainClassifier):
        Config = PenaltyConfig
        def penalty(self, domains, network):
            return MyPenalty()                     # a DomainPenalty

One loop, one rule of selection for all: the last step, unless `select` names a figure of the
validation part. That part comes from the training domains, and what holds in those (a colour that
tells the class) it rewards as well. The unseen domain is never there to choose by.

>>> system = DomainClassifier.from_preset("smoke")
>>> system.classify(np.zeros((3, 2, 8, 8), np.float32))
array([...])

E domains, C classes, n examples of a domain in a step. Two classes share one output by default.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from passband.bench.loop import LoopConfig, Outcome
from passband.bench.optim import build_optimizer
from passband.bench.system import Config
from passband.bench.task import Artifact, Data
from passband.dynamics.alignment import AlignmentReport, alignment_report
from passband.dynamics.augment import AUGMENTATIONS
from passband.dynamics.classifier import Classifier, ClassifierConfig, Run
from passband.errors import DataError, PassbandError, PassbandWarning
from passband.parts.domain_batches import DomainBatchSampler, PenaltyAnneal
from passband.parts.domain_views import DomainViews
from passband.parts.head_curvature import head_loss
from passband.parts.indexed import Item
from passband.parts.losses.domains import DomainPenalty
from passband.parts.modes import evaluating

if TYPE_CHECKING:
    from passband.data.labelled.labelled import Labelled


class DomainConfig(ClassifierConfig):
    """Common to all that learn from domains."""

    optimizer: str = Field("adam", description="sgd, adam, adamw")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled for adamw, L2 for the others")
    batch_size: int = Field(32, gt=0, description="examples of each domain in a step")
    full_batch: bool = Field(True, description="all examples in every step, not batch_size")
    l2: float = Field(0.0, ge=0, description="times the sum of squared parameters, in the loss")
    sigmoid: bool = Field(True, description="two classes share one output")
    xavier: bool = Field(
        False, description="start from uniform weights of Xavier's size and biases of 0"
    )


class PenaltyConfig(DomainConfig):
    """And of those with a penalty."""

    penalty_weight: float = Field(1e4, ge=0, description="of the penalty from step `anneal` on")
    penalty_start: float = Field(1.0, ge=0, description="weight of the penalty before")
    anneal: int = Field(100, ge=0, description="steps until penalty_weight")
    rescale: bool = Field(True, description="divide the loss by a weight above 1")
    reset_optimizer: bool = Field(
        False, description="forget the optimiser's moments when the weight changes"
    )


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "shape": (2, 14, 14), "classes": 2, "hidden": (390, 390), "normalise": False,
        "steps": 501, "lr": 4.898536566546834e-4, "l2": 1.10794568e-3, "xavier": True,
    },
    "small": {
        "shape": (2, 8, 8), "classes": 2, "hidden": (64, 64), "normalise": False, "steps": 400,
        "l2": 1e-3, "xavier": True,
    },
    "smoke": {
        "shape": (2, 8, 8), "classes": 2, "hidden": (64,), "normalise": False, "steps": 100,
        "xavier": True,
    },
}
PENALISED: dict[str, dict[str, Any]] = {
    "paper": {"anneal": 190, "penalty_weight": 91257.18613115903},
    "small": {}, "smoke": {"anneal": 40},
}


def penalised(**changes: Any) -> dict[str, dict[str, Any]]:
    """The common presets with a penalty; `changes` go into each.

    >>> penalised(penalty_weight=10.0)["small"]["penalty_weight"]
    10.0
    """
    return {name: {**PRESETS[name], **PENALISED[name], **changes} for name in PRESETS}


class DomainClassifier(Classifier):
    """Base, and the plain one: empirical risk minimisation, every domain counting the same."""

    Config: ClassVar[type[Config]] = DomainConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    # ---- what a method gives ---------------------------------------------------------------

    def penalty(self, domains: int, network: Any) -> DomainPenalty | None:
        """Of so many domains; None: no penalty, and one domain will do."""
        return None

    # ---- network ---------------------------------------------------------------------------

    @property
    def outputs(self) -> int:
        """Of the head: 1 where two classes share it."""
        count = len(self.classes)
        return 1 if count == 2 and self.config.sigmoid else count

    def build(self) -> nn.Module:
        network = super().build()
        return xavier_(network) if self.config.xavier else network

    def logits(self, x: Tensor) -> Tensor:
        return _one_each(self.network(x))

    def validate(self, module: Any, labelled: Labelled) -> Mapping[str, float]:
        logits = self._through(lambda x: _one_each(module(x)), self.ready(labelled.x))
        right = (logits.argmax(1) == labelled.y).double().mean()
        loss = F.cross_entropy(logits, labelled.y)
        return {"valid_accuracy": 100 * float(right), "valid_loss": float(loss)}

    # ---- training --------------------------------------------------------------------------

    def learn(self, network: nn.Module, labelled: Labelled, run: Run) -> Outcome:
        c = self.config
        groups = _domains(labelled)
        batches = _Batches(self, labelled, groups, run.streams.seed)
        penalty = self.penalty(len(batches.sampler.sizes), network)
        if penalty is not None:
            _look(labelled, groups)
        config = self._loop_config(len(labelled), sum(batches.sampler.sizes))
        optimizer = build_optimizer(network.parameters(), config)
        anneal = annealing(c)
        schedule = _Schedule(anneal, optimizer if getattr(c, "reset_optimizer", False) else None)
        # The penalty may keep something between steps (Fishr's average): it is saved as well.
        module = nn.ModuleDict({"network": network, "penalty": penalty or nn.Identity()})
        augment, black = AUGMENTATIONS[c.augment], self.ready(torch.zeros(()))

        def objective(inner: Any, batch: Item) -> tuple[Tensor, dict[str, Any]]:
            x = augment(batch.x, black.to(batch.x.device))
            own = inner["penalty"] if penalty is not None else None
            step = schedule.step - 1
            return domain_loss(
                inner["network"], x, batch.y, batches.sampler.sizes, own, anneal, step, c.l2
            )

        more: dict[str, Any] = {"optimizer": optimizer, "state": schedule}
        if run.valid is not None:
            valid = run.valid
            more["validate"] = lambda inner: self.validate(inner["network"], valid)
        try:
            return run.train(module, objective, batches, config, **more)
        except PassbandError as error:
            if not error.what.startswith("loss =") or penalty is None:
                raise
            raise PassbandError(
                error.what, expected=error.expected,
                mend=f"a penalty of weight {c.penalty_weight:g} by {c.optimizer}: lower "
                f"penalty_weight or lr (now {c.lr:g}), raise anneal (now {c.anneal} steps), or "
                "take optimizer='adam' with rescale=True",
            ) from None

    def _loop_config(self, examples: int, batch: int) -> LoopConfig:
        c = self.config
        steps = c.steps if c.epochs is None else math.ceil(c.epochs * examples / batch)
        return self.loop_config(examples, steps=steps, batch_size=batch)

    # ---- what its domains say ----------------------------------------------------------------

    def alignment(self, *labelled: Labelled) -> AlignmentReport:
        """Distances of the domains of some data in this classifier's head; see `alignment`."""
        network: Any = self.network
        domains: dict[str, tuple[Tensor, Tensor]] = {}
        with torch.no_grad(), evaluating(network):
            for part in labelled:
                for one in part.by_group():
                    group = 0 if one.groups is None else int(one.groups[0])
                    name = one.group_names[group] if one.group_names else str(len(domains))
                    name = name if name not in domains else f"{name} ({len(domains)})"
                    domains[name] = (network.features(self.ready(one.x)), one.y)
        return alignment_report(network.head, domains)

    def diagnose(self, data: Data[Labelled]) -> Mapping[str, float]:
        found = torch.as_tensor(self.classify(data.train.x.numpy()))
        values = {"train_accuracy": 100 * float((found == data.train.y).double().mean())}
        if len(data.train.by_group()) > 1:
            report = self.alignment(data.train)
            values["gradient_gap"] = report.mean("gradient")
            values["hessian_gap"] = report.mean("hessian_frobenius")
        return values

    def pictures(self, data: Data[Labelled], folder: Path) -> list[Artifact]:
        from passband.dynamics.alignment_pictures import heatmaps

        parts = [data.train] if data.test is None else [data.train, data.test]
        if sum(len(part.by_group()) for part in parts) < 2:
            return []
        report = self.alignment(*parts)
        (folder / "alignment.json").write_text(json.dumps(report.table()))
        heatmaps(
            {"||g_e - g_f||": report.gradient, "||H_e - H_f||_F": report.hessian_frobenius},
            report.names, folder / "alignment.svg",
        )
        return [
            Artifact("image", "Domains in the head", "alignment.svg",
                     "distances of gradients and Hessians; the last domain was not trained on"),
            Artifact("table", "Domains in the head, figures", "alignment.json"),
        ]


def domain_loss(
    network: Any, x: Tensor, y: Tensor, sizes: Sequence[int], penalty: DomainPenalty | None,
    anneal: PenaltyAnneal | None, step: int, l2: float = 0.0,
) -> tuple[Tensor, dict[str, Any]]:
    """Loss of a batch whose domains lie one after the other, and its terms.

    network  with `features` and a linear `head`
    x, y     [sum of sizes, *shape], [sum of sizes]
    """
    h = network.features(x)
    z = network.head(h)
    features, outputs, labels = (torch.split(t, list(sizes)) for t in (h, z, y))
    if penalty is None or anneal is None:
        risk = torch.stack([head_loss(a, b) for a, b in zip(outputs, labels, strict=True)]).mean()
        return risk + _decay(network, l2), {"risk": risk.detach()}
    views = DomainViews.of(features, outputs, labels, validate=False)
    risk, term = views.risks.mean(), penalty.penalty(views)
    terms = {"risk": risk.detach(), "penalty": term.detach(), "weight": anneal(step)}
    return anneal.total(risk + _decay(network, l2), term, step), terms


def annealing(config: Any) -> PenaltyAnneal | None:
    """As configured; None without a penalty."""
    if not isinstance(config, PenaltyConfig):
        return None
    return PenaltyAnneal(
        config.anneal, config.penalty_start, config.penalty_weight, config.rescale
    )


def xavier_(network: nn.Module) -> nn.Module:
    """Linear layers anew, in place: uniform weights of Xavier's size, biases 0.

    >>> bool((xavier_(nn.Linear(3, 2)).bias == 0).all())
    True
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


class _Schedule:
    """Counts steps for the loop's `state`; forgets the moments when the weight changes."""

    def __init__(self, anneal: PenaltyAnneal | None, reset: Any) -> None:
        self.anneal, self.reset, self.step = anneal, reset, 0

    def at(self, fraction: float) -> None:
        if self.anneal is not None and self.reset is not None and self.anneal.switches(self.step):
            self.reset.state.clear()
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        self.step = tree["step"]


class _Batches:
    """(x, y, index, group) of the sampler's batches; each pass gives the same again."""

    def __init__(
        self, system: Classifier, labelled: Labelled, groups: Tensor, seed: int
    ) -> None:
        c = system.config
        per_domain = None if c.full_batch else c.batch_size
        self.sampler = DomainBatchSampler(groups, per_domain, seed)
        self.x, self.y, self.groups = system.ready(labelled.x), labelled.y, groups
        self.whole = c.full_batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for index in self.sampler.batches():
            batch = self.x[index], self.y[index], index, self.groups[index]
            yield batch
            while self.whole:  # one batch again and again: picked once
                yield batch


def _domains(labelled: Labelled) -> Tensor:
    if labelled.groups is None:
        return torch.zeros_like(labelled.y)
    return labelled.groups


def _look(labelled: Labelled, groups: Tensor) -> None:
    """What a penalty can't work with, and what it can make little of."""
    present = groups.unique()
    if len(present) < 2:
        raise DataError(
            "training data of one domain", expected="needs >= 2 domains",
            mend="name them: Labelled(..., groups=, group_names=), folders DOMAIN/CLASS/image, or "
            "a column `domain`; without any take cross-entropy or erm",
        )
    for g in present.tolist():
        labels = labelled.y[groups == g]
        if len(labels) > 1 and len(labels.unique()) > 1:
            continue
        name = labelled.group_names[g] if labelled.group_names else str(g)
        what = "one example" if len(labels) == 1 else (
            f"one class, {labelled.classes[int(labels[0])]!r}"
        )
        warnings.warn(
            f"domain {name!r} has {what} only: its curvature says little of the domain, and "
            "aligning others with it may harm", PassbandWarning, stacklevel=2,
        )


def _decay(network: nn.Module, l2: float) -> Tensor | float:
    """Of parameters that train, biases too, as the paper's code has it."""
    return l2 * sum(p.square().sum() for p in network.parameters()) if l2 else 0.0


def _one_each(logits: Tensor) -> Tensor:
    """A single output as two: softmax of (0, z) is (1 - sigmoid(z), sigmoid(z))."""
    if logits.shape[-1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], -1)
