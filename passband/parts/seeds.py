"""One tiny model trained from many seeds at once: the seeds are an axis of every tensor.

    theta [S, ...],  g[s] = grad L(theta[s], batch[s]),  one optimiser step for all S

A model of a few thousand weights leaves a processor idle between small operations; S of them in one
tensor cost little more than one, and a claim gets its interval for the price of a single run.

>>> def make(seed):
...     return nn.Linear(4, 1)
>>> def loss(model, x, y):
...     return (model(x) - y).square().mean()
>>> x = torch.randn(20, 4)
>>> runs = train_seeds(make, loss, (x, x.sum(1, keepdim=True)), seeds=[0, 1, 2], steps=50, lr=0.1)
>>> runs.losses.shape, runs(x).shape
(torch.Size([50, 3]), torch.Size([3, 20, 1]))
>>> sorted(runs.unstack(1))
['bias', 'weight']

Letters: S seeds, N examples, B batch. What differs between seeds (their labels, say) is wrapped in
`Each`. The numbers are those of a loop over the seeds, to rounding. Optimisers act on each element,
so their state stacks as well; anything that mixes elements (clipping by a norm) does not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD, Adam, AdamW, Optimizer

from passband.errors import ConfigError, DataError

Rate = float | Sequence[float]  # one for all, or one a seed
Observe = Callable[[int, "Stack"], Mapping[str, Any]]


@dataclass(frozen=True)
class Each:
    """A tensor [S, ...] with its own slice for every seed; `dtype` and device as it is.

    >>> labels = Each(torch.randint(3, (5, 20)))           # 20 labels for each of 5 seeds
    """

    tensor: Tensor


Data = tuple["Tensor | Each", ...]


@dataclass
class Stack:
    """The models of all seeds.

    tensors  parameters and buffers by name, [S, ...]; parameters are leaves with gradients
    losses   [steps, S], before each step
    rows     what `observe` gave: {"step": int, ...} each

    Called with inputs it gives the outputs of every model, [S, ...], without gradients and in
    evaluation mode; inputs are shared, or `Each`.
    """

    seeds: tuple[int, ...]
    template: nn.Module = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    losses: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.seeds)

    def __call__(self, *inputs: Tensor | Each) -> Tensor:
        def one(tensors: dict[str, Tensor], given: tuple[Tensor, ...]) -> Any:
            return functional_call(self.template, tensors, given)

        training = self.template.training
        self.template.eval()
        try:
            with torch.no_grad():
                out: Tensor = vmap(one, in_dims=(0, _axes(inputs)))(self.tensors, _bare(inputs))
        finally:
            self.template.train(training)
        return out

    def unstack(self, i: int) -> dict[str, Tensor]:
        """The state dict of seed number i: `model.load_state_dict(runs.unstack(0))`."""
        return {name: tensor[i].detach().clone() for name, tensor in self.tensors.items()}

    def model(self, i: int) -> nn.Module:
        """The module of seed number i, in evaluation mode; tensors of its own.

        >>> def loss(model, x): return model(x).square().mean()
        >>> runs = train_seeds(lambda seed: nn.Linear(2, 1), loss, (torch.randn(4, 2),), [3], 5)
        >>> runs.model(0)
        Linear(in_features=2, out_features=1, bias=True)
        """
        one = copy.deepcopy(self.template)
        one.load_state_dict(self.unstack(i), strict=False)
        return one.eval()


def train_seeds(
    make_model: Callable[[int], nn.Module],
    loss: Callable[..., Tensor],
    data: Data | Callable[[int], Data],
    seeds: Sequence[int],
    steps: int,
    lr: Rate = 1e-3,
    *,
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
    weight_decay: Rate = 0.0,
    momentum: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    schedule: Callable[[int], float] | None = None,
    decayed: Callable[[str, Tensor], bool] | None = None,
    batch_size: int | None = None,
    order: Callable[[int], Iterator[Tensor]] | None = None,
    observe: Observe | None = None,
    every: int = 10,
) -> Stack:
    """Train one model for each seed, all in the same tensors.

    >>> x, labels = torch.randn(30, 2), torch.randint(2, (4, 30))     # each seed's own labels
    >>> runs = train_seeds(
    ...     lambda seed: nn.Linear(2, 2),
    ...     lambda model, x, y: nn.functional.cross_entropy(model(x), y),
    ...     (x, Each(labels)), seeds=range(4), steps=20, lr=[0.1, 0.1, 0.2, 0.2], batch_size=10,
    ...     observe=lambda step, runs: {"norm": runs.tensors["weight"].norm(dim=(1, 2))},
    ... )
    >>> [row["step"] for row in runs.rows], runs.rows[0]["norm"].shape
    ([0, 10, 20], torch.Size([4]))

    make_model    (seed) -> module; torch's generator stands at the seed when it is called
    loss          (model, *batch) -> scalar, of one seed; it is mapped by `torch.vmap`, so no
                  `.item()` and no branch on values. Gradients inside it by `torch.func`
    data          tensors [N, ...] for all seeds or `Each` [S, N, ...]; or (step) -> such a tuple
    lr            one, or one a seed; times schedule(step) if given
    weight_decay  one, or one a seed: decoupled for adamw, L2 for the others
    decayed       (name, tensor of one seed) -> whether it decays; default: all parameters
    batch_size    None: all rows in every step. Else each seed draws its own permutations, anew
                  every epoch, and the last partial batch is left out
    order         (seed) -> rows [B] of each step, in place of that
    observe       (step, stack) -> values to keep in `rows`, before the first step, every so many
                  and after the last

    Raises ConfigError for batch normalisation with running statistics (they would be changed in
    place inside `vmap`), models of different shapes and rates of the wrong number; DataError for
    rows that do not match.
    """
    runs = _stacked(make_model, tuple(int(seed) for seed in seeds))
    count = len(runs)
    learned = {n: t for n, t in runs.tensors.items() if t.requires_grad}
    lrs, decays = _rate(lr, "lr", count), _rate(weight_decay, "weight_decay", count)
    steps_of = _batches(data, runs.seeds, batch_size, order)
    step = _Step(optimizer, learned, lrs, decays, decayed, momentum, betas, eps)
    objective = _Objective(runs.template, loss).train()
    losses = torch.zeros(steps, count)

    def one(tensors: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Any:
        return functional_call(objective, tensors, batch)

    for i in range(steps):
        if observe is not None and i % every == 0:
            runs.rows.append({"step": i, **observe(i, runs)})
        batch = steps_of(i)
        # The sum of the losses: each one's gradient reaches its own slice alone.
        mapped = vmap(one, in_dims=(0, _axes(batch)), randomness="different")
        named = {f"model.{name}": tensor for name, tensor in runs.tensors.items()}
        values = mapped(named, _bare(batch))
        step.zero_grad()
        values.sum().backward()
        step(1.0 if schedule is None else schedule(i))
        losses[i] = values.detach()
    runs.losses = losses
    runs.template.eval()
    if observe is not None:
        runs.rows.append({"step": steps, **observe(steps, runs)})
    return runs


class _Objective(nn.Module):
    """The loss as a module whose parameters are the model's, so that they can be put in."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.model, *batch)


# ---- models ----------------------------------------------------------------------------------


def _stacked(make_model: Callable[[int], nn.Module], seeds: tuple[int, ...]) -> Stack:
    if not seeds:
        raise ConfigError("no seeds", expected="at least one")
    models = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            models.append(make_model(seed))
    _check(models)
    parameters, buffers = stack_module_state(models)
    trained = {n for n, p in models[0].named_parameters() if p.requires_grad}
    tensors = {n: t.detach().requires_grad_(n in trained) for n, t in parameters.items()}
    return Stack(seeds, models[0], tensors | buffers)


def _check(models: Sequence[nn.Module]) -> None:
    for name, part in models[0].named_modules():
        if isinstance(part, _NormBase) and part.track_running_stats:
            raise ConfigError(
                f"{name or 'the model'} is a {type(part).__name__} with running statistics",
                expected="a model whose forward pass changes none of its buffers",
                mend="build it with track_running_stats=False, take another norm, or train the "
                "seeds one by one",
            )
    shapes = [{n: tuple(p.shape) for n, p in m.state_dict().items()} for m in models]
    for i, other in enumerate(shapes[1:], 1):
        if other != shapes[0]:
            names = sorted(n for n in {**other, **shapes[0]} if other.get(n) != shapes[0].get(n))
            raise ConfigError(
                f"models number 0 and {i} differ in {', '.join(names)}",
                expected="the same shapes for every seed",
            )


# ---- batches ---------------------------------------------------------------------------------


def permutations(rows: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Rows [B] of each step: a new permutation every epoch, its last partial batch left out.

    >>> steps = permutations(5, 2, seed=0)
    >>> first_epoch = torch.cat([next(steps), next(steps)])
    >>> len(set(first_epoch.tolist()))
    4
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        shuffled = torch.randperm(rows, generator=generator)
        for start in range(0, rows - batch_size + 1, batch_size):
            yield shuffled[start : start + batch_size]


def _batches(
    data: Data | Callable[[int], Data], seeds: tuple[int, ...], batch_size: int | None,
    order: Callable[[int], Iterator[Tensor]] | None,
) -> Callable[[int], Data]:
    """(step) -> its batch; asked for one step after the other."""
    if callable(data):
        if batch_size is not None or order is not None:
            raise ConfigError(
                "batch_size or order with data that is a function", expected="data as tensors",
                mend="let the function draw its batches",
            )
        return data
    rows = _rows(data, len(seeds))
    if batch_size is None and order is None:
        return lambda step: data
    if order is None:
        if batch_size is None or not 0 < batch_size <= rows:
            raise ConfigError(
                f"batch_size = {batch_size} with {rows} rows", expected=f"1 to {rows}, or None"
            )
        size = batch_size
        orders = [permutations(rows, size, seed) for seed in seeds]
    else:
        orders = [order(seed) for seed in seeds]

    def batch(step: int) -> Data:
        picked = torch.stack([next(o) for o in orders])  # [S, B]
        return tuple(Each(_taken(x, picked)) for x in data)

    return batch


def _taken(x: Tensor | Each, rows: Tensor) -> Tensor:
    """[N, ...] or Each [S, N, ...] at rows [S, B] -> [S, B, ...]."""
    if isinstance(x, Each):
        return x.tensor[torch.arange(len(rows))[:, None], rows]
    return x[rows]


def _rows(data: Data, count: int) -> int:
    if not data:
        raise DataError("data is an empty tuple", expected="tensors, as `loss` takes them")
    rows = set()
    for i, x in enumerate(data):
        if isinstance(x, Each):
            if x.tensor.shape[:1] != (count,):
                raise DataError(
                    f"Each number {i} has shape {tuple(x.tensor.shape)} for {count} seeds",
                    expected=f"[{count}, N, ...]",
                )
            rows.add(x.tensor.shape[1])
        else:
            rows.add(x.shape[0])
    if len(rows) > 1:
        raise DataError(f"data of {sorted(rows)} rows", expected="the same number in all")
    return rows.pop()


def _axes(batch: Data) -> tuple[int | None, ...]:
    return tuple(0 if isinstance(x, Each) else None for x in batch)


def _bare(batch: Data) -> tuple[Tensor, ...]:
    return tuple(x.tensor if isinstance(x, Each) else x for x in batch)


# ---- the optimiser ---------------------------------------------------------------------------


def _rate(rate: Rate, name: str, count: int) -> float | Tensor:
    """A float, or [S] where seeds differ."""
    if isinstance(rate, (int, float)):
        return float(rate)
    values = torch.as_tensor([float(r) for r in rate])
    if len(values) != count:
        raise ConfigError(
            f"{len(values)} values of {name} for {count} seeds", expected="one, or one a seed"
        )
    return float(values[0]) if bool((values == values[0]).all()) else values


class _Step:
    """torch's fused optimiser over the stacked tensors, with rates that may differ by seed."""

    def __init__(
        self, name: str, tensors: Mapping[str, Tensor], lr: float | Tensor,
        decay: float | Tensor, decayed: Callable[[str, Tensor], bool] | None, momentum: float,
        betas: tuple[float, float], eps: float,
    ) -> None:
        self.lr, self.decay = lr, decay
        # Where rates of seeds differ, the optimiser takes a step of rate 1 and the way is scaled.
        self.common = lr if isinstance(lr, float) else 1.0
        self.tensors = list(tensors.values())
        self.decaying = [
            t for n, t in tensors.items() if decayed is None or decayed(n, t[0].detach())
        ]
        self.decoupled = name == "adamw"
        makers: dict[str, Callable[[], Optimizer]] = {
            "adamw": lambda: AdamW(
                self.tensors, lr=self.common, betas=betas, eps=eps, weight_decay=0.0, fused=True
            ),
            "adam": lambda: Adam(self.tensors, lr=self.common, betas=betas, eps=eps, fused=True),
            "sgd": lambda: SGD(self.tensors, lr=self.common, momentum=momentum, fused=True),
        }
        if name not in makers:
            raise ConfigError(f"optimizer {name!r}", expected=f"one of {', '.join(makers)}")
        self.optimizer = makers[name]()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def __call__(self, factor: float) -> None:
        moving = not (isinstance(self.decay, float) and self.decay == 0.0)
        if moving and not self.decoupled:
            for t in self.decaying:
                if t.grad is not None:
                    t.grad.add_(_wide(self.decay, t) * t)
        if moving and self.decoupled:
            shrink = 1.0 - factor * self.lr * self.decay
            for t in self.decaying:
                t.mul_(_wide(shrink, t))
        before = None if isinstance(self.lr, float) else [t.clone() for t in self.tensors]
        for group in self.optimizer.param_groups:
            group["lr"] = self.common * factor
        self.optimizer.step()
        if before is not None:
            for t, old in zip(self.tensors, before, strict=True):
                t.copy_(torch.lerp(old, t, _wide(self.lr, t)))


def _wide(rate: float | Tensor, tensor: Tensor) -> float | Tensor:
    """A rate that multiplies [S, ...]."""
    if isinstance(rate, float):
        return rate
    return rate.to(tensor).view(-1, *[1] * (tensor.dim() - 1))
