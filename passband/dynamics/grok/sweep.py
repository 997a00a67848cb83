"""Many runs at once, and the phase each of them ends in.

>>> runs = sweep(grid(p=11, neurons=64, steps=20, weight_decay=[0.0, 5.0], seed=[0, 1]))
>>> len(runs), runs[0].setting.weight_decay, runs[-1].setting.seed
(4, 0.0, 1)
>>> runs[0].phase in PHASES
True

Runs that differ in their data, seed or weight decay alone are trained as one stack of weights
(`passband.parts.seeds`); a phase diagram is a `grid` over alpha and xi. Times of a run are steps of
the optimiser.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passband.data.modular import Modular, modular_dataset
from passband.dynamics.grok.encoder import TinyEncoder
from passband.dynamics.grok.model import QuadraticMLP, one_hot_mse
from passband.dynamics.grok.monitor import GrokMonitor
from passband.dynamics.grok.neurons import Order, order_of
from passband.errors import ConfigError
from passband.parts.seeds import Each, Stack, permutations, train_seeds

PHASES = (
    "memorisation", "coexistence", "partial inversion", "full inversion", "forgetting",
    "in between",
)
TOGETHER = 2**25  # weights and hidden values of a stack: some GB while it trains


def phase(
    train_accuracy: float, test_accuracy: float, xi: float, classes: int | None = None,
    tolerance: float = 0.03,
) -> str:
    """What a network made of data with a share xi of random labels, by its last accuracies.

    >>> phase(1.0, 0.1, 0.35), phase(0.98, 0.98, 0.35), phase(0.65, 1.0, 0.35)
    ('memorisation', 'coexistence', 'full inversion')
    >>> phase(0.8, 1.0, 0.35), phase(0.01, 0.01, 0.35)
    ('partial inversion', 'forgetting')

    classes  corrupted labels come out right in one of so many cases; default: never

    Where no label is wrong, coexistence and full inversion are one: it is called coexistence. What
    fits none of them (half of the test known, say) is "in between".
    """
    chance = 0.0 if classes is None else 1.0 / classes
    inverted = 1.0 - xi * (1.0 - chance)
    if test_accuracy >= 1 - tolerance:
        if train_accuracy >= 1 - tolerance:
            return "coexistence"
        if abs(train_accuracy - inverted) <= tolerance:
            return "full inversion"
        return "partial inversion" if train_accuracy > inverted else "in between"
    if train_accuracy >= 1 - tolerance:
        return "memorisation"
    chances = max(train_accuracy, test_accuracy) <= chance + tolerance
    return "forgetting" if chances else "in between"


@dataclass(frozen=True)
class Setting:
    """One run. Batches below 256 take the rate lr sqrt(batch_size / 256).

    network     "mlp" or "encoder", of one block unless blocks says otherwise
    loss        "mse" against one-hots or "cross-entropy"
    batch_size  None: all training pairs in every step
    seed        of pairs, corruption, initial weights, batches and dropout
    """

    p: int = 97
    op: str = "add"
    alpha: float = 0.5
    xi: float = 0.35
    network: str = "mlp"
    neurons: int = 500
    act: str = "square"
    dropout: float = 0.0
    norm: str = "none"
    width: int = 128
    heads: int = 4
    blocks: int = 1
    loss: str = "mse"
    lr: float = 0.01
    weight_decay: float = 0.0
    batch_size: int | None = None
    steps: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        check_rates(self.lr, self.weight_decay, self.batch_size)
        if self.network not in NETWORKS or self.loss not in LOSSES:
            raise ConfigError(
                f"network = {self.network!r}, loss = {self.loss!r}",
                expected=f"{' or '.join(NETWORKS)}; {' or '.join(LOSSES)}",
            )

    @property
    def rate(self) -> float:
        return self.lr * batch_factor(self.batch_size)

    def data(self) -> Modular:
        return modular_dataset(self.p, self.op, self.alpha, self.xi, self.seed)

    def model(self) -> nn.Module:
        return NETWORKS[self.network](self)


def check_rates(lr: float, weight_decay: float, batch_size: int | None = None) -> None:
    """Decoupled decay multiplies weights by 1 - lr weight_decay: from 1 on it turns their signs."""
    product = lr * batch_factor(batch_size) * weight_decay
    if not product < 1:
        raise ConfigError(
            f"weight_decay x lr = {product:g}: weights would change their sign at every step",
            expected="below 1", mend="lower weight_decay or lr",
        )


def batch_factor(batch_size: int | None) -> float:
    """Small batches take smaller steps: 1 from 256 pairs on."""
    return 1.0 if batch_size is None else min(1.0, (batch_size / 256) ** 0.5)


NETWORKS: dict[str, Callable[[Setting], nn.Module]] = {
    # Statistics of batch normalisation are computed when they are needed: see `_module`.
    "mlp": lambda s: QuadraticMLP(
        s.p, s.neurons, s.act, dropout=s.dropout, norm=s.norm, momentum=None
    ),
    "encoder": lambda s: TinyEncoder(s.p, s.width, s.heads, s.blocks),
}
LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": one_hot_mse,
    "cross-entropy": lambda scores, y, weights=None: (
        F.cross_entropy(scores, y) if weights is None
        else (F.cross_entropy(scores, y, reduction="none") * weights).sum() / weights.sum()
    ),
}


@dataclass(eq=False)
class Run:
    """A finished run: rows of `GrokMonitor`, the first before any step, the last after all."""

    setting: Setting
    data: Modular
    model: nn.Module = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)

    @property
    def last(self) -> dict[str, Any]:
        return self.rows[-1]

    @property
    def phase(self) -> str:
        s = self.setting
        return phase(self.last["train"], self.last.get("test", 0.0), s.xi, self.data.classes)

    @property
    def reorder(self) -> Order:
        """Of the residues, for `neuron_table` and `prune_curve`."""
        return order_of(self.data)


def grid(**values: Any) -> list[Setting]:
    """All combinations of the lists among the values, the first named varying slowest.

    >>> [s.xi for s in grid(xi=[0.1, 0.2], weight_decay=5.0)]
    [0.1, 0.2]
    """
    known = {f.name for f in fields(Setting)}
    if set(values) - known:
        raise ConfigError(
            f"unknown settings {sorted(set(values) - known)}", expected=f"some of {sorted(known)}"
        )
    lists = {n: v if isinstance(v, (list, tuple, range)) else [v] for n, v in values.items()}
    return [
        Setting(**dict(zip(lists, point, strict=True)))
        for point in itertools.product(*lists.values())
    ]


def sweep(settings: Iterable[Setting], every: int = 20, batched: bool = True) -> list[Run]:
    """Train all settings; the runs in their order.

    every    steps between rows of a run
    batched  False: one run after the other, with the same numbers to rounding
    """
    asked = list(settings)
    found: dict[int, Run] = {}
    for numbers in _stacks(asked, batched):
        runs = train_together([asked[i] for i in numbers], every)
        found.update(zip(numbers, runs, strict=True))
    return [found[i] for i in range(len(asked))]


def _stacks(settings: Sequence[Setting], batched: bool) -> list[list[int]]:
    """Numbers of the settings that share a stack: all but data, decay and seed are the same."""
    if not batched:
        return [[i] for i in range(len(settings))]
    alike: dict[Setting, list[int]] = {}
    for i, s in enumerate(settings):
        key = replace(s, op="add", alpha=0.5, xi=0.0, weight_decay=0.0, seed=0)
        alike.setdefault(key, []).append(i)
    stacks = []
    for s, numbers in alike.items():
        pairs = s.batch_size or s.p**2
        size = max(1, TOGETHER // (s.neurons * (pairs + 3 * s.p)))
        stacks += [numbers[i : i + size] for i in range(0, len(numbers), size)]
    return stacks


def train_together(settings: Sequence[Setting], every: int = 20) -> list[Run]:
    """Settings that differ in data, weight decay and seed alone, as one stack."""
    common, tables = settings[0], [s.data() for s in settings]
    monitors = [GrokMonitor(data, reorder=order_of(data)) for data in tables]
    loss = LOSSES[common.loss]

    def objective(model: nn.Module, pairs: Tensor, labels: Tensor, *weights: Tensor) -> Tensor:
        return loss(model(pairs), labels, *weights)

    def observe(step: int, stack: Stack) -> dict[str, Any]:
        measured = [
            m.measure(_module(stack, i, data))
            for i, (m, data) in enumerate(zip(monitors, tables, strict=True))
        ]
        return {"runs": measured}

    stack = train_seeds(
        # Seeds of settings may repeat (two decays of one seed): places in the stack do not.
        lambda place: _started(settings[place]), objective, _data(tables, common.batch_size),
        range(len(settings)), common.steps, common.rate, betas=(0.9, 0.98),
        weight_decay=[s.weight_decay for s in settings], decayed=lambda name, t: t.dim() > 1,
        order=_order(settings, tables) if common.batch_size else None,
        observe=observe, every=every,
    )
    return [
        Run(s, data, _module(stack, i, data),
            [{"step": row["step"], **row["runs"][i]} for row in stack.rows])
        for i, (s, data) in enumerate(zip(settings, tables, strict=True))
    ]


def _started(setting: Setting) -> nn.Module:
    torch.default_generator.manual_seed(setting.seed)
    return setting.model()


def _module(stack: Stack, i: int, data: Modular) -> nn.Module:
    """One run's model as it stands, its normalisation measured on its training pairs."""
    model = stack.model(i)
    if isinstance(model, QuadraticMLP):
        model.calibrate(data.pairs[data.train])
    return model


def _data(tables: Sequence[Modular], batch_size: int | None) -> tuple[Tensor | Each, ...]:
    """Pairs and labels; with all pairs in every step, those of each run's training alone."""
    labels = torch.stack([data.labels for data in tables])
    if batch_size is not None:
        return tables[0].pairs, Each(labels)  # `_order` picks training pairs
    sizes = [len(data.train) for data in tables]
    rows = torch.zeros(len(tables), max(sizes), dtype=torch.long)
    weights = torch.zeros(len(tables), max(sizes))
    for i, data in enumerate(tables):
        rows[i, : sizes[i]] = data.train
        weights[i, : sizes[i]] = 1.0
    picked = Each(tables[0].pairs[rows]), Each(labels.gather(1, rows))
    return picked if min(sizes) == max(sizes) else (*picked, Each(weights))


def _order(settings: Sequence[Setting], tables: Sequence[Modular]) -> Callable[[int], Any]:
    def order(place: int) -> Any:
        train, size = tables[place].train, settings[place].batch_size or 1
        if size > len(train):
            raise ConfigError(
                f"batch_size = {size} of {len(train)} training pairs", expected="at most as many"
            )
        return (train[rows] for rows in permutations(len(train), size, settings[place].seed))

    return order
