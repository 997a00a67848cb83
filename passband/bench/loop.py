"""The one training loop: budget, schedule, clipping, averaging, validation, exact resume.

>>> streams = Streams(seed=0)
>>> with streams.initialising():
...     model = torch.nn.Linear(3, 1)
>>> def loss(model, batch):
...     x, y = batch
...     return torch.nn.functional.mse_loss(model(x), y)
>>> outcome = train(model, loss, dataset, Budget(steps=500), LoopConfig(lr=1e-2), streams=streams)
>>> outcome.steps, outcome.selected
(500, 'last')

A step is one gradient of the batch: L-BFGS, whose line search takes several, counts each of them,
so that step budgets compare optimisers fairly. The numbers of a step depend on the seed and the
iteration alone (see `streams` and `batches`), so a run that is killed and resumed ends with the
weights of the uninterrupted one, bit by bit, when its budget is in steps or examples.

Several processes: start with `accelerate launch`; the batch is shared among them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from passband.bench import checkpoint
from passband.bench.batches import open_source
from passband.bench.budget import Budget, Meter
from passband.bench.ema import Average, clone, copy_into, swapped
from passband.bench.interrupts import Interrupts
from passband.bench.journal import Journal, Row
from passband.bench.loop_config import LoopConfig
from passband.bench.loop_setup import check, hint, is_lbfgs, learned, open_accelerator
from passband.bench.optim import build_optimizer
from passband.bench.plateau import Plateau
from passband.bench.schedule import crossed, spent
from passband.bench.stateful import Stateful, check_shapes, cloned
from passband.bench.streams import Streams
from passband.bench.system import Monitor, NullMonitor, System
from passband.errors import BudgetError, ConfigError, DataError, UnknownNameError
from passband.parts.modes import evaluating

__all__ = ["LoopConfig", "Outcome", "Stage", "Stateful", "train"]

ROWS, VALIDATIONS = 200, 20  # a run, where the configuration doesn't say
SHORTEST = 2.0  # seconds between checkpoints

Values = Mapping[str, Any]  # name -> float or 0-d tensor
Loss = Callable[[Any, Any], "Tensor | tuple[Tensor, Values]"]
Step = Callable[["Stage", Any], Values]
Validate = Callable[[Any], Mapping[str, float]]


@dataclass(frozen=True)
class Outcome:
    """What a training run spent and found; the module holds the selected weights.

    seconds   of the budget; `looked` seconds went to `monitor.test_error` besides
    selected  the rule that chose the weights
    stopped   "budget"; "converged" when the optimiser can't move any more; "stale" after
              `stop_after` validations without a better one
    values    the last losses, and validation at the selected weights
    rows      curves: {"step", "seconds", "loss", "lr", ...} each
    """

    steps: int
    seconds: float
    examples: int
    looked: float
    selected: str
    stopped: str
    values: dict[str, float]
    rows: list[Row] = field(default_factory=list, repr=False)

    def report(self) -> dict[str, Any]:
        """What `System.fit` returns."""
        spent = ("steps", "seconds", "examples", "selected", "stopped")
        return {name: getattr(self, name) for name in spent} | self.values


def train(
    module: nn.Module | Mapping[str, nn.Module],
    loss: Loss | None,
    data: Any = None,
    budget: Budget = Budget(),
    config: LoopConfig | None = None,
    *,
    streams: Streams,
    system: System | None = None,
    monitor: Monitor | None = None,
    validate: Validate | None = None,
    optimizer: Optimizer | Mapping[str, Optimizer] | None = None,
    step: Step | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    state: Stateful | None = None,
    checkpoints: Path | None = None,
    resume: bool | None = None,
) -> Outcome:
    """Train a module in place; it ends in evaluation mode with the selected weights.

    module       an nn.Module, or several by name (the loss then gets an nn.ModuleDict)
    loss         (module, batch) -> scalar mean over the batch, or (scalar, values to log)
    data         an indexable (see `batches.Examples`), an iterable of batches, or None when the
                 loss draws its own points: its batch is then a `torch.Generator`
    system       gives its name, configuration and checkpoint folder, and is what
                 `monitor.test_error` looks at
    validate     (module) -> metrics, called without gradients on the averaged weights if any
    optimizer    in place of the configured one; several by name for a custom `step`
    step         in place of the default step, for several losses: see `Stage`
    state        what else the run carries: told the share of the budget before every step, saved
                 in checkpoints, may resize parameters in place; see `stateful`
    checkpoints  folder for this run's checkpoint; default: the system's
    resume       continue from the checkpoint if there is one; default: the system's

    Raises `PassbandError` when the loss is no finite number; `CheckpointError` when the checkpoint
    belongs to another run; `KeyboardInterrupt` on Ctrl-C and `SystemExit` on SIGTERM, after
    writing a checkpoint.
    """
    config = config or LoopConfig()
    if budget == Budget():
        budget = Budget(steps=config.steps)
    if isinstance(module, Mapping):
        module = nn.ModuleDict(dict(module))
    if (loss is None) == (step is None):
        raise ConfigError("train got both or neither of loss and step", expected="one of them")
    if isinstance(optimizer, Optimizer) or optimizer is None:
        optimizer = {"": optimizer or build_optimizer(module.parameters(), config)}
    check(
        config, optimizer, validated=validate is not None, custom=step is not None,
        stateful=state is not None,
    )
    folder = checkpoints
    if folder is None and system is not None and system.checkpoints is not None:
        folder = system.checkpoints / "loop"
    wanted = resume if resume is not None else bool(system and system.resume)
    loop = _Loop(module, loss, step, budget, config, dict(optimizer), streams, system, monitor)
    loop.validate, loop.folder, loop.state = validate, folder, state
    if folder is not None:
        loop.open(folder, wanted)
    devices = [loop.accelerator.device] if loop.accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # the caller's random state is not ours to move
        return loop.run(data, collate)


class Stage:
    """What a custom step works with, for example two losses with an optimiser each:

    >>> def step(stage, batch):
    ...     fake = stage.module["generator"](batch)
    ...     critic = stage.update(critic_loss(stage.module, fake.detach(), batch), "critic")
    ...     loss = stage.update(adversarial_loss(stage.module, fake), "generator")
    ...     return {"loss": loss, "critic": critic}

    module     the nn.ModuleDict (or module)
    generator  of this iteration's noise
    iteration  steps of the loop so far
    """

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop
        self.module: Any = loop.module
        self.generator = loop.streams.train.torch

    @property
    def iteration(self) -> int:
        return self._loop.iteration

    def update(self, loss: Tensor, name: str = "") -> Tensor:
        """One step of one optimiser down this loss, averaged over processes; returns the loss."""
        loop = self._loop
        if name not in loop.optimizers:
            raise UnknownNameError("optimizer", name, loop.optimizers)
        optimizer = loop.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(loop.accelerator.device.type, enabled=False):
            loop.backward(loss)
        parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        if loop.accelerator.num_processes > 1:
            for p in parameters:
                p.grad = loop.accelerator.reduce(p.grad, "mean")
        loop.clip(parameters)
        optimizer.step()
        return loss.detach()


class _Objective(nn.Module):
    """The loss as a module, so that data parallelism sees every way a loss may use the module."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: Any) -> tuple[Tensor, Values]:
        out = self.loss(self.module, batch)
        return out if isinstance(out, tuple) else (out, {})


class _Loop:
    """State of a run. `iteration` counts turns of the loop, `meter.steps` gradients."""

    validate: Validate | None = None
    folder: Path | None = None
    state: Stateful | None = None

    def __init__(
        self, module: nn.Module, loss: Loss | None, step: Step | None, budget: Budget,
        config: LoopConfig, optimizers: dict[str, Optimizer], streams: Streams,
        system: System | None, monitor: Monitor | None,
    ) -> None:
        self.budget, self.config, self.system = budget, config, system
        self.monitor = monitor or NullMonitor()
        self.accelerator = open_accelerator(config.precision)
        self.main: bool = self.accelerator.is_main_process
        self.streams = streams.for_process(self.accelerator.process_index)
        self.module = module.to(self.accelerator.device)
        # The raw optimisers keep the state that is saved. Accelerate's wrappers are needed for
        # fp16 alone (they skip steps that overflowed) and cost half a millisecond a step.
        self.raw = optimizers
        self.scaled = self.accelerator.scaler is not None
        self.optimizers = {
            n: self.accelerator.prepare(o) if self.scaled else o for n, o in optimizers.items()
        }
        self.objective = self.accelerator.prepare(_Objective(module, loss)) if loss else None
        self.user_step = step
        self.tensors = learned(module, optimizers)
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        self.meter = Meter(budget)
        self.iteration = 0
        self.average = (
            Average(self.tensors, config.ema, warmup=config.ema_warmup) if config.ema else None
        )
        self.best: dict[str, Any] | None = None
        self.plateau = Plateau.of(config)
        self.journal = Journal(self.monitor if self.main else None, self._mean, hint(config))
        self.stopped = ""
        self.seconds = 0.0  # spent of the budget, agreed on by all processes
        self.looked = 0.0  # seconds in `monitor.test_error`, which are not the run's
        self.saved_steps, self.saved_seconds = -1, 0.0  # at the last checkpoint
        self.saving = 0.0  # seconds that it took

    # ---- the loop ------------------------------------------------------------------------

    def run(self, data: Any, collate: Any) -> Outcome:
        config, accelerator = self.config, self.accelerator
        source = open_source(
            data, self.streams.data, self.streams.train.torch, batch_size=config.batch_size,
            shuffle=config.shuffle, parts=config.accumulate, process=accelerator.process_index,
            processes=accelerator.num_processes, workers=config.workers, collate=collate,
        )
        stage = Stage(self)
        self.module.train()
        if not self.iteration:
            self._look()
        # Closed on every way out, so that reader processes end with the run.
        with Interrupts() as interrupts, closing(source.steps(self.iteration)) as batches:
            fraction = self._fraction()
            while not self.stopped:
                before, done = fraction, self.meter.steps
                if self.state is not None:
                    self._advance(self.state, before)
                scale = config.factor(done, before) * self.plateau.scale
                for group in (g for o in self.raw.values() for g in o.param_groups):
                    group["lr"] = group["initial_lr"] * scale
                micro = next(batches)
                if not source.examples and self.budget.steps is self.budget.seconds is None:
                    raise BudgetError(
                        f"a budget of {self.budget}", expected="steps or seconds",
                        mend="this training counts no examples, so it would never end",
                    )
                gradients = self._custom(stage, micro) if self.user_step else self._descend(micro)
                self.iteration += 1
                self.meter.spend(gradients, gradients * source.examples)
                if self.average:
                    self.average.update(self.tensors)
                signal = self._tick(interrupts.received)
                fraction = self._fraction()
                if fraction >= 1.0:
                    self.stopped = "budget"
                elif any(getattr(o, "converged", False) for o in self.raw.values()):
                    self.stopped = "converged"
                self._events(before, fraction, done, scale)
                if signal or self._checkpoint_due(done):
                    self.save()
                if signal:
                    interrupts.leave(signal)
            if self.saved_steps != self.meter.steps:
                self.save()
            if interrupts.received:  # after the last step
                interrupts.leave(interrupts.received)
        return self._finish()

    def _advance(self, state: Stateful, fraction: float) -> None:
        """Tell the state where the run stands; it may resize what is trained."""
        shapes = [tensor.shape for tensor in self.tensors.values()]
        state.at(fraction)
        if shapes == [tensor.shape for tensor in self.tensors.values()]:
            return
        if self.accelerator.num_processes > 1:
            raise ConfigError(
                "a state that resizes parameters, in several processes", expected="one process",
                mend="start without `accelerate launch`",
            )
        if self.average:
            self.average.follow(self.tensors)

    def _fraction(self) -> float:
        """Share of the budget that is spent."""
        meter = self.meter
        return spent(
            self.budget, steps=meter.steps, seconds=self.seconds, examples=meter.examples
        )

    def _tick(self, signal: int) -> int:
        """Read the clock; all processes agree on it and on the signal received."""
        self.seconds = self.meter.seconds - self.looked
        if self.accelerator.num_processes > 1:
            mine = torch.tensor([[self.seconds, float(signal)]], dtype=torch.float64)
            shared = self.accelerator.gather(mine.to(self.accelerator.device)).amax(0)
            self.seconds, signal = float(shared[0]), int(shared[1])
        return signal

    def _descend(self, micro: list[tuple[Any, float]]) -> int:
        """One step of the default kind; returns how many gradients it took."""
        optimizer = self.optimizers[""]
        micro = [(self._placed(batch), weight) for batch, weight in micro]
        values: dict[str, Any] = {}
        gradients = 0

        def gradient() -> Tensor:
            nonlocal gradients, values
            # Every evaluation of one step sees the same noise, or a line search makes no sense.
            self._seed(1, self.iteration)
            gradients += 1
            optimizer.zero_grad(set_to_none=True)
            values = {}
            for i, (batch, weight) in enumerate(micro):
                last = i == len(micro) - 1
                # Gradients of the processes are averaged once, with the last micro-batch.
                with nullcontext() if last else self.accelerator.no_sync(self.objective):
                    loss, more = self.objective(batch)  # type: ignore[misc]
                    self.backward(loss if weight == 1 else loss * weight)
                for name, value in {**more, "loss": loss}.items():
                    value = value.detach() if isinstance(value, Tensor) else value
                    values[name] = values.get(name, 0.0) + weight * value
            total: Tensor = values["loss"]
            return total

        if is_lbfgs(self.raw[""]):
            group = self.raw[""].param_groups[0]
            limit = self.config.lbfgs_iterations * 5 // 4 + 1
            rest = (self.budget.steps or math.inf) - self.meter.steps
            group["max_eval"] = int(min(limit, rest))
            first: dict[str, Any] = {}

            def closure() -> float:
                loss = gradient()
                if not first:  # what is logged belongs to the point the step starts from
                    first.update(values)
                return float(self._mean(loss))

            optimizer.step(closure)
            values = first
        else:
            gradient()
            norm = self.clip(self.module.parameters())
            if norm is not None:
                values["gradient_norm"] = norm
            optimizer.step()
        self.journal.record(values)
        return gradients

    def _custom(self, stage: Stage, micro: list[tuple[Any, float]]) -> int:
        self._seed(1, self.iteration)
        ((batch, _),) = micro
        assert self.user_step is not None
        with self.accelerator.autocast():
            self.journal.record(self.user_step(stage, self._placed(batch)))
        return 1

    def _seed(self, *position: int) -> None:
        """Put all generators at the beginning of a position's noise; torch's own ones too."""
        self.streams.train.at(*position)
        seed = self.streams.train.torch_seed(*position)
        # Not torch.manual_seed, which reaches for every kind of device and costs a millisecond.
        torch.default_generator.manual_seed(seed)
        kind = self.accelerator.device.type
        if kind != "cpu":
            getattr(torch, kind).manual_seed(seed)

    def _placed(self, batch: Any) -> Any:
        if isinstance(batch, torch.Generator):
            return batch
        return send_to_device(batch, self.accelerator.device, non_blocking=True)

    def _mean(self, values: Tensor) -> Tensor:
        """Mean over processes."""
        if self.accelerator.num_processes == 1:
            return values
        shared: Tensor = self.accelerator.reduce(values.to(self.accelerator.device), "mean")
        return shared

    def backward(self, loss: Tensor) -> None:
        if self.scaled:
            self.accelerator.backward(loss)
        else:
            loss.backward()  # type: ignore[no-untyped-call]

    def clip(self, parameters: Iterable[nn.Parameter]) -> Tensor | None:
        """Clip the norm of the gradients, if configured; returns the norm before."""
        if self.config.clip is None:
            return None
        norm: Tensor = self.accelerator.clip_grad_norm_(list(parameters), self.config.clip)
        return norm.detach()

    # ---- what happens between steps --------------------------------------------------------

    def _events(self, before: float, now: float, done: int, scale: float) -> None:
        steps, config = self.meter.steps, self.config
        every = config.validate_every
        due = crossed(done, steps, every) if every else crossed(before, now, 1 / VALIDATIONS)
        due = self.validate is not None and (due or bool(self.stopped))
        every = config.log_every
        full = crossed(done, steps, every) if every else crossed(before, now, 1 / ROWS)
        if due or self.stopped or full:
            self.journal.close(steps, self.seconds + self.looked, lr=config.lr * scale)
        if due:
            self._validate()
        if crossed(before, now, 1 / config.looks) or self.stopped:
            self._look()
        rows = self.journal.rows
        loss = f", loss {rows[-1]['loss']:.3g}" if rows and "loss" in rows[-1] else ""
        if self.main:
            self.monitor.progress(now, f"step {steps}{loss}")

    @property
    def _candidate(self) -> Mapping[str, Tensor] | None:
        """The weights that are validated and selected; None: the module's own."""
        return self.average.tensors if self.average else None

    def _validate(self) -> None:
        assert self.validate is not None
        config = self.config
        self._seed(0)  # a validation with noise (a diffusion loss) sees the same noise each time
        with swapped(self.tensors, self._candidate), evaluating(self.module), torch.no_grad():
            values = {name: float(v) for name, v in self.validate(self.module).items()}
        self.journal.add(self.meter.steps, self.seconds + self.looked, values)
        if config.select == "last":
            return
        rule, name = config.select.split()
        if name not in values:
            raise UnknownNameError("validation metric", name, values)
        score = values[name] if rule == "lowest" else -values[name]
        better = math.isfinite(score) and (self.best is None or score < self.best["score"])
        if better:
            tensors = clone(self._candidate or self.tensors)
            state = cloned(self.state.state_dict()) if self.state is not None else None
            self.best = {"score": score, "values": values, "tensors": tensors, "state": state}
        dropped = self.plateau.see(better)
        if dropped and config.reload and self.best is not None:
            copy_into(self.tensors, self.best["tensors"])
            if self.average:
                copy_into(self.average.tensors, self.best["tensors"])
        if self.plateau.exhausted:
            self.stopped = self.stopped or "stale"

    def _look(self) -> None:
        """Let the report see the error."""
        if self.system is None or not self.main:
            return
        started = self.meter.seconds
        with swapped(self.tensors, self._candidate), evaluating(self.module):
            self.monitor.test_error(self.system)
        self.looked += self.meter.seconds - started

    def _finish(self) -> Outcome:
        values = self.journal.latest
        if self.best is not None:
            if self.state is not None:
                self.state.load_state_dict(self.best["state"])
                check_shapes(self.tensors, self.best["tensors"])
            copy_into(self.tensors, self.best["tensors"])
            values.update(self.best["values"])
        elif self.config.select != "last":
            raise DataError(
                f"nothing to select by {self.config.select!r}",
                expected="a validation with finite metrics",
                mend="give validation data, or select='last'",
            )
        elif self.average:
            copy_into(self.tensors, self.average.tensors)
        self.module.eval()
        return Outcome(
            steps=self.meter.steps, seconds=self.seconds, examples=self.meter.examples,
            looked=self.looked, selected=self.config.select, stopped=self.stopped, values=values,
            rows=self.journal.rows,
        )

    # ---- checkpoint and resume -------------------------------------------------------------

    def open(self, folder: Path, resume: bool) -> None:
        """Continue from the folder's checkpoint, or clear it."""
        found = checkpoint.exists(folder) if self.main else False
        if self.main and not resume:
            checkpoint.remove(folder)
        self.accelerator.wait_for_everyone()
        if resume and (found or (not self.main and checkpoint.exists(folder))):
            self.restore(folder)

    def _checkpoint_due(self, done: int) -> bool:
        if self.folder is None:
            return False
        every = self.config.checkpoint_steps
        if every and crossed(done, self.meter.steps, every):
            return True
        # A small state is saved often: a kill loses seconds, and saving takes 1 % of the time.
        pause = min(max(SHORTEST, 100 * self.saving), self.config.checkpoint_seconds)
        return self.seconds - self.saved_seconds >= pause

    def about(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        shapes = {name: list(t.shape) for name, t in self.tensors.items()}
        # A state may have resized them since: their names still have to agree.
        trained = (
            {"shapes": shapes} if self.state is None
            else {"state": type(self.state).__name__, "trained": sorted(shapes)}
        )
        return {
            "system": self.system.id if self.system else "",
            "seed": self.streams.seed,
            "budget": asdict(self.budget),
            "loop": self.config.model_dump(mode="json"),
            "config": self.system.config.model_dump(mode="json") if self.system else {},
            **trained,
        }

    def save(self) -> None:
        """Write everything that the rest of the run depends on."""
        self.saved_steps, self.saved_seconds = self.meter.steps, self.seconds
        if self.folder is None:
            return
        self.journal.check(self.meter.steps)  # a broken state must not replace a good one
        if not self.main:
            return
        scaler = self.accelerator.scaler
        tree = {
            "state": self.state.state_dict() if self.state is not None else None,
            "tensors": dict(self.tensors),
            "optimizers": {name: o.state_dict() for name, o in self.raw.items()},
            "average": self.average and {
                "tensors": self.average.tensors, "updates": self.average.updates,
            },
            "scaler": scaler.state_dict() if scaler is not None else None,
            "best": self.best,
            "plateau": self.plateau.state(),
            "iteration": self.iteration,
            "meter": {**self.meter.spent(), "seconds": self.seconds, "looked": self.looked},
            "journal": self.journal.state(),
            "stopped": self.stopped,
        }
        started = time.perf_counter()
        checkpoint.save(self.folder, tree, self.about())
        self.saving = time.perf_counter() - started

    def restore(self, folder: Path) -> None:
        """Put everything back as `save` found it."""
        tree = checkpoint.restore(folder, self.about())
        if self.state is not None:  # first of all: it gives the parameters their shapes
            self.state.load_state_dict(tree["state"])
            check_shapes(self.tensors, tree["tensors"])
            if self.average:
                self.average.follow(self.tensors)
        copy_into(self.tensors, tree["tensors"])
        for name, optimizer in self.raw.items():
            optimizer.load_state_dict(tree["optimizers"][name])
        if self.average:
            copy_into(self.average.tensors, tree["average"]["tensors"])
            self.average.updates = tree["average"]["updates"]
        if tree["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(tree["scaler"])
        self.best = tree["best"]
        self.plateau.load_state(tree["plateau"])
        self.iteration, self.stopped = tree["iteration"], tree["stopped"]
        self.journal.load_state(tree["journal"])
        meter = tree["meter"]
        self.seconds, self.looked = meter["seconds"], meter["looked"]
        self.meter = Meter(
            self.budget, meter["steps"], meter["examples"], earlier=self.seconds + self.looked
        )
        self.saved_steps, self.saved_seconds = self.meter.steps, self.seconds
