"""Which half of a model is trained: whole matrices, drawn by category, by block or at random.

A unit is one module's parameters that go together (a weight and its bias, a norm's gain and bias).
Units of a transformer block fall into categories: attention projections, feed-forward matrices
(one category for each expert), norms, routers. With k members, L blocks and ratio rho, a category
has round(L k rho) trained members: floor(k rho) in some blocks and one more in others, drawn at
random.

    category  in each block, that many members of each category, drawn uniformly
    layer     round(L rho) blocks completely
    model     round(units rho) units of the whole network, ignoring blocks and categories

>>> units = find_units(byte_lm(32, 64, 2, 4))
>>> drawn = draw(units, strategy="category", ratio=0.5, seed=0)
>>> ratio_of(drawn, units)
0.5
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import nn

from passband.errors import ConfigError, DataError
from passband.parts.targets import blocks

Strategy = Literal["category", "layer", "model"]
BALANCE = 0.01  # largest distance of the trained share from the ratio, in elements


@dataclass(frozen=True)
class Unit:
    """What is trained or frozen together.

    name        of the module, as in the model
    block       number of its block, in forward order
    category    "attention", "ffn", "ffn.expert3", "norm", "router" or "other.2" (by dimension)
    parameters  full names
    size        elements
    """

    name: str
    block: int
    category: str
    parameters: tuple[str, ...]
    size: int


# Names of projections that transformer libraries use, by category.
ATTENTION = {
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "query", "key", "value", "query_proj",
    "key_proj", "value_proj", "c_attn", "qkv", "query_key_value", "qkv_proj", "in_proj", "to_q",
    "to_k", "to_v", "to_out", "q_lin", "k_lin", "v_lin", "out_lin", "wq", "wk", "wv", "wo",
}
FEED_FORWARD = {
    "gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "c_fc", "w1", "w2", "w3",
    "lin1", "lin2", "dense_h_to_4h", "dense_4h_to_h", "wi", "wi_0", "wi_1",
}
# Names that mean different things in attention and outside of it.
BY_PARENT = {"dense", "c_proj", "proj", "linear", "0", "wo", "output"}
ROUTER = {"router", "gate"}


def find_units(
    model: nn.Module, groups: Mapping[str, Sequence[str]] | None = None
) -> list[Unit]:
    """Units of all blocks in forward order; tied tensors count once.

    groups  module names by category, for architectures that are not recognised: all modules of a
            group form one category of one block
    Raises `DataError` when there are no repeated blocks.
    """
    owner = _owners(model)
    if groups is not None:
        return _given(model, groups, owner)
    found = blocks(model)
    if not found:
        raise DataError(
            "the model has no list of equal blocks; its modules are "
            f"{', '.join(n for n, _ in model.named_children()) or 'none'}",
            expected="a stack of blocks, as transformers have",
            mend="pass groups={'name': [module names], ...}",
        )
    names = {id(module): name for name, module in model.named_modules()}
    units: list[Unit] = []
    for number, block in enumerate(found):
        base = names[id(block)]
        for name, module in block.named_modules():
            full = f"{base}.{name}" if name else base
            unit = _unit(full, module, number, _category(name, module), owner)
            units += [unit] if unit is not None else []
    return units


def _owners(model: nn.Module) -> dict[int, str]:
    return {id(p): n for n, p in model.named_parameters()}


def _given(
    model: nn.Module, groups: Mapping[str, Sequence[str]], owner: Mapping[int, str]
) -> list[Unit]:
    modules = dict(model.named_modules())
    missing = [n for names in groups.values() for n in names if n not in modules]
    if missing:
        raise DataError(
            f"the model has no modules {', '.join(missing[:5])}", expected="names of modules",
            mend=f"such as {', '.join([n for n in modules if n][:8])}",
        )
    units = []
    for category, names in groups.items():
        for name in names:
            parameters = [p for _, p in modules[name].named_parameters()]
            units.append(Unit(
                name, 0, category, tuple(owner[id(p)] for p in parameters),
                sum(p.numel() for p in parameters),
            ))
    return units


def _unit(
    name: str, module: nn.Module, block: int, category: str, owner: Mapping[int, str]
) -> Unit | None:
    own = [p for p in module.parameters(recurse=False) if id(p) in owner]
    if not own:
        return None
    return Unit(
        name, block, category, tuple(owner[id(p)] for p in own), sum(p.numel() for p in own)
    )


def _category(name: str, module: nn.Module) -> str:
    """Of a module inside a block, by the names that libraries give."""
    words = name.split(".")
    last, parents = words[-1], ".".join(words[:-1]).lower()
    largest = max((p.ndim for p in module.parameters(recurse=False)), default=0)
    if largest <= 1:
        return "norm"
    if last in ROUTER and largest == 2:
        return "router"
    expert = next((w for before, w in pairwise(words) if before == "experts"), "")
    if expert:
        return f"ffn.expert{expert}"
    inside = "attention" in parents or "attn" in parents
    if last in BY_PARENT:
        # BERT's names: attention.output.dense against intermediate.dense and output.dense.
        known = inside or any(w in parents for w in ("mlp", "intermediate", "output", "ffn", "ff"))
        return ("attention" if inside else "ffn") if known else f"other.{largest}"
    if last in ATTENTION:
        return "attention"
    if last in FEED_FORWARD:
        return "ffn"
    return f"other.{largest}"


# ---- the draw ----------------------------------------------------------------------------------


def draw(
    units: Sequence[Unit], *, strategy: Strategy = "category", ratio: float = 0.5, seed: int = 0
) -> list[Unit]:
    """The units to train; private random numbers, apart from those of the data.

    Raises `ConfigError` for a ratio outside (0, 1).
    """
    if not 0 < ratio < 1:
        raise ConfigError(
            f"ratio = {ratio}", expected="a number between 0 and 1, both excluded",
            mend="0.5 is half fine-tuning; all of it is full fine-tuning",
        )
    rng = random.Random(seed)
    chosen = _DRAWS[strategy](units, ratio, rng)
    return [unit for unit in units if unit in chosen]


def _by_category(units: Sequence[Unit], ratio: float, rng: random.Random) -> set[Unit]:
    chosen: set[Unit] = set()
    for category in dict.fromkeys(u.category for u in units):
        members = _blocks_of([u for u in units if u.category == category])
        widths = {len(m) for m in members}
        if len(widths) > 1 or category.startswith("other"):
            # Blocks that differ, or of no known kind: half of each group by elements.
            for group in members:
                chosen |= _greedy(group, ratio, rng)
            continue
        k, blocks_ = widths.pop(), len(members)
        base = math.floor(k * ratio + 1e-9)
        extra = _round(blocks_ * k * ratio) - blocks_ * base
        more = set(rng.sample(range(blocks_), extra))
        drawn = [
            rng.sample(group, base + (number in more)) for number, group in enumerate(members)
        ]
        chosen |= _balanced(members, drawn, ratio, rng)
    return chosen


def _by_layer(units: Sequence[Unit], ratio: float, rng: random.Random) -> set[Unit]:
    numbers = sorted({u.block for u in units})
    kept = set(rng.sample(numbers, _round(len(numbers) * ratio)))
    return {u for u in units if u.block in kept}


def _anywhere(units: Sequence[Unit], ratio: float, rng: random.Random) -> set[Unit]:
    return set(rng.sample(list(units), _round(len(units) * ratio)))


_DRAWS: dict[str, Callable[[Sequence[Unit], float, random.Random], set[Unit]]] = {
    "category": _by_category, "layer": _by_layer, "model": _anywhere,
}


def _round(x: float) -> int:
    return math.floor(x + 0.5)  # halves go up: Python's round would take them to even


def _blocks_of(units: Sequence[Unit]) -> list[list[Unit]]:
    numbers = dict.fromkeys(u.block for u in units)
    return [[u for u in units if u.block == n] for n in numbers]


def _greedy(group: list[Unit], ratio: float, rng: random.Random) -> set[Unit]:
    """About the ratio of a group's elements, the largest first; ties at random."""
    total = sum(u.size for u in group)
    chosen: set[Unit] = set()
    order = sorted(group, key=lambda u: (-u.size, rng.random()))
    held = 0
    for unit in order:
        if abs(held + unit.size - ratio * total) <= abs(held - ratio * total):
            chosen.add(unit)
            held += unit.size
    return chosen


def _balanced(
    members: list[list[Unit]], drawn: list[list[Unit]], ratio: float, rng: random.Random
) -> set[Unit]:
    """Swap members where sizes differ (grouped-query attention) until elements match the ratio."""
    total = sum(u.size for group in members for u in group)
    chosen = {u for group in drawn for u in group}
    gap = sum(u.size for u in chosen) - ratio * total
    while abs(gap) > BALANCE * total:
        swaps = [
            (abs(gap - out.size + new.size), rng.random(), out, new)
            for group in members for out in group if out in chosen
            for new in group if new not in chosen and new.size != out.size
        ]
        best = min(swaps, key=lambda s: s[:2], default=None)
        if best is None or best[0] >= abs(gap):
            break
        chosen.remove(best[2])
        chosen.add(best[3])
        gap += best[3].size - best[2].size
    return chosen


def ratio_of(drawn: Sequence[Unit], units: Sequence[Unit]) -> float:
    """Trained share of the elements of all units."""
    return sum(u.size for u in drawn) / sum(u.size for u in units)
