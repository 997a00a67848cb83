"""The system around every fine-tuning method: attach, train in the common loop, keep the edit.

>>> from passband.tuning.jobs.text import arithmetic
>>> data = arithmetic(seed=0, size="smoke")
>>> system = create("sorsa", preset="smoke", rank=2)
>>> report = system.fit(data.for_fit(), Budget(steps=2))
>>> model = system.adapt(data.test.model())     # the pretrained model with the edit applied
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, Outcome, train
from passband.bench.part import Part
from passband.bench.streams import Streams
from passband.bench.system import Config, Monitor, NullMonitor, System, now
from passband.bench.task import Data
from passband.errors import ConfigError, DataError
from passband.parts.edits import Change, Edit, Fingerprint, change_of
from passband.parts.tensor_memory import PeakTensors
from passband.tuning.adaptation import Adaptation
from passband.tuning.continual import project_gradients, rehearse, remember
from passband.tuning.handle import Handle, Method, Phase
from passband.tuning.models import ARCHITECTURES, meta_model


class TunerConfig(Config):
    """Training, common to all methods; a method's own fields follow in its subclass."""

    steps: int = Field(150, gt=0, description="optimiser steps when the budget sets no limit")
    batch_size: int = Field(32, gt=0, description="examples of a step")
    accumulate: int = Field(1, gt=0, description="micro-batches a step")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's decay rates, in [0, 1)")
    eps: float = Field(1e-8, gt=0, description="Adam's term in the denominator")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, of matrices only")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: none")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="of the learning rate"
    )
    warmup: float = Field(0.03, ge=0, description="below 1: share of the budget, else steps")
    precision: Literal["no", "bf16"] = Field("no", description="of autocast")
    select: str = Field(
        "last", description="last, or lowest NAME / highest NAME of the task's validation"
    )
    memory: Literal["none", "replay", "gem"] = Field(
        "none", description="in a sequence of tasks: rehearse old examples, or project gradients"
    )
    memory_share: float = Field(0.1, gt=0, le=1, description="of old examples that are kept")
    targets: tuple[str, ...] = Field(
        (), description="endings of the names of modules to adapt; empty: the task's own"
    )
    architecture: str = Field(
        "task", description="what the preset is sized for: the task's model, or one of "
        f"{', '.join(ARCHITECTURES)} (parameters are then counted without any weights)"
    )


class Tuner(System):
    """Base of the systems with the verb `adapt`. A subclass gives `method`."""

    Config: ClassVar[type[Config]] = TunerConfig
    verbs: ClassVar[tuple[str, ...]] = ("adapt",)

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.edits: list[Edit] = []  # after each round, relative to the pretrained model
        self.facts: dict[str, float] = {}  # cost of the fit, for the task's metrics

    @property
    def edit(self) -> Edit | None:
        """What was learned in all rounds."""
        return self.edits[-1] if self.edits else None

    @abstractmethod
    def method(self, targets: tuple[str, ...]) -> Method:
        """The configured method for modules with these name endings."""

    # ---- fit -------------------------------------------------------------------------------

    def fit(
        self, data: Data[Adaptation], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        problem, monitor = data.train, monitor or NullMonitor()
        budget = Budget(steps=self.config.steps) if budget == Budget() else budget
        rounds = problem.rounds or (problem,)
        budget, share = budget.part(1 / len(rounds)), 1 / len(rounds)
        model = problem.model()
        self.edits, self.facts = [], {"attach_seconds": 0.0}
        done: list[Outcome] = []
        for number, job in enumerate(rounds):
            job = replace(job, examples=self._rehearsed(rounds[: number + 1]))
            self._learn(model, _Round(
                number, job, rounds[:number], budget, monitor, number * share, share, done
            ))
            if number < len(rounds) - 1:
                self._handle.detach()
                self._kept.apply(model)  # what `finish` made of it
        steps = sum(outcome.steps for outcome in done)
        self.facts["step_seconds"] = sum(o.seconds for o in done) / max(steps, 1)
        report = done[-1].report()
        for spent in ("steps", "seconds", "examples"):
            report[spent] = sum(getattr(outcome, spent) for outcome in done)
        return report | {"attach_seconds": self.facts["attach_seconds"]}

    def attach(
        self, model: nn.Module, problem: Adaptation, budget: Budget, number: int = 0
    ) -> Handle:
        """The method on the job's model, of round `number` of a sequence."""
        method = self.method(self.config.targets or problem.targets)
        return method.attach(
            model, problem.calibration, head=problem.head, steps=budget.steps,
            seed=self.seed + 10_007 * number,
        )

    def learning_rate(self, handle: Handle) -> float:
        """The peak of the schedule; overridden by methods that have a rule for it."""
        rate: float = self.config.lr
        return rate

    def prepare(self, handle: Handle, problem: Adaptation) -> None:
        """Called before each phase, when its optimiser is there."""

    def finish(self, handle: Handle, problem: Adaptation) -> Edit:
        """The edit that is kept; overridden by methods that repair it afterwards."""
        return handle.edit()

    def _learn(self, model: nn.Module, task: _Round) -> None:
        """Attach, train through the method's phases, keep the edit."""
        streams = Streams(self.seed + 10_007 * task.number)
        began = now()
        with streams.initialising():
            handle = self.attach(model, task.job, task.budget, task.number)
        self.facts["attach_seconds"] += now() - began
        for phase in handle.phases():
            task.done.append(self._train(handle, phase, task, streams))
            task.start += phase.share * task.share
            self._measure(handle, task.job)
        edit = self._kept = self.finish(handle, task.job)
        self.edits.append(self.edits[-1] + edit if self.edits else edit)
        self._handle = handle

    def _train(
        self, handle: Handle, phase: Phase, task: _Round, streams: Streams
    ) -> Outcome:
        c, rate, job = self.config, self.learning_rate(handle), task.job
        config = LoopConfig(
            steps=c.steps, batch_size=c.batch_size, accumulate=c.accumulate, lr=rate, clip=c.clip,
            schedule=c.schedule, warmup=c.warmup, precision=c.precision, select=c.select, looks=1,
        )
        validate = job.validation if c.select != "last" else None
        optimizer = handle.optimizer(
            rate, weight_decay=c.weight_decay, betas=c.betas, eps=c.eps
        )
        if c.memory == "gem" and task.earlier:
            project_gradients(optimizer, self._remembered(handle, task.earlier))
        self.prepare(handle, job)
        place = self.checkpoints and self.checkpoints / f"{task.number}-{phase.name}"
        return train(
            _Trained(handle), lambda module, batch: self._loss(handle, job, batch), job.examples,
            task.budget.part(phase.share), config, streams=streams, monitor=task.part(phase),
            collate=job.collate, validate=validate and (lambda module: validate(handle.model)),
            optimizer=optimizer, checkpoints=place, resume=self.resume, state=handle,
        )

    # ---- sequences ---------------------------------------------------------------------------

    def _rehearsed(self, rounds: Sequence[Adaptation]) -> Any:
        """Examples of the last of these rounds, with old ones among them if configured."""
        *old, new = (job.examples for job in rounds)
        if self.config.memory != "replay":
            return new
        return rehearse(new, old, self.config.memory_share, self.seed)

    def _remembered(
        self, handle: Handle, earlier: Sequence[Adaptation]
    ) -> Callable[[], Tensor]:
        """The loss on a batch of remembered examples, another batch at each step."""
        kept = [
            remember([job.examples], self.config.memory_share, self.seed) for job in earlier
        ]

        def loss() -> Tensor:
            step = handle.count
            parts = []
            for job, examples in zip(earlier, kept, strict=True):
                n = min(len(examples), max(1, self.config.batch_size // len(earlier)))
                chosen = [examples[(step * n + i) % len(examples)] for i in range(n)]
                batch = (job.collate or torch.utils.data.default_collate)(chosen)
                parts.append(job.output(handle.model, batch).loss)
            return torch.stack(parts).mean()

        return loss

    # ---- cost ----------------------------------------------------------------------------------

    def _loss(
        self, handle: Handle, problem: Adaptation, batch: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        out = problem.output(handle.model, batch)

        def again() -> Tensor:
            logits = problem.output(handle.model, batch).logits
            assert logits is not None
            return logits

        total = handle.objective(out.loss, out.logits, out.labels, again)
        return total, {"task_loss": out.loss, **handle.terms}

    def _measure(self, handle: Handle, problem: Adaptation) -> None:
        """Memory of one more forward and backward pass, and of the optimiser's state."""
        batch = _first_batch(problem, self.config.batch_size)
        handle.model.train()
        with PeakTensors() as peak:
            total, _ = self._loss(handle, problem, batch)
            total.backward()  # type: ignore[no-untyped-call]
        del total
        for parameter in handle.parameters():
            parameter.grad = None
        state = [t for o in handle.optimizers for s in o.state.values() for t in s.values()]
        held = sum(t.numel() * t.element_size() for t in state if isinstance(t, Tensor))
        trainable = sum(p.numel() for p in handle.parameters())
        for name, value in (
            ("step_bytes", peak.peak), ("optimizer_bytes", held), ("trainable", trainable)
        ):
            self.facts[name] = max(self.facts.get(name, 0.0), float(value))

    # ---- the verb --------------------------------------------------------------------------

    def adapt(self, model: nn.Module, scale: float = 1.0) -> nn.Module:
        """The pretrained model with the edit applied, in place; `Edit.apply` can revert it.

        Raises `CheckpointError` when the model is not the one that was adapted.
        """
        self.fitted().apply(model, scale=scale)
        return model

    def fitted(self) -> Edit:
        if self.edit is None:
            raise ConfigError(
                f"{self.id or type(self).__name__} has adapted nothing yet",
                expected="a trained one", mend="call fit(data) first, or load a saved one",
            )
        return self.edit

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """Apply the edit to a folder of a transformers model: the merged model and the adapter.

        Writes `model/` (as `save_pretrained` does), `adapter.safetensors`, and `peft/` where the
        edit has an exact form as LoRA.
        """
        from passband.tuning.models import load_like, save_like
        from passband.tuning.peft_bridge import write_peft

        if not path.is_dir():
            raise DataError(
                f"{path} is a file", expected="the folder of the pretrained model",
                mend="the folder that holds its config.json and model.safetensors",
            )
        model = load_like(path, self.fitted())
        self.adapt(model)
        written = [save_like(model, path, out / "model"), out / "adapter.safetensors"]
        self.fitted().save(written[-1])
        return written + write_peft(self.fitted(), out / "peft")

    # ---- size and state --------------------------------------------------------------------

    def parameter_count(self) -> int:
        """Trainable scalars: of the fit, or of the preset's architecture."""
        if self.facts:
            return int(self.facts["trainable"])
        if self.config.architecture == "task":
            return 0
        return self.count(meta_model(self.config.architecture))

    def count(self, model: nn.Module) -> int:
        """Trainable scalars on a model; works without weights, on the meta device."""
        raise ConfigError(
            f"{self.id} can't be counted without weights", expected="a fitted system",
            mend="fit it first",
        )

    def state(self) -> dict[str, Any]:
        return {
            f"{number}/{name}/{part}": tensor
            for number, edit in enumerate(self.edits)
            for name, change in edit.changes.items()
            for part, tensor in change.tensors().items()
        }

    def extra(self) -> dict[str, Any]:
        return {"edits": [_described(edit) for edit in self.edits], "facts": self.facts}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        parts: list[dict[str, dict[str, Tensor]]] = [
            {name: {} for name in edit["changes"]} for edit in extra["edits"]
        ]
        for key, tensor in state.items():
            number, rest = key.split("/", 1)
            name, part = rest.rsplit("/", 1)
            parts[int(number)][name][part] = torch.as_tensor(tensor)
        self.edits = [
            _restored(edit, tensors) for edit, tensors in zip(extra["edits"], parts, strict=True)
        ]
        self.facts = dict(extra["facts"])


def _first_batch(job: Adaptation, size: int) -> Any:
    if not hasattr(job.examples, "__getitem__"):  # ready batches
        return next(iter(job.examples))
    examples = [job.examples[i] for i in range(min(size, len(job.examples)))]
    return (job.collate or torch.utils.data.default_collate)(examples)


def _described(edit: Edit) -> dict[str, Any]:
    """All of an edit but its tensors, as JSON values."""
    return {
        "changes": {n: {"kind": c.kind, **c.facts()} for n, c in edit.changes.items()},
        "base": edit.base.to_json() if edit.base else None,
        "about": json.loads(json.dumps(edit.about)),
    }


def _restored(facts: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> Edit:
    changes: dict[str, Change] = {
        name: change_of(about, tensors[name]) for name, about in facts["changes"].items()
    }
    base = Fingerprint.from_json(facts["base"]) if facts["base"] else None
    return Edit(changes, base, dict(facts["about"]))


class _Trained(nn.Module):
    """The model together with what the method trains beside it, as one module for the loop."""

    def __init__(self, handle: Handle) -> None:
        super().__init__()
        self.model = handle.model
        inside = {id(p) for p in handle.model.parameters()}
        self.beside = nn.ParameterList([p for p in handle.parameters() if id(p) not in inside])


@dataclass
class _Round:
    """One task of a sequence, and where its training stands in the whole fit.

    start, share  of the fit, in [0, 1]; start moves on with the phases
    done          outcomes of all phases so far, of earlier rounds too
    """

    number: int
    job: Adaptation
    earlier: Sequence[Adaptation]
    budget: Budget
    monitor: Monitor
    start: float
    share: float
    done: list[Outcome]

    def part(self, phase: Phase) -> Part:
        return Part(
            self.monitor, self.start, phase.share * self.share,
            steps=sum(o.steps for o in self.done),
            seconds=sum(o.seconds + o.looked for o in self.done),
        )
