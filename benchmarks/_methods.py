"""The fine-tuning methods that are timed against each other, all of (about) one size.

Reference methods, the plain parts, and every system of the family: one that comes is in the table
without a change here.
"""

from __future__ import annotations

import copy
import importlib
import math
import typing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import passband.tuning
from passband.bench.budget import Budget
from passband.errors import PassbandError
from passband.parts.block_linear import BlockLinear
from passband.parts.edits import Change
from passband.parts.targets import find_targets
from passband.tuning.adaptation import Adaptation, causal_lm, classifier
from passband.tuning.baselines.full_tuning.model import FullFineTuning
from passband.tuning.baselines.lora.model import PeftAdapter
from passband.tuning.entries import EntryHandle
from passband.tuning.handle import Handle
from passband.tuning.models.byte_llama import byte_lm
from passband.tuning.models.sentences import SentenceClassifier, minilm
from passband.tuning.tuner import Tuner

RANK = 8  # the size of all: as many trained numbers as LoRA of this rank has
STEPS = 1000  # length of the run that schedules are told
PROGRESS = 0.3  # share of it that is over: all terms of all objectives are at work
CALIBRATION = 4  # batches


# ---- jobs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A model, a batch of it, and what is adapted."""

    problem: Adaptation
    batch: Any

    @property
    def name(self) -> str:
        return self.problem.name

    def loss(self, handle: Handle) -> Tensor:
        out = self.problem.output(handle.model, self.batch)

        def again() -> Tensor:
            logits = self.problem.output(handle.model, self.batch).logits
            assert logits is not None
            return logits

        return handle.objective(out.loss, out.logits, out.labels, again)


def language(name: str, batch_size: int, length: int = 256, **shape: int) -> Job:
    """Random bytes through a Llama of bytes."""
    model = byte_lm(**shape)
    made = torch.Generator().manual_seed(0)
    batches = [
        torch.randint(256, (batch_size, length), generator=made) for _ in range(CALIBRATION + 1)
    ]
    return _job(
        name, model, (batches[-1], batches[-1]), causal_lm,
        [{"input_ids": ids, "labels": ids} for ids in batches[:-1]], kind="causal-lm",
    )


def sentences(name: str, batch_size: int, length: int, classes: int = 10) -> Job:
    """Random words through MiniLM and a fresh classifier."""
    model = SentenceClassifier(classes, minilm())
    made = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(CALIBRATION + 1):
        ids = torch.randint(1000, 30_000, (batch_size, length), generator=made)
        labels = torch.randint(classes, (batch_size,), generator=made)
        batches.append(({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels))
    return _job(
        name, model, batches[-1], classifier,
        [{**inputs, "labels": labels} for inputs, labels in batches[:-1]], kind="classification",
        targets=("query", "key", "value", "dense"), head=("classifier",),
    )


def _job(
    name: str, model: nn.Module, batch: Any, output: Any, calibration: list[Any], **more: Any
) -> Job:
    purposes = dict.fromkeys(("task", "knowledge"), calibration)
    return Job(
        Adaptation(name, lambda: copy.deepcopy(model), [], output, calibration=purposes, **more),
        batch,
    )


# ---- methods ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """One method: how it takes hold of a job's model.

    group  what it is compared as: full, lora, shira, sparse, block, half, factors or other
    rate   of learning; small, so that no model leaves the range of ordinary numbers
    """

    name: str
    attach: Callable[[nn.Module, Adaptation], Handle]
    group: str = ""
    rate: float = 1e-4


def references() -> list[Arm]:
    def adapter(kind: Any, rank: int = RANK) -> Callable[[nn.Module, Adaptation], Handle]:
        return lambda model, job: PeftAdapter(kind, rank, targets=job.targets).attach(
            model, head=job.head
        )

    return [
        Arm("full AdamW", lambda model, job: FullFineTuning().attach(model, head=job.head), "full"),
        Arm(f"peft LoRA r={RANK}", adapter("lora"), "lora"),
        Arm("peft LoRA r=32", adapter("lora", 32), "lora-32"),
        Arm(f"peft PiSSA r={RANK}", adapter("pissa"), "pissa"),
        Arm(f"peft SHiRA r={RANK}", adapter("shira"), "shira"),
    ]


def parts() -> list[Arm]:
    return [
        Arm("entries (parts)", _entries, "sparse"),
        Arm("blocks (parts)", lambda model, job: _Blocks(model, job), "block"),
    ]


def _entries(model: nn.Module, job: Adaptation) -> Handle:
    """SHiRA's: r (m + n) random entries of each target."""
    made, known = torch.Generator().manual_seed(0), dict(model.named_parameters())
    indices = {}
    for name in find_targets(model, job.targets, head=job.head):
        weight = known[f"{name}.weight"]
        drawn = torch.randperm(weight.numel(), generator=made)[: RANK * sum(weight.shape)]
        indices[f"{name}.weight"] = drawn
    return EntryHandle(model, indices, head=job.head)


class _Blocks(Handle):
    """The first columns of each output and down projection, as many as give the common size."""

    def __init__(self, model: nn.Module, job: Adaptation) -> None:
        super().__init__(model, head=job.head)
        layers = find_targets(model, job.targets, head=job.head)
        wanted = RANK * sum(sum(layer.weight.shape) for layer in layers.values())
        consumers = {n: layer for n, layer in layers.items() if _consumes(n)}
        share = wanted / sum(layer.weight.numel() for layer in consumers.values())
        self.blocks = {
            n: BlockLinear(layer, inputs=_spread(layer.weight.shape[1], share), name=n)
            for n, layer in consumers.items()
        }

    def trained(self) -> dict[str, nn.Parameter]:
        return {f"{n}.weight": block.values for n, block in self.blocks.items()}

    def changes(self) -> dict[str, Change]:
        return {f"{n}.weight": block.edit_change() for n, block in self.blocks.items()}

    def _switch(self, on: bool) -> None:
        raise NotImplementedError


def _consumes(name: str) -> bool:
    """Second matrices of a coupled structure, in Llama's and BERT's names."""
    return name.endswith(("o_proj", "down_proj", "output.dense"))


def _spread(size: int, share: float) -> Tensor:
    count = max(1, round(share * size))
    return torch.arange(count) * (size // count)


def systems(job: Job) -> Iterator[Arm]:
    """Every system of the family in a room of its own, made to the common size where it can."""
    model, targets = job.problem.model(), job.problem.targets
    layers = find_targets(model, targets, head=job.problem.head)
    wanted = sum(RANK * sum(layer.weight.shape) for layer in layers.values())
    for room, kind in _rooms():
        for label, fields in _variants(room, kind):
            try:
                sized = {**fields, **_sized(kind, fields, model, wanted)}
                system = kind.from_preset("small", **sized)
                adapter = isinstance(system.method(targets), PeftAdapter)
            except (PassbandError, NotImplementedError) as error:
                warnings.warn(f"{label} is left out: {error}", stacklevel=1)
                continue
            if not adapter:  # a reference already
                yield Arm(label, _by(system), GROUPS.get(room, "other"))


def _rooms() -> Iterator[tuple[str, type[Tuner]]]:
    folder = Path(passband.tuning.__path__[0])
    for path in sorted(folder.glob("*/system.py")):
        room = path.parent.name
        try:
            module = importlib.import_module(f"passband.tuning.{room}.system")
        except ImportError as error:  # a package that is not installed
            warnings.warn(f"{room} is left out: {error}", stacklevel=1)
            continue
        for kind in vars(module).values():
            own = isinstance(kind, type) and kind.__module__ == module.__name__
            if own and issubclass(kind, Tuner):
                yield room, kind


def _by(system: Tuner) -> Callable[[nn.Module, Adaptation], Handle]:
    return lambda model, problem: system.attach(model, problem, Budget(steps=STEPS))


def _variants(room: str, kind: type[Tuner]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One arm for each value of a field `algorithm`."""
    name, fields = room.replace("_", "-"), kind.Config.model_fields
    choices = typing.get_args(fields["algorithm"].annotation) if "algorithm" in fields else ()
    for choice in choices:
        yield f"{name} {choice}", {**FIELDS.get(room, {}), "algorithm": choice}
    if not choices:
        yield name, FIELDS.get(room, {})


def _sized(
    kind: type[Tuner], fields: dict[str, Any], model: nn.Module, wanted: int
) -> dict[str, Any]:
    """Fields that give about the wanted number of trained numbers; none where there is no knob."""
    known = kind.Config.model_fields
    if "rank" in known:
        return {"rank": RANK}
    for name in ("entries", "count"):
        if name in known:
            return {name: wanted}
    system = kind.from_preset("small", **fields)
    values = {
        name: getattr(system.config, name) for name in SHARES if name in known
    }
    values = {name: value for name, value in values.items() if value}
    factor = wanted / system.count(model) if values else 1.0
    return {name: min(0.99, value * factor) for name, value in values.items()}


SHARES = ("fraction", "density", "o", "d")  # fields that the number of trained entries follows
# Heads are left alone where a method would train them densely: the same for all.
FIELDS: dict[str, dict[str, Any]] = {"lt_sft": {"freeze_head": True}}
GROUPS = {
    "sara": "sparse", "lt_sft": "sparse", "spiel": "sparse", "s2ft": "block", "hft": "half",
    "sorsa": "factors", "corda": "factors", "ba_lora": "ba-lora",
}


# ---- one of them at work ----------------------------------------------------------------------


class Training:
    """A method on a fresh copy of a job's model, past its first steps."""

    def __init__(self, arm: Arm, job: Job) -> None:
        self.arm, self.job = arm, job
        model = job.problem.model()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.handle = arm.attach(model, job.problem)
            for phase in self.handle.phases():  # to the last one: what a method is known for
                self.phase = phase
                self.optimizer = self.handle.optimizer(arm.rate)
                self.handle.at(PROGRESS)
                for _ in range(2):
                    self.step()
        if not math.isfinite(self.loss):
            raise SystemExit(f"{arm.name} on {job.name}: the loss is {self.loss}")

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.job.loss(self.handle)
        loss.backward()
        self.optimizer.step()
        self._last = loss.detach()

    @property
    def loss(self) -> float:
        return float(self._last)

    @property
    def trained(self) -> int:
        return sum(p.numel() for p in self.handle.parameters())

    @property
    def model_bytes(self) -> int:
        """Of the model itself: weights as they came, buffers."""
        return sum(t.untyped_storage().nbytes() for t in self.job.problem.model().state_dict()
                   .values())

    @property
    def optimizer_bytes(self) -> int:
        return sum(
            value.numel() * value.element_size() for state in self.optimizer.state.values()
            for value in state.values() if isinstance(value, Tensor)
        )
