"""What goes into each layer of a model while calibration batches run through it.

Layers that see the same tensor (query, key and value; gate and up) share one matrix. Blocks are
done one after the other, with the hidden states of one as the inputs of the next, so that the
matrices of one block are alive at a time. That needs blocks that only hand their output on: a first
batch through the whole model tells, and models of another make are run whole.

>>> from passband.parts.targets import find_targets
>>> model, batches = byte_lm(32, 64, 2, 4), [{"input_ids": torch.randint(256, (8, 32))}]
>>> for name, covariance in stream(model, find_targets(model, "down_proj"), batches):
...     name, covariance.matrix().shape
('model.layers.0.mlp.down_proj', torch.Size([64, 64]))
('model.layers.1.mlp.down_proj', torch.Size([64, 64]))

Batches are the keyword arguments of one call of the model, with any batch size and padding; an
`attention_mask` keeps padding out of the sums.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passband.data.cache import digest, stored_tensors
from passband.errors import DataError, PassbandWarning
from passband.parts.edits import fingerprint
from passband.parts.spectral import content_key
from passband.parts.targets import blocks, sharing
from passband.tuning.corda.covariance import Covariance

Batch = Mapping[str, Any]
MOST = 2048  # entries of the largest tensor of a joined batch, such as tokens


def stream(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Batch], *,
    scaled: bool = True,
) -> Iterator[tuple[str, Covariance]]:
    """(name, covariance) of each layer, block by block; each is dropped when the next is asked for.

    A layer that no batch reaches comes with nothing in its covariance. Raises `DataError` for
    batches that are no keyword arguments, and for NaN and infinity in activations.
    """
    batches = joined([_placed(model, batch) for batch in batches])
    if not batches:
        raise DataError(
            "no calibration batches", expected="at least one",
            mend="attach(model, calibration={'knowledge': [...], 'task': [...]})",
        )
    stack = blocks(model)
    inside = [_within(block, layers) for block in stack]
    blockwise = any(inside) and not _tied(model, layers) and _is_chain(model, stack, batches[0])
    found = {name for part in inside for name in part} if blockwise else set()
    rest = {name: layer for name, layer in layers.items() if name not in found}
    if rest:
        yield from _handed_over(_whole(model, rest, batches, scaled))
    if blockwise:
        calls = _inputs(model, stack[0], batches)
        for block, part in zip(stack, inside, strict=True):
            yield from _handed_over(_advanced(model, block, part, calls, batches, scaled))


def collect(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Batch], *,
    scaled: bool = True, cache: bool = False,
) -> dict[str, Covariance]:
    """Covariances of all layers at once, for several ranks, modes or analyses.

    cache  keep them in the user's cache folder, by the content of model and batches; layers that
           share a matrix share it there too, and upper triangles are kept only
    """
    if not cache:
        return dict(stream(model, layers, batches, scaled=scaled))
    key = {
        "version": 1, "model": fingerprint(model).sha256, "scaled": scaled,
        "layers": digest(layers), "batches": digest(_contents(batches)),
    }
    tensors = stored_tensors(
        "corda", key, lambda: _packed(dict(stream(model, layers, batches, scaled=scaled)))
    )
    return _unpacked(tensors, scaled)


def _contents(batches: Sequence[Batch]) -> Iterator[bytes]:
    for batch in batches:
        for name, value in sorted(batch.items()):
            content = content_key(value) if isinstance(value, Tensor) else repr(value).encode()
            yield name.encode() + content


def _packed(found: Mapping[str, Covariance]) -> dict[str, Tensor]:
    """Tensors by "number|part"; "names" says which layer has which number."""
    different = list({id(c): c for c in found.values()}.values())
    numbers = {id(c): i for i, c in enumerate(different)}
    names = "\n".join(f"{numbers[id(c)]} {name}" for name, c in found.items())
    tensors = {"names": torch.frombuffer(bytearray(names.encode()), dtype=torch.uint8)}
    for i, covariance in enumerate(different):
        tensors |= {f"{i}|{part}": t for part, t in covariance.packed().items()}
    return tensors


def _unpacked(tensors: Mapping[str, Tensor], scaled: bool) -> dict[str, Covariance]:
    made: dict[str, Covariance] = {}
    found = {}
    for line in bytes(tensors["names"].tolist()).decode().split("\n"):
        number, name = line.split(" ", 1)
        if number not in made:
            mine = {k.split("|")[1]: t for k, t in tensors.items() if k.startswith(f"{number}|")}
            made[number] = Covariance.unpacked(name, scaled, mine)
        found[name] = made[number]
    return found


# ---- batches -------------------------------------------------------------------------------------


def first_samples(batches: Iterable[Batch], samples: int | None) -> list[Batch]:
    """Batches cut to so many samples; None: all of them.

    >>> [len(b["x"]) for b in first_samples([{"x": torch.zeros(4)}, {"x": torch.zeros(4)}], 6)]
    [4, 2]
    """
    kept: list[Batch] = []
    left = samples
    for batch in batches:
        if left is not None and left <= 0:
            break
        size = _size(batch)
        if left is not None and size > left:
            batch = {
                name: v[:left] if isinstance(v, Tensor) and v.ndim and len(v) == size else v
                for name, v in batch.items()
            }
        kept.append(batch)
        left = None if left is None else left - size
    return kept


def joined(batches: Sequence[Batch]) -> list[Batch]:
    """Neighbours of one shape as one batch: samples don't see each other, small calls cost more.

    >>> one = {"x": torch.zeros(1, 4), "flag": True}
    >>> [len(b["x"]) for b in joined([one, one, {"x": torch.zeros(1, 5), "flag": True}])]
    [2, 1]
    """
    groups: list[list[Batch]] = []
    for batch in batches:
        if groups and _joins(groups[-1], batch):
            groups[-1].append(batch)
        else:
            groups.append([batch])
    return [_cat(group) if len(group) > 1 else group[0] for group in groups]


def _joins(group: Sequence[Batch], batch: Batch) -> bool:
    first = group[0]
    if first.keys() != batch.keys():
        return False
    elements = max((v.numel() for v in batch.values() if isinstance(v, Tensor)), default=MOST)
    alike = all(
        _per_sample(a, first) and _per_sample(b, batch) and a.shape[1:] == b.shape[1:]
        if isinstance(a, Tensor) and isinstance(b, Tensor) else _same(a, b)
        for a, b in ((first[name], batch[name]) for name in first)
    )
    return alike and elements * (len(group) + 1) <= MOST


def _cat(group: Sequence[Batch]) -> Batch:
    return {
        name: torch.cat([b[name] for b in group]) if isinstance(value, Tensor) else value
        for name, value in group[0].items()
    }


def _size(batch: Batch) -> int:
    if not isinstance(batch, Mapping):
        raise DataError(
            f"a calibration batch of type {type(batch).__name__}",
            expected="keyword arguments of one call of the model",
            mend="{'input_ids': ids, 'attention_mask': mask}",
        )
    return next((len(v) for v in batch.values() if isinstance(v, Tensor) and v.ndim), 1)


def _placed(model: nn.Module, batch: Batch) -> dict[str, Any]:
    _size(batch)
    device = next(model.parameters()).device
    return {n: v.to(device) if isinstance(v, Tensor) else v for n, v in batch.items()}


# ---- running -------------------------------------------------------------------------------------


@torch.no_grad()
def _whole(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Batch], scaled: bool
) -> dict[str, Covariance]:
    with _calibrating(model), _Watch(model, layers, scaled) as watch:
        for batch in batches:
            watch.begin(batch)
            model(**batch)
    return watch.found


@torch.no_grad()
def _advanced(
    model: nn.Module, block: nn.Module, layers: Mapping[str, nn.Module], calls: list[_Call],
    batches: Sequence[Batch], scaled: bool,
) -> dict[str, Covariance]:
    """One block on all batches; the calls then hold what goes into the next one."""
    with _calibrating(model), _Watch(model, layers, scaled) as watch:
        for call, batch in zip(calls, batches, strict=True):
            watch.begin(batch)
            call.hidden = call.through(block)
    return watch.found


def _handed_over(found: dict[str, Covariance]) -> Iterator[tuple[str, Covariance]]:
    for name in list(found):
        yield name, found.pop(name)


class _Watch:
    """Fills covariances from the inputs of layers while it is entered.

    A layer whose first input is the very tensor that the layer before it saw follows that one.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], scaled: bool
    ) -> None:
        self.found = {name: Covariance(name, scaled) for name in layers}
        self._modules = {name: list(_holders(model, layer)) for name, layer in layers.items()}
        self._leader: dict[str, str] = {}
        self._last: tuple[str, Tensor | None] = ("", None)

    def begin(self, batch: Batch) -> None:
        mask = batch.get("attention_mask")
        fits = isinstance(mask, Tensor) and mask.ndim == 2
        self._mask = mask.bool() if fits else None
        self._samples = _size(batch)

    def __enter__(self) -> _Watch:
        self._hooks = [
            module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, modules in self._modules.items() for module in modules
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._last = ("", None)
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._see(name, args[0] if args else kwargs["input"])

        return see

    def _see(self, name: str, x: Tensor) -> None:
        holder, last = self._last
        if name not in self._leader:
            follows = x is last and len(self._modules[name]) == 1
            self._leader[name] = holder if follows else name
            self.found[name] = self.found[self._leader[name]]
        leader = self._leader[name]
        if leader == name:
            self._last = (name, x)
            self.found[name].add(*self._as_samples(name, x))
        elif x is not last or holder != leader:
            raise DataError(
                f"{name} had the inputs of {leader} in one calibration batch and others later",
                expected="layers that see the same in every batch",
                mend="calibrate these two layers in two calls, one of them in `targets` each time",
            )

    def _as_samples(self, name: str, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, T, n] and its mask [B, T], from what a layer is given."""
        mask = self._mask
        if x.ndim > 3:
            x = x.flatten(1, -2)
        elif x.ndim == 2 and mask is not None and len(x) == mask.numel():
            x = x.view(*mask.shape, -1)
        elif x.ndim == 2 and len(x) == self._samples:
            x = x[:, None]  # one vector of each sample, as poolers get
        elif x.ndim == 2:
            if mask is not None and not bool(mask.all()):
                warnings.warn(
                    f"{name} gets tokens one by one: padding can't be told from them, and counts. "
                    "Calibrate with one sample a batch, unpadded", PassbandWarning, stacklevel=2,
                )
            x = x[None]  # tokens picked out of the batch, as experts get
        elif x.ndim == 1:
            x = x[None, None]
        return x, mask if mask is not None and mask.shape == x.shape[:2] else None


def _within(block: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    inside = {id(module) for module in block.modules()}
    return {name: layer for name, layer in layers.items() if id(layer) in inside}


def _holders(model: nn.Module, layer: nn.Module) -> Iterator[nn.Module]:
    """The layer, and linear layers elsewhere that share its weight."""
    for module in sharing(model, layer).values():
        if type(module) is type(layer):
            yield module


def _tied(model: nn.Module, layers: Mapping[str, nn.Module]) -> bool:
    return any(len(list(_holders(model, layer))) > 1 for layer in layers.values())


# ---- block by block ------------------------------------------------------------------------------


@dataclass
class _Call:
    """One call of a block: the hidden states, by position or keyword, and all that comes along."""

    hidden: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: bool

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Call:
        rest = dict(kwargs)
        if args:
            return cls(args[0], args[1:], rest, False)
        return cls(rest.pop("hidden_states", None), (), rest, True)

    def through(self, block: nn.Module) -> Any:
        if self.keyword:
            return _hidden(block(hidden_states=self.hidden, **self.kwargs))
        return _hidden(block(self.hidden, *self.args, **self.kwargs))

    def comes_along_like(self, other: _Call) -> bool:
        return _same((self.args, self.kwargs), (other.args, other.kwargs))


def _hidden(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def _is_chain(model: nn.Module, stack: Sequence[nn.Module], batch: Batch) -> bool:
    """Whether each block is called once, in order, with what the one before gave and the same
    company: then they can be run one at a time."""
    calls: list[tuple[int, _Call]] = []
    outputs: list[Any] = []
    hooks = []
    for number, block in enumerate(stack):

        def before(_: nn.Module, args: Any, kwargs: Any, number: int = number) -> None:
            calls.append((number, _Call.of(args, kwargs)))

        hooks.append(block.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(block.register_forward_hook(lambda _, __, out: outputs.append(_hidden(out))))
    try:
        with _calibrating(model):
            model(**{name: v[:1] if _per_sample(v, batch) else v for name, v in batch.items()})
    finally:
        for hook in hooks:
            hook.remove()
    if [number for number, _ in calls] != list(range(len(stack))):
        return False
    first = calls[0][1]
    handed_on = all(
        isinstance(out, Tensor) and _same(call.hidden, out)
        for out, (_, call) in zip(outputs, calls[1:], strict=False)
    )
    return handed_on and all(call.comes_along_like(first) for _, call in calls)


def _per_sample(value: Any, batch: Batch) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == _size(batch)


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return isinstance(a, bool | int | float | str) and type(a) is type(b) and a == b


class _Stop(Exception):
    """The first block was reached: nothing behind it needs to run."""


@torch.no_grad()
def _inputs(model: nn.Module, first: nn.Module, batches: Sequence[Batch]) -> list[_Call]:
    """What reaches the first block."""
    calls: list[_Call] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(_Call.of(args, kwargs))
        raise _Stop

    hook = first.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with _calibrating(model):
            for batch in batches:
                try:
                    model(**batch)
                except _Stop:
                    continue
    finally:
        hook.remove()
    return calls


@contextmanager
def _calibrating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no keys and values kept, inside."""
    modes = [(part, part.training) for part in model.modules()]
    config = getattr(model, "config", None)
    caches = getattr(config, "use_cache", None)
    model.eval()
    if caches is not None:
        config.use_cache = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        if caches is not None:
            config.use_cache = caches  # type: ignore[union-attr]
        for part, mode in modes:
            part.training = mode
