"""Coupled structures of a network: hidden units, and the rows and columns that belong to them.

    W1 (rows)  ->  something that treats hidden units alike  ->  W2 (columns)

    feed-forward  y = W_d (act(W_g x) * W_u x)      unit: a channel; rows of u, gate, a column of d
    attention     heads of W_q, W_k, W_v, then W_o  unit: a head; head_dim rows, columns of o

Exchanging units in W1's rows and in W2's columns leaves the function as it is. With H heads of
queries and K of keys and values, g = H / K: o and q have H units, k and v have K, and an exchange
moves whole groups of g query heads, or heads of queries within a group.

>>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
>>> (found,) = find_structures(model, [Coupling({"u": "0"}, "2")])
>>> found.kind, found.units("d"), found.parts["d"].table.shape
('ffn', 6, torch.Size([6, 1]))

Source: S2FT (arXiv 2412.06289).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passband.errors import DataError
from passband.parts.targets import is_transposed
from passband.tuning.s2ft.names import (
    ATTENTION,
    BETWEEN,
    FEED_FORWARD,
    FUSED_ATTENTION,
    FUSED_FEED_FORWARD,
    HEAD_SIZE,
)

Kind = Literal["attention", "ffn"]
ROLES: dict[str, Kind] = {
    "o": "attention", "v": "attention", "q": "attention", "k": "attention",
    "d": "ffn", "u": "ffn", "gate": "ffn",
}
SECOND = {"attention": "o", "ffn": "d"}


@dataclass(frozen=True)
class Coupling:
    """One structure of a network that isn't recognised, named by hand.

    first   modules that produce the hidden units, by role: u, gate, or q, k, v
    second  the module that consumes them
    middle  norms between the two that run over all hidden units
    unit    entries of a unit: 1, or the size of an attention head

    >>> Coupling({"q": "q", "k": "k", "v": "v"}, "out", unit=64).kind
    'attention'
    """

    first: Mapping[str, str]
    second: str
    middle: tuple[str, ...] = ()
    unit: int = 1

    @property
    def kind(self) -> Kind:
        return "attention" if self.first.keys() & {"q", "k", "v"} else "ffn"


@dataclass(frozen=True, eq=False)
class Part:
    """The entries of one tensor that belong to the units, along one of its axes.

    dim     axis of the matrix
    table   [units, size] positions along it
    inputs  the units are what the matrix consumes (o, d)
    expert  number of the matrix in a stack [experts, m, n]
    """

    module: str
    parameter: str
    dim: int
    table: Tensor
    inputs: bool = False
    expert: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The matrix (or vector) itself, a view."""
        return tensor if self.expert is None else tensor[self.expert]


@dataclass(frozen=True, eq=False)
class Structure:
    """Hidden units between two matrices.

    name       of the second matrix
    parts      by role
    followers  biases and norms that have an entry for each hidden unit
    group      query heads to a head of keys and values
    fixed      why its units can't be exchanged; empty: they can
    """

    name: str
    kind: Kind
    parts: dict[str, Part]
    followers: tuple[Part, ...] = ()
    group: int = 1
    fixed: str = ""

    def units(self, role: str) -> int:
        return len(self.parts[role].table)

    @property
    def second(self) -> Part:
        return self.parts[SECOND[self.kind]]

    def everything(self) -> Iterator[Part]:
        yield from self.parts.values()
        yield from self.followers


def find_structures(model: nn.Module, couplings: Sequence[Coupling] = ()) -> list[Structure]:
    """Structures in the model's own order: those given, or all that are recognised by name.

    Works without weights, on the meta device. Raises `DataError` where nothing is recognised or a
    given one does not fit.
    """
    modules = dict(model.named_modules())
    if couplings:
        return [_given(modules, coupling) for coupling in couplings]
    found = [s for name, m in modules.items() for s in _at(model, name, m)]
    if not found:
        kinds = sorted({type(m).__name__ for m in modules.values() if not list(m.children())})
        raise DataError(
            f"no attention or feed-forward structure is recognised in {type(model).__name__}, "
            f"which is made of {', '.join(kinds[:8])}",
            expected="a transformer with usual names of layers",
            mend="name the structures: couplings=(Coupling({'u': FIRST}, SECOND), ...)",
        )
    return found


def _at(model: nn.Module, name: str, module: nn.Module) -> Iterator[Structure]:
    """Structures whose matrices are held by one module."""
    yield from _experts(name, module)
    for make in (_feed_forward, _attention):
        found = make(model, name, module)
        if found is not None:
            yield found


# ---- matrices ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Matrix:
    """A linear layer of any make: its name, sizes and axes."""

    name: str
    module: nn.Module
    outputs: int
    inputs: int
    transposed: bool

    @property
    def rows(self) -> int:
        """The axis of outputs."""
        return int(self.transposed)

    def part(self, table: Tensor, *, inputs: bool) -> Part:
        dim = self.rows if not inputs else 1 - self.rows
        return Part(self.name, f"{self.name}.weight", dim, table, inputs)

    def bias(self, table: Tensor) -> list[Part]:
        if getattr(self.module, "bias", None) is None:
            return []
        return [Part(self.name, f"{self.name}.bias", 0, table)]


def _matrix(parent: str, module: nn.Module, path: str) -> _Matrix | None:
    """The linear layer at a path below a module, quantised ones too."""
    child: Any = module
    for step in path.split("."):
        child = getattr(child, "_modules", {}).get(step)
        if child is None:
            return None
    return _as_matrix(f"{parent}.{path}" if parent else path, child)


def _as_matrix(name: str, layer: nn.Module) -> _Matrix | None:
    transposed = is_transposed(layer)
    weight = getattr(layer, "weight", None)
    sizes = (getattr(layer, "out_features", None), getattr(layer, "in_features", None))
    if isinstance(sizes[0], int) and isinstance(sizes[1], int):
        return _Matrix(name, layer, sizes[0], sizes[1], False)
    if isinstance(weight, Tensor) and weight.ndim == 2 and transposed:
        return _Matrix(name, layer, weight.shape[1], weight.shape[0], True)
    return None


def _rows(units: int, size: int = 1, start: int = 0) -> Tensor:
    """[units, size]: units one after the other from `start`."""
    return torch.arange(start, start + units * size, device="cpu").reshape(units, size)


# ---- feed-forward networks -----------------------------------------------------------------------


def _feed_forward(model: nn.Module, name: str, module: nn.Module) -> Structure | None:
    for fused, after in FUSED_FEED_FORWARD:
        first, second = _matrix(name, module, fused), _matrix(name, module, after)
        if first and second and first.outputs == 2 * second.inputs:
            d = second.inputs
            tables = {"gate": _rows(d), "u": _rows(d, start=d)}
            return _joined(name, module, {r: (first, t) for r, t in tables.items()}, second)
    for before, after in FEED_FORWARD:
        layers = {role: _matrix(name, module, path) for role, path in before.items()}
        second = _matrix(name, module, after)
        if second is None or any(m is None for m in layers.values()):
            continue
        found = {role: m for role, m in layers.items() if m is not None}
        if all(m.outputs == second.inputs for m in found.values()):
            table = _rows(second.inputs)
            return _joined(name, module, {r: (m, table) for r, m in found.items()}, second)
    return None


def _joined(
    name: str, module: nn.Module, first: Mapping[str, tuple[_Matrix, Tensor]], second: _Matrix
) -> Structure:
    table = _rows(second.inputs)
    parts = {role: m.part(rows, inputs=False) for role, (m, rows) in first.items()}
    followers = [part for m, rows in first.values() for part in m.bias(rows)]
    followers += _between(name, module, table)
    parts["d"] = second.part(table, inputs=True)
    return Structure(second.name, "ffn", parts, tuple(followers))


def _between(name: str, module: nn.Module, table: Tensor) -> list[Part]:
    """Norms over all hidden units, directly in the module."""
    found = []
    for child, norm in module.named_children():
        if child in BETWEEN:
            found += _vectors(f"{name}.{child}" if name else child, norm, table)
    return found


def _vectors(name: str, norm: nn.Module, table: Tensor) -> list[Part]:
    own = norm.named_parameters(recurse=False)
    return [Part(name, f"{name}.{n}", 0, table) for n, p in own if p.numel() == table.numel()]


def _experts(name: str, module: nn.Module) -> Iterator[Structure]:
    """One structure for each expert of a stack: gate and up [E, 2 D, n], down [E, m, D]."""
    own = dict(module.named_parameters(recurse=False))
    if own.keys() != {"gate_up_proj", "down_proj"}:
        return
    first, second = own["gate_up_proj"], own["down_proj"]
    if first.ndim != 3 or first.shape[1] != 2 * second.shape[2]:
        return
    d = second.shape[2]
    for number in range(len(second)):
        parts = {
            role: Part(name, f"{name}.gate_up_proj", 0, _rows(d, start=start), False, number)
            for role, start in (("gate", 0), ("u", d))
        }
        parts["d"] = Part(name, f"{name}.down_proj", 1, _rows(d), True, number)
        yield Structure(f"{name}.down_proj.{number}", "ffn", parts)


# ---- attention -----------------------------------------------------------------------------------


def _attention(model: nn.Module, name: str, module: nn.Module) -> Structure | None:
    for *paths, after in ATTENTION:
        q, k, v, o = (_matrix(name, module, path) for path in (*paths, after))
        if q and k and v and o:
            size = _head_size(model, module, o)
            heads, kv = o.inputs // size, v.outputs // size
            if (q.outputs, k.outputs) != (o.inputs, v.outputs) or heads % max(kv, 1):
                return None  # a gate in q, or values of another size: another kind of attention
            queries, keys = _rows(heads, size), _rows(kv, size)
            first = {"q": (q, queries), "k": (k, keys), "v": (v, keys)}
            return _headed(model, name, module, first, o, queries, heads // kv)
    for fused, after, layout in FUSED_ATTENTION:
        qkv, o = _matrix(name, module, fused), _matrix(name, module, after)
        if qkv and o:
            return _fused(model, name, module, qkv, o, layout)
    return None


def _fused(
    model: nn.Module, name: str, module: nn.Module, qkv: _Matrix, o: _Matrix, layout: str
) -> Structure | None:
    size = _head_size(model, module, o)
    heads = o.inputs // size
    kv = (qkv.outputs // size - heads) // 2
    if kv < 1 or (heads + 2 * kv) * size != qkv.outputs or heads % kv:
        return None
    if _multi_query(model):
        layout = "stacked"
    group = heads // kv
    if layout == "stacked":
        tables = {
            "q": _rows(heads, size), "k": _rows(kv, size, heads * size),
            "v": _rows(kv, size, (heads + kv) * size),
        }
    else:
        whole = _rows(kv * (group + 2), size).reshape(kv, group + 2, size)
        tables = {
            "q": whole[:, :group].reshape(heads, size), "k": whole[:, group],
            "v": whole[:, group + 1],
        }
    first = {role: (qkv, table) for role, table in tables.items()}
    return _headed(model, name, module, first, o, _rows(heads, size), group)


def _headed(
    model: nn.Module, name: str, module: nn.Module, first: Mapping[str, tuple[_Matrix, Tensor]],
    o: _Matrix, columns: Tensor, group: int,
) -> Structure | None:
    parts = {role: m.part(rows, inputs=False) for role, (m, rows) in first.items()}
    followers = [part for m, rows in first.values() for part in m.bias(rows)]
    parts["o"] = o.part(columns, inputs=True)
    followers += _between(name, module, columns)
    for role in ("q", "k"):  # norms over all heads; those of one head don't depend on their order
        norm = module._modules.get(f"{role}_norm")
        if norm is not None and len(parts[role].table) > 1:
            table = _rows(*parts[role].table.shape)
            followers += _vectors(f"{name}.{role}_norm" if name else f"{role}_norm", norm, table)
    known = {m.module for m, _ in first.values()} | {o.module}
    fixed = _order_matters(model, module, known)
    return Structure(o.name, "attention", parts, tuple(followers), group, fixed)


def _head_size(model: nn.Module, module: nn.Module, o: _Matrix) -> int:
    for inside in module.modules():
        for attribute in HEAD_SIZE:
            if isinstance(getattr(inside, attribute, None), int):
                return int(getattr(inside, attribute))
    config = getattr(model, "config", None)
    if getattr(config, "head_dim", None):
        return int(config.head_dim)  # type: ignore[union-attr]
    heads = getattr(config, "num_attention_heads", None)
    if not heads or o.inputs % heads:
        raise DataError(
            f"the size of a head of {o.name} ({o.inputs} inputs) is not known",
            expected="head_dim in the module or in the model's config",
            mend="name the structures: couplings=(Coupling({'q': ..., 'k': ..., 'v': ...}, O, "
            "unit=HEAD_DIM), ...)",
        )
    return int(o.inputs // heads)


def _multi_query(model: nn.Module) -> bool:
    """The older form of Falcon: one head of keys and values after all queries."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "multi_query", False)) and not getattr(
        config, "new_decoder_architecture", False
    )


def _order_matters(model: nn.Module, module: nn.Module, known: set[nn.Module]) -> str:
    """Why heads can't be exchanged: something else in the attention belongs to single heads."""
    config = getattr(model, "config", None)
    inner = getattr(config, "attn_config", None)
    if (
        getattr(config, "model_type", "") == "bloom" or getattr(config, "alibi", False)
        or getattr(inner, "alibi", False)
    ):
        return "ALiBi gives every head its own slope"
    if hasattr(module, "has_relative_attention_bias"):
        return "its heads have biases of their own by distance, which layers share"
    for name, inside in module.named_modules():
        last = name.rpartition(".")[2]
        norm = "norm" in type(inside).__name__.lower() or last in BETWEEN
        own = [n for n, _ in inside.named_parameters(recurse=False)]
        if own and inside not in known and not norm:
            return f"{'.'.join(filter(None, (name, own[0])))} may depend on the order of heads"
    return ""


# ---- structures named by hand --------------------------------------------------------------------


def _given(modules: Mapping[str, nn.Module], coupling: Coupling) -> Structure:
    wrong = set(coupling.first) - {r for r, k in ROLES.items() if k == coupling.kind and r != "o"}
    if wrong or not coupling.first:
        raise DataError(
            f"roles {', '.join(sorted(wrong)) or 'none'} of a coupling",
            expected="q, k, v, or u and gate",
        )
    second, size = _named(modules, coupling.second), coupling.unit
    units = _divided(second.name, second.inputs, size)
    first = {}
    for role, name in coupling.first.items():
        matrix = _named(modules, name)
        first[role] = (matrix, _rows(_divided(name, matrix.outputs, size), size))
        of = len(first[role][1])
        if of != units and (role not in ("k", "v") or units % of):
            raise DataError(
                f"{name} produces {of} units of {size}, {second.name} consumes {units}",
                expected="as many, or for keys and values a divisor of it",
            )
    parts = {role: m.part(rows, inputs=False) for role, (m, rows) in first.items()}
    followers = [part for m, rows in first.values() for part in m.bias(rows)]
    table = _rows(units, size)
    for name in coupling.middle:
        if name not in modules:
            raise _unknown(name, modules)
        followers += _vectors(name, modules[name], table)
    parts[SECOND[coupling.kind]] = second.part(table, inputs=True)
    kv = len(parts["v"].table) if "v" in parts else units
    return Structure(coupling.second, coupling.kind, parts, tuple(followers), units // kv)


def _named(modules: Mapping[str, nn.Module], name: str) -> _Matrix:
    if name not in modules:
        raise _unknown(name, modules)
    matrix = _as_matrix(name, modules[name])
    if matrix is None:
        raise DataError(
            f"{name} is a {type(modules[name]).__name__}", expected="a linear layer",
        )
    return matrix


def _unknown(name: str, modules: Mapping[str, nn.Module]) -> DataError:
    return DataError(
        f"the model has no module {name!r}", expected="names of modules",
        mend=f"such as {', '.join([n for n in modules if n][:8])}",
    )


def _divided(name: str, width: int, size: int) -> int:
    if size < 1 or width % size:
        raise DataError(
            f"{name} has {width} hidden entries, which units of {size} don't divide",
            expected="a whole number of units",
        )
    return width // size
