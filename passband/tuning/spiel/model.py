"""Sparse fine-tuning whose positions move while it trains (SpIEL, arXiv 2401.16405).

Each target weight W [m, n] gets k sparse deltas phi at positions eta, and every S steps some of
them are dropped and others grow, so that memory is that of the deltas and not of the model:

    y       = x (W + scatter(eta, phi))^T
    drop      the n = floor(k p) deltas of smallest |phi|;   p = p0 (1 - t/T), all at first
    grow AG   the n candidates of largest |sum g| over the last gamma steps; candidates are the k
              largest |dW| of the first of these steps
              m = mean(g) (1 - b1^c),  v = mean(g^2) (1 - b2^c),  age c: unbiased after correction
    grow MA   the n inactive (i, j) of largest r_i c_j, the accumulators of SM3

phi is a difference from W: weight decay pulls to the pretrained weights. The optimisers are those
of `passband.parts.slots`; no module is replaced.

>>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
>>> handle = SpIEL(density=0.05).attach(model, steps=40)
>>> optimizer = handle.optimizer(lr=1e-2)
>>> x = torch.randn(8, 32)
>>> for _ in range(40):
...     handle.objective((model(x) - x).square().mean()).backward()
...     optimizer.step()
...     optimizer.zero_grad()
>>> [(done.step, round(done.share, 3)) for done in handle.rounds]
[(5, 1.0), (25, 0.075)]
>>> path = handle.edit().save("adapter.safetensors")
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.edits import Edit
from passband.parts.nf4 import NF4Selected, fingerprint_of_packed, merge_packed, packed_layers
from passband.parts.sampled_linear import SampledLinear, can_sample
from passband.parts.sampled_product import is_faster
from passband.parts.slots import SM3, SlotAdamW
from passband.parts.targets import find_targets, is_transposed, sharing
from passband.tuning.entries import EntryHandle
from passband.tuning.handle import Calibration
from passband.tuning.replicas import average, replicas
from passband.tuning.spiel.candidates import Candidates
from passband.tuning.spiel.growth import (
    Policy,
    budgets,
    exchange,
    outer_top,
    random_positions,
    replaced,
)

Algorithm = Literal["ag", "ma"]
Criterion = Literal["magnitude", "change"]


@dataclass(frozen=True)
class SpIEL:
    """
    algorithm     "ag": grow by accumulated gradients; "ma": by the momentum of SM3
    density       K over all parameters of the model; or in its place
    budget        K itself, or
    match_rank    K as LoRA of this rank has on the same layers
    growth        "none": the first, random positions stay (to compare with)
    reselection_steps   S, from one reselection to the next
    accumulation_steps  gamma, steps that AG looks at before each; with MA the step it happens at
    reselection_rate    p0, the share of the deltas that is replaced
    policy        how that falls: "linear" begins with all positions, "cosine" doesn't
    horizon       T where the run has no known length
    drop_criterion  "magnitude" of a delta, or its "change" since the last reselection
    reference_timing  as the released code counts: gamma + 1 steps after the first round
    row_cover_only  MA keeps accumulators of rows alone
    momentum      of SM3
    sampled       gradients of few deltas of a large weight are computed without the dense one,
                  outside of selection phases, where that is faster
    targets       endings of module names
    """

    algorithm: Algorithm = "ag"
    density: float | None = 0.02
    budget: int | None = None
    match_rank: int | None = None
    growth: Literal["select", "none"] = "select"
    reselection_steps: int = 20
    accumulation_steps: int = 5
    reselection_rate: float = 0.2
    policy: Policy = "linear"
    horizon: int | None = None
    drop_criterion: Criterion = "magnitude"
    reference_timing: bool = False
    row_cover_only: bool = False
    momentum: float = 0.0
    sampled: bool = True
    targets: tuple[str, ...] = ("all-linear",)

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> SpIELHandle:
        """Raises `ConfigError` for budgets that don't fit, naming the layer."""
        self._check(steps)
        counts = self.counts(model, head=head)
        generator = torch.Generator().manual_seed(seed)
        sizes = {name: weight.numel for name, weight in self._weights(model, head).items()}
        indices = {
            name: random_positions(sizes[name], count, generator)
            for name, count in counts.items()
        }
        length = steps if steps is not None else self.horizon
        return SpIELHandle(
            model, indices, method=self, head=head, steps=length, seed=seed, name=name
        )

    def counts(self, model: nn.Module, *, head: Sequence[str] = ()) -> dict[str, int]:
        """Deltas of each target weight; works on the meta device."""
        weights = self._weights(model, head)
        sizes = {name: weight.numel for name, weight in weights.items()}
        return budgets(sizes, self._total(model, weights))

    def _total(self, model: nn.Module, weights: Mapping[str, _Weight]) -> int:
        if self.budget is not None:
            return self.budget
        if self.match_rank is not None:
            return self.match_rank * sum(sum(weight.shape) for weight in weights.values())
        if self.density is None:
            raise ConfigError(
                "no density, no budget and no rank to match", expected="one of them",
                mend="density=0.02 trains two deltas for a hundred parameters of the model",
            )
        if not 0 < self.density <= 1:
            raise ConfigError(f"density = {self.density}", expected="a share in (0, 1]")
        packed = packed_layers(model)
        plain = sum(p.numel() for n, p in model.named_parameters() if n not in packed)
        whole = plain + sum(math.prod(layer.shape) for layer in packed.values())
        return int(self.density * whole)

    def _weights(self, model: nn.Module, head: Sequence[str]) -> dict[str, _Weight]:
        """Target weights by parameter name."""
        packed = packed_layers(model)
        if packed:
            found = {n: _Weight(layer.shape, layer.transposed) for n, layer in packed.items()
                     if _fits(n.removesuffix(".weight"), self.targets)}
            if not found:
                raise DataError(
                    f"no packed layer is called {', '.join(self.targets)}",
                    expected=f"endings of {', '.join(list(packed)[:5])}",
                )
            return found
        first = {id(p): n for n, p in model.named_parameters()}
        layers = find_targets(model, self.targets, head=tuple(head))
        return {
            first[id(layer.weight)]: _Weight(tuple(layer.weight.shape), is_transposed(layer))
            for layer in layers.values()
        }

    def _check(self, steps: int | None) -> None:
        given = [n for n in ("budget", "match_rank") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ConfigError(f"both {' and '.join(given)}", expected="one of them")
        if not 0 < self.accumulation_steps < self.reselection_steps:
            raise ConfigError(
                f"accumulation_steps = {self.accumulation_steps}, "
                f"reselection_steps = {self.reselection_steps}",
                expected="0 < accumulation_steps < reselection_steps",
            )
        if self.growth == "select" and steps is not None and steps <= self.accumulation_steps:
            warnings.warn(
                f"a run of {steps} steps ends before the first reselection after step "
                f"{self.accumulation_steps}: the deltas stay at random positions", PassbandWarning,
                stacklevel=3,
            )


@dataclass(frozen=True)
class _Weight:
    shape: tuple[int, ...]
    transposed: bool  # stored [in, out]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def _fits(name: str, endings: Sequence[str]) -> bool:
    return any(e == "all-linear" or name == e or name.endswith(f".{e}") for e in endings)


@dataclass(frozen=True)
class Round:
    """A reselection: after which step, which share of the deltas, how many moved in all layers."""

    step: int
    share: float
    moved: int


class SpIELHandle(EntryHandle):
    """Deltas of a model's weights in training; see `SpIEL`.

    rounds  what was replaced so far
    """

    def __init__(
        self, model: nn.Module, indices: Mapping[str, Tensor], *, method: SpIEL, **options: Any
    ) -> None:
        packed = bool(packed_layers(model))
        super().__init__(
            model, indices, parametrisation="delta", on_gradient=self._look, method=method,
            select=partial(NF4Selected, sampled=self._sampled) if packed else None, **options,
        )
        if packed:
            self.base = fingerprint_of_packed(model, without=self.head)
        self.method, self.packed = method, packed
        weights = method._weights(model, tuple(options.get("head", ())))
        self._transposed = {name for name, weight in weights.items() if weight.transposed}
        self.candidates: dict[str, Candidates] = {}
        self.before: dict[str, Tensor] = {}  # values at the last reselection, for "change"
        self.rounds: list[Round] = []
        self._seen: set[str] = set()  # layers whose candidates saw the step under way
        self._layers = packed_layers(model)
        self._patches = {} if packed or not method.sampled else self._patched()
        if method.drop_criterion == "change":
            self._remember()

    # ---- optimisers --------------------------------------------------------------------------

    def optimizer(
        self, lr: float, *, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
    ) -> Optimizer:
        """The one of the algorithm: Adam with an age for each delta, or SM3 (without betas).

        Weight decay acts on the deltas alone. eps is 1e-6 for AG and 1e-8 for MA unless given.
        """
        make = {"ag": self._adam, "ma": self._sm3}[self.method.algorithm]
        return self.bind(make(self.groups(weight_decay), lr, betas, eps))

    def _adam(
        self, groups: Any, lr: float, betas: tuple[float, float], eps: float | None
    ) -> Optimizer:
        eps = 1e-6 if eps is None else eps
        return SlotAdamW(groups, lr, betas, eps, weight_decay=0.0, eps_placement="before")

    def _sm3(self, groups: Any, lr: float, _: Any, eps: float | None) -> Optimizer:
        return SM3(
            groups, lr, momentum=self.method.momentum, eps=1e-8 if eps is None else eps,
            places=self.place, row_cover_only=self.method.row_cover_only,
        )

    def decays(self, name: str) -> bool:
        return name in self.selected.values  # relative to lr, up to 30: no head would survive it

    def bind(self, optimizer: Optimizer) -> Optimizer:
        grows = self.method.growth == "select" and self.method.algorithm == "ma"
        if grows and not isinstance(optimizer, SM3):
            raise ConfigError(
                f"algorithm 'ma' with {type(optimizer).__name__}", expected="the optimiser SM3",
                mend="handle.optimizer(lr), or algorithm='ag'",
            )
        optimizer.register_step_pre_hook(lambda *_: self._before_update())
        return super().bind(optimizer)

    def place(self, parameter: Tensor) -> tuple[Tensor, int, int] | None:
        """Where values stand, (positions [k], outputs, inputs): rows are outputs for Conv1D too."""
        found = self.selected.place(parameter)
        if found is None or not self._transposed:
            return found
        name = next(n for n, values in self.selected.values.items() if values is parameter)
        at, rows, columns = found
        if name not in self._transposed:
            return found
        return _turned(at, columns, rows), columns, rows

    # ---- statistics of gradients ---------------------------------------------------------------

    @property
    def collecting(self) -> bool:
        """Whether the coming step is one of those that AG looks at."""
        method, t = self.method, self.count
        if method.algorithm != "ag" or method.growth == "none":
            return False
        early = method.reference_timing and (t + 1) % method.reselection_steps == 0
        return early or t % method.reselection_steps < method.accumulation_steps

    def _sampled(self, name: str) -> bool:
        """Whether the gradient at the deltas is enough now and cheaper than the dense one."""
        few = is_faster(self._layers[name].shape, len(self.selected.indices[name]))
        return self.method.sampled and few and not self.collecting

    def _patched(self) -> dict[str, SampledLinear]:
        """Large layers with few deltas: a dense gradient only where it is needed."""
        patches = {}
        of = {id(p): n for n, p in self.model.named_parameters()}
        for layer in self.model.modules():
            name = of.get(id(getattr(layer, "weight", None)), "")
            at = self.selected.indices.get(name)
            if at is None or not can_sample(layer) or len(sharing(self.model, layer)) > 1:
                continue
            if is_faster(tuple(layer.weight.shape), len(at)):
                patches[name] = SampledLinear(
                    layer, self.selected.values[name], partial(self._positions, name),
                    partial(self._looker, name),
                )
        return patches

    def _positions(self, name: str) -> Tensor:
        return self.selected.indices[name]

    def _looker(self, name: str) -> Callable[[Tensor], None] | None:
        return partial(self._look, name) if self.collecting else None

    def _look(self, name: str, gradient: Tensor) -> None:
        """In each backward pass, before a layer's dense gradient is dropped."""
        if not (self.enabled and self.collecting):
            return
        values = self.selected.values[name]
        flat = gradient.reshape(-1)
        if name not in self.candidates:
            # All replicas have to choose alike: from the mean of their gradients.
            shared = average(flat.clone()) if replicas() > 1 else flat
            found = Candidates.choose(shared, len(values))
            if found is None:  # an overflow: the next step may do
                return
            self.candidates[name] = found
        # A loss scaler drops a step without telling: its gradients are gone then.
        anew = name not in self._seen or values.grad is None
        self._seen.add(name)
        self.candidates[name].add(flat, self.selected.indices[name], anew=anew)

    def _before_update(self) -> None:
        """Gradients of all micro-batches are there, clipped and unscaled; the step is to come."""
        if self.method.growth == "select":
            self.fraction  # noqa: B018  raises where the length of the run is unknown
        gradients = {
            name: values.grad for name, values in self.selected.values.items()
            if values.grad is not None
        }
        looked = {n: self.candidates[n] for n in gradients if n in self._seen}
        for name, found in looked.items():
            found.settle(gradients[name])
        for gradient in gradients.values():
            average(gradient)
        if _finite(gradients.values()):
            for found in looked.values():
                found.fold()
        else:
            self._skip()
        self._seen.clear()

    def _skip(self) -> None:
        warnings.warn(
            f"gradients of step {self.count + 1} are not finite: it is skipped", PassbandWarning,
            stacklevel=5,
        )
        for parameter in self.parameters():
            parameter.grad = None
        for found in self.candidates.values():
            found.forget()

    # ---- reselection -----------------------------------------------------------------------------

    def at(self, fraction: float) -> None:
        super().at(fraction)
        self._reselect_when_due()

    def _after_step(self) -> None:
        if self._told is None:  # a plain loop: `steps` says how far it is
            self._reselect_when_due()

    def _reselect_when_due(self) -> None:
        method, t = self.method, self.count
        done = self.rounds[-1].step if self.rounds else 0
        due = t > done and t % method.reselection_steps == method.accumulation_steps
        if due and method.growth == "select" and self.fraction < 1:
            self.reselect()

    @torch.no_grad()
    def reselect(self) -> Round:
        """Drop and grow now; called once in `reselection_steps` steps."""
        method = self.method
        share = replaced(
            method.policy, method.reselection_rate, self.fraction, first=not self.rounds
        )
        move = {"ag": self._by_gradients, "ma": self._by_momentum}[method.algorithm]
        moved = 0
        for name, values in self.selected.values.items():
            moved += move(name, values, int(len(values) * share))
        self.candidates = {}
        if method.drop_criterion == "change":
            self._remember()
        self.rounds.append(Round(self.count, share, moved))
        return self.rounds[-1]

    def _importance(self, name: str, values: Tensor) -> Tensor:
        """What is smallest is dropped."""
        return (values - self.before[name] if name in self.before else values).abs()

    def _remember(self) -> None:
        self.before = {n: v.detach().clone() for n, v in self.selected.values.items()}

    def _by_gradients(self, name: str, values: nn.Parameter, count: int) -> int:
        found = self.candidates.get(name)
        if found is None or found.steps == 0:
            return 0
        slots, grown = exchange(
            self.selected.indices[name], self._importance(name, values.detach()),
            found.positions, found.total.abs(), count,
        )
        self.selected.change_slots(name, slots, found.positions[grown])
        for optimizer in self._holding(values):
            if isinstance(optimizer, SlotAdamW):
                beta1, beta2 = _group(optimizer, values)["betas"]
                m, v = found.moments(grown, beta1, beta2)
                optimizer.seed(values, slots, m, v, found.steps)
            else:
                _clear(optimizer, values, slots)
        return len(slots)

    def _by_momentum(self, name: str, values: nn.Parameter, count: int) -> int:
        for optimizer in self._holding(values):
            assert isinstance(optimizer, SM3)
            rows, columns = optimizer.covers(values)
            placed = self.place(values)
            assert placed is not None
            active, _, width = placed
            columns = rows.new_ones(width) if columns is None else columns
            grown = outer_top(rows, columns, active, count)
            if name in self._transposed:
                grown = _turned(grown, width, len(rows))
            order = self._importance(name, values.detach()).sort(stable=True).indices
            slots = order[: len(grown)].sort().values
            self.selected.change_slots(name, slots, grown)
            optimizer.seed(values, slots)
            return len(slots)
        return 0

    def _holding(self, values: nn.Parameter) -> list[Optimizer]:
        """Bound optimisers of these values."""
        return [
            o for o in self.optimizers
            if any(p is values for group in o.param_groups for p in group["params"])
        ]

    def _release(self) -> None:
        for patch in self._patches.values():
            patch.detach()
        super()._release()

    # ---- what came out ---------------------------------------------------------------------------

    def detach(self, *, merge: bool = False) -> Edit:
        """As `Handle.detach`; merging into 4-bit weights packs them again, which loses some of the
        change, and warns: `unpack(model)` and `edit.apply(model)` don't."""
        edit = super().detach(merge=merge and not self.packed)
        if merge and self.packed:
            merge_packed(self.model, edit)
        return edit

    def extra_state(self) -> dict[str, Any]:
        return {
            **super().extra_state(),
            "candidates": {name: found.state() for name, found in self.candidates.items()},
            "before": dict(self.before),
            "rounds": [asdict(one) for one in self.rounds],
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        super().load_extra_state(state)
        for patch in self._patches.values():
            patch.layer.weight.requires_grad_(False)
        self.candidates = {
            name: Candidates.of(found, self.selected.values[name].device)
            for name, found in state["candidates"].items()
        }
        self.before = {
            name: tensor.to(self.selected.values[name].device, copy=True)
            for name, tensor in state["before"].items()
        }
        self.rounds = [Round(**one) for one in state["rounds"]]


def _turned(at: Tensor, rows: int, columns: int) -> Tensor:
    """Flat positions of the transpose, which is [rows, columns]."""
    return at % rows * columns + at // rows


def _finite(gradients: Any) -> bool:
    sums = [g.sum() for g in gradients]
    return not sums or bool(torch.isfinite(torch.stack(sums)).all())


def _group(optimizer: Optimizer, values: Tensor) -> dict[str, Any]:
    return next(g for g in optimizer.param_groups if any(p is values for p in g["params"]))


def _clear(optimizer: Optimizer, values: nn.Parameter, slots: Tensor) -> None:
    """Newborn slots start without state in an optimiser that knows no ages."""
    for tensor in optimizer.state.get(values, {}).values():
        if isinstance(tensor, Tensor) and tensor.shape == values.shape:
            tensor[slots] = 0
