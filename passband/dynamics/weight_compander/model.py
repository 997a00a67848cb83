"""Weight compander (arXiv 2306.16993): large weights are held, weights near zero pushed away.

    stored v [any shape]  ->  used w = a arctan(v / b),   |w| < a pi / 2,   a, b > 0

    dw/dv = a b / (b^2 + v^2):  a / b at zero, falling as 1 / v^2 beyond b.  A step of gradient
    descent in v moves w by  -lr (dw/dv)^2 dL/dw:  (a/b)^2 times as far near zero, hardly at the
    bound.  v = b tan(w / a) starts from given weights, so that a pretrained model can be wrapped.

Two lines in a loop of one's own, and one when training is over:

>>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
>>> model = compand(model, learn=True)                       # same outputs, weights now v, a, b
>>> optimizer = torch.optim.SGD(parameter_groups(model, lr=0.1, weight_decay=5e-4), momentum=0.9)
>>> model(torch.randn(8, 64)).square().mean().backward()
>>> optimizer.step()
>>> before = model(torch.ones(1, 64))
>>> torch.equal(uncompand(model)(torch.ones(1, 64)), before)  # a plain model of the same numbers
True

The formula and where a and b stand in it are not confirmed by any public source but the paper,
which could not be read here; its abstract confirms the rest. Adaptive optimisers normalise the
factor dw/dv away: with Adam the bound is left, the push away from zero is not. Right before a
normalisation the scale of w is immaterial, and with it the bound. A slope a/b above 1 raises the
learning rate of w: compare with a control at lr (a/b)^2, or with the curve "linear".

Only `weight` of linear and convolutional layers is wrapped; biases and gains never are. With tied
weights the parametrization is shared. Under recurrence use `cached()`, else w is computed at each
access. `torch.save` of a whole wrapped module fails, as with every torch parametrization: save its
state dict, or `export_plain_state_dict`. Pruning masks belong on w, that is after `uncompand`.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import cached
from torch.optim import Optimizer

from passband.dynamics.layers import typical_size, weighted_layers
from passband.dynamics.weight_compander.curves import companded, curve_of
from passband.errors import ConfigError, DataError, PassbandWarning

__all__ = [
    "Compander", "cached", "check_optimizer", "compand", "companders", "decay_penalty",
    "export_plain_state_dict", "parameter_groups", "uncompand",
]

Scope = Literal["layer", "channel", "global"]
REACH = 3.0  # what a = 1 is in standard deviations of the weight


class Compander(nn.Module):
    """The parametrization of one tensor: forward(v) = w, right_inverse(w) = v.

    a, b   numbers above 0, or tensors that broadcast against v, for pairs of their own
    curve  see `curves`: arctan, or tanh, softsign, mulaw, linear
    learn  a and b are parameters, kept as `log_a` and `log_b`; else buffers of these names
    clip   share of the bound beyond which `right_inverse` cuts weights off, with a warning

    >>> psi = Compander(a=0.5, b=0.25)
    >>> psi(torch.tensor([-2.0, -0.1, 0.0, 0.3, 5.0]))
    tensor([-0.7232, -0.1903,  0.0000,  0.4380,  0.7604])
    >>> psi.right_inverse(psi(torch.tensor([-2.0, 0.3])))
    tensor([-2.0000,  0.3000])
    """

    log_a: Tensor
    log_b: Tensor

    def __init__(
        self, a: float | Tensor = 1.0, b: float | Tensor = 1.0, curve: str = "arctan", *,
        learn: bool = False, clip: float = 0.95,
    ) -> None:
        super().__init__()
        if not 0 < clip < 1:
            raise ConfigError(f"clip = {clip}", expected="a share of the bound, above 0, below 1")
        self.curve, self.limit, self.clip = curve, curve_of(curve).limit, clip
        self.raw = False  # while a raw start is being set, `right_inverse` changes nothing
        for name, value in (("a", a), ("b", b)):
            log = _positive(name, value).log().float()
            if learn:
                self.register_parameter(f"log_{name}", nn.Parameter(log))
            else:
                self.register_buffer(f"log_{name}", log)

    @property
    def a(self) -> Tensor:
        return self.log_a.float().exp()

    @property
    def b(self) -> Tensor:
        return self.log_b.float().exp()

    @property
    def bound(self) -> Tensor:
        """What |w| stays below; infinite for curves without one."""
        return self.a * self.limit

    def forward(self, v: Tensor) -> Tensor:
        """[...] -> [...] of the same type; half precision is computed in float32."""
        wide = v if v.dtype in (torch.float32, torch.float64) else v.float()
        w = companded(wide, self.a.to(wide.dtype), self.b.to(wide.dtype), self.curve)
        return w.to(v.dtype)

    @torch.no_grad()
    def right_inverse(self, w: Tensor) -> Tensor:
        """v with forward(v) = w; what lies beyond `clip` of the bound is cut off, with a warning.

        Raises DataError for NaN.
        """
        if self.raw:
            return w
        y = w.double() / self.a.double()
        most = self.clip * self.limit
        if not w.is_meta:
            if bool(y.isnan().any()):
                raise DataError(
                    f"{int(y.isnan().sum())} weights are NaN", expected="finite weights"
                )
            # Rounding to the weight's type may lift a weight at the edge above it.
            beyond = int((y.abs() > most * (1 + 1e-5)).sum())
            if beyond:
                warnings.warn(
                    f"{beyond} of {w.numel()} weights were beyond {self.clip:g} of the bound "
                    f"{float(self.bound.max()):.4g} and are cut off there; a larger bound keeps "
                    "them", PassbandWarning, stacklevel=2,
                )
        if math.isfinite(most):
            y = y.clamp(-most, most)
        return (curve_of(self.curve).inverse(y) * self.b.double()).to(w.dtype)

    def extra_repr(self) -> str:
        size = "" if self.log_a.numel() > 1 or self.log_a.is_meta else (
            f", a={float(self.a):.4g}, b={float(self.b):.4g}"
        )
        return f"{self.curve}{size}, learn={isinstance(self.log_a, nn.Parameter)}"


# ---- wrap and unwrap -------------------------------------------------------------------------


def compand(
    module: nn.Module, a: float | None = None, b: float | None = None, *, bound: float = 1.0,
    slope: float = 1.5, curve: str = "arctan", learn: bool = False, scope: Scope = "layer",
    init: Literal["match", "raw"] = "match", clip: float = 0.95, include: Sequence[str] = (),
    exclude: Sequence[str] = (), first: bool = True, last: bool = True, embeddings: bool = False,
) -> nn.Module:
    """Wrap the weights of a module, in place; returns it.

    a, b         of every layer; None: a = 3 bound std(w) of the layer, b = a / slope
    bound        a in units of three standard deviations of the layer's weight as it is
    slope        a / b: how much steeper than 1 the curve is at zero
    learn        a and b are trained, from there on
    scope        one pair a "layer", "channel" (of the output), or one for all, "global"
    init         "match": v is such that outputs stay as they are; "raw": v takes the weights, so
                 that those near zero become slope times as large
    clip         with "match": share of the bound that weights may start at; others are cut off
    include ...  which layers: see `passband.dynamics.layers.weighted_layers`

    A weight with another parametrization keeps it: the curve is applied after it. Make the
    optimiser afterwards (`parameter_groups`, `check_optimizer`).

    Raises ConfigError for values out of range and layers that are wrapped already, DataError for
    layers that can't be (see `weighted_layers`).
    """
    for name, value in (("a", a), ("b", b), ("bound", bound), ("slope", slope)):
        if value is not None:
            _positive(name, value)
    if scope not in ("layer", "channel", "global") or init not in ("match", "raw"):
        raise ConfigError(
            f"scope = {scope!r}, init = {init!r}",
            expected="scope 'layer', 'channel' or 'global'; init 'match' or 'raw'",
        )
    layers = weighted_layers(
        module, include, exclude, first=first, last=last, embeddings=embeddings
    )
    done = set(layers) & set(companders(module))
    if done:
        raise ConfigError(
            f"{', '.join(sorted(done)[:4])}: companded already", expected="plain weights",
            mend="uncompand(module) first",
        )
    weights = {name: cast(Tensor, layer.weight).detach() for name, layer in layers.items()}
    common = None
    if scope == "global":
        sizes = [(typical_size(w) ** 2, w.numel()) for w in weights.values()]
        pooled = math.sqrt(sum(s * n for s, n in sizes) / sum(n for _, n in sizes))
        common = Compander(*_pair(pooled, a, b, bound, slope), curve, learn=learn, clip=clip)
    shared: dict[int, Any] = {}
    for name, layer in layers.items():
        tied = shared.get(id(layer.weight))
        if tied is not None:
            _share(layer, tied)
            continue
        key, w = id(layer.weight), weights[name]
        psi = common
        if psi is None:
            pair = _pair(typical_size(w), a, b, bound, slope)
            shape = _channels(layer, w) if scope == "channel" else ()
            start = [torch.full(shape, x) for x in pair]
            psi = Compander(start[0], start[1], curve, learn=learn, clip=clip)
        psi.to(w.device)
        _wrap(name, layer, psi, w, init)
        shared[key] = layer
    return module


def uncompand(module: nn.Module) -> nn.Module:
    """Put plain weights in place of the wrapped ones, in place; outputs are bit-equal.

    Every parametrization of these weights goes, an older one under the curve included.

    >>> model = uncompand(compand(nn.Linear(3, 2)))
    >>> list(model.state_dict())
    ['weight', 'bias']
    """
    baked: dict[int, Any] = {}
    for layer in _companded(module).values():
        _own_class(layer)
        chain = layer.parametrizations["weight"]
        first = baked.setdefault(id(chain), layer)
        if first is layer:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        else:  # tied: the other has the weight already
            layer.parametrizations["weight"] = parametrize.ParametrizationList(
                [_Same()], first.weight, unsafe=True
            )
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        _weight_first(layer)
    return module


def companders(module: nn.Module) -> dict[str, Compander]:
    """The companders in a module, by the name of their layer.

    >>> list(companders(compand(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))))
    ['0']
    """
    return {
        name: next(p for p in layer.parametrizations["weight"] if isinstance(p, Compander))
        for name, layer in _companded(module).items()
    }


@torch.no_grad()
def export_plain_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict that the unwrapped module would have; the module stays as it is.

    >>> plain = nn.Linear(3, 2)
    >>> plain.load_state_dict(export_plain_state_dict(compand(nn.Linear(3, 2))))
    <All keys matched successfully>
    """
    found, layers = _companded(module), {}
    for name, layer in found.items():
        layers[f"{name}." if name else ""] = layer.weight.detach().clone()
    state: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        owner, mark, _ = key.rpartition("parametrizations.weight.")
        if not mark or owner not in layers:
            state[key] = value
    return {**{f"{owner}weight": w for owner, w in layers.items()}, **state}


# ---- training --------------------------------------------------------------------------------


def parameter_groups(
    module: nn.Module, lr: float, weight_decay: float = 0.0, *, scale_lr: float = 0.1,
    decay_on: Literal["v", "w"] = "v", steady: bool = False,
) -> list[dict[str, Any]]:
    """Groups for an optimiser: stored weights v, all else, and learned a and b, without decay.

    scale_lr  rate of a and b, in units of lr
    decay_on  "w": v does not decay; add `decay_penalty` to the loss
    steady    divide the rate of each v by (a/b)^2, so that weights near zero move at rate lr

    >>> [(len(g["params"]), g["lr"], g["weight_decay"])
    ...  for g in parameter_groups(compand(nn.Linear(3, 2), learn=True), 1.0, 1e-3)]
    [(1, 1.0, 0.001), (1, 1.0, 0.001), (2, 0.1, 0.0)]
    """
    scales = {id(p) for psi in companders(module).values() for p in psi.parameters()}
    by_rate: dict[float, list[nn.Parameter]] = defaultdict(list)
    for layer in _companded(module).values():
        psi = companders(layer)[""]
        rate = lr / float((psi.a / psi.b).detach().mean()) ** 2 if steady else lr
        by_rate[rate] += [
            p for n, p in layer.parametrizations["weight"].named_parameters()
            if id(p) not in scales
        ]
    seen: set[int] = set()
    groups: list[dict[str, Any]] = []
    for rate, given in by_rate.items():
        kept = {id(p): p for p in given if id(p) not in seen}  # tied ones once
        seen |= kept.keys()
        decay = weight_decay if decay_on == "v" else 0.0
        groups.append({"params": list(kept.values()), "lr": rate, "weight_decay": decay})
    rest = [p for p in module.parameters() if id(p) not in seen | scales]
    groups.append({"params": rest, "lr": lr, "weight_decay": weight_decay})
    learned = [p for p in module.parameters() if id(p) in scales]
    groups.append({"params": learned, "lr": lr * scale_lr, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def decay_penalty(module: nn.Module, weight_decay: float) -> Tensor:
    """weight_decay / 2 times the squared weights w as used: decay on w in place of v.

    >>> layer = compand(nn.Linear(3, 2))
    >>> torch.allclose(decay_penalty(layer, 0.5), 0.25 * layer.weight.square().sum())
    True
    """
    chains = {id(x.parametrizations["weight"]): x for x in _companded(module).values()}
    squares = [layer.weight.float().square().sum() for layer in chains.values()]
    if not squares:
        raise ConfigError("no companded weights", expected="a module after compand()")
    return weight_decay / 2 * torch.stack(squares).sum()


def check_optimizer(module: nn.Module, optimizer: Optimizer) -> None:
    """Raise ConfigError where an optimiser was made before wrapping, or decays a and b.

    `compand` keeps the tensors of plain weights, so one without learned scales still moves them;
    its momentum is that of w though.

    >>> model = nn.Sequential(nn.Linear(3, 2))
    >>> stale = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> check_optimizer(compand(model, learn=True), stale)
    Traceback (most recent call last):
    ...
    passband.errors.ConfigError: the optimiser lacks 2 parameters, such as a and b of '0'
      expected: an optimiser of the wrapped module's parameters
      to mend:  make it after compand(): SGD(parameter_groups(module, lr), momentum=0.9)
    """
    mend = "make it after compand(): SGD(parameter_groups(module, lr), momentum=0.9)"
    held = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    own = dict(module.named_parameters())
    missing = [n for n, p in own.items() if p.requires_grad and id(p) not in held]
    if missing:
        raise ConfigError(
            f"the optimiser lacks {len(missing)} parameters, such as {_spoken(missing[0])}",
            expected="an optimiser of the wrapped module's parameters", mend=mend,
        )
    foreign = set(held) - {id(p) for p in own.values()}
    if foreign:
        raise ConfigError(
            f"the optimiser has {len(foreign)} tensors that are not the module's",
            expected="an optimiser of the wrapped module's parameters", mend=mend,
        )
    decayed = [
        n for n, p in own.items() if n.endswith((".log_a", ".log_b")) and id(p) in held
        and held[id(p)].get("weight_decay")
    ]
    if decayed:
        raise ConfigError(
            f"weight decay on {_spoken(decayed[0])}",
            expected="no decay on scales: it pulls them to 1", mend=mend,
        )


# ---- within ----------------------------------------------------------------------------------


def _spoken(name: str) -> str:
    layer, mark, last = name.partition("parametrizations.weight.")
    scale = mark and last.endswith((".log_a", ".log_b"))
    return f"a and b of {layer.rstrip('.')!r}" if scale else name


def _positive(name: str, value: float | Tensor) -> Tensor:
    found = torch.as_tensor(value, dtype=torch.float64)
    if found.is_meta:
        return found
    if not bool((found > 0).all()) or not bool(found.isfinite().all()):
        raise ConfigError(f"{name} = {value}", expected="finite and above 0")
    return found


def _pair(
    size: float, a: float | None, b: float | None, bound: float, slope: float
) -> tuple[float, float]:
    a = REACH * bound * size if a is None else a
    return a, a / slope if b is None else b


def _channels(layer: nn.Module, weight: Tensor) -> tuple[int, ...]:
    """Shape of one number an output channel."""
    axis = 1 if isinstance(layer, _ConvTransposeNd) else 0
    return tuple(n if i == axis else 1 for i, n in enumerate(weight.shape))


def _wrap(name: str, layer: nn.Module, psi: Compander, w: Tensor, init: str) -> None:
    older = parametrize.is_parametrized(layer, "weight")
    psi.raw = init == "raw"
    try:
        parametrize.register_parametrization(layer, "weight", psi)
        if older and init == "match":  # torch asks no inverse of a parametrization that is added
            layer.weight = w.clone()
    except (NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"{name!r} has a parametrization without an inverse: {error}",
            expected="one that can be set to given weights", mend="init='raw'",
        ) from None
    finally:
        psi.raw = False


def _share(layer: Any, other: Any) -> None:
    """Give a layer whose weight is the other's the other's parametrization."""
    layer.weight = nn.Parameter(other.weight.detach().clone())
    parametrize.register_parametrization(layer, "weight", _Same(), unsafe=True)
    layer.parametrizations["weight"] = other.parametrizations["weight"]


def _own_class(layer: nn.Module) -> None:
    """A class of its own for a parametrized layer.

    torch keeps the property `weight` in a class that is made at registration, copies of the layer
    share that class, and removal takes the property from it: from all the copies too.
    """
    shared = type(layer)
    names = {n: v for n, v in vars(shared).items() if n not in ("__dict__", "__weakref__")}
    layer.__class__ = type(shared.__name__, shared.__bases__, names)


def _weight_first(layer: nn.Module) -> None:
    """The order of parameters before wrapping, by which optimisers number their state."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        if name != "weight":
            delattr(layer, name)
            layer.register_parameter(name, parameter)


class _Same(nn.Module):
    """Changes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def _companded(module: nn.Module) -> dict[str, Any]:
    return dict(_search(module))


def _search(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part, "weight"):
            chain: Any = part.parametrizations["weight"]
            if any(isinstance(p, Compander) for p in chain):
                yield name, part
