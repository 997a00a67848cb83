"""peft's adapters as methods of this family, so that they train, save and are measured alike.

    lora    W + (alpha/r) B A, B = 0                      Hu et al., arXiv 2106.09685
    pissa   the same from the leading singular triples    Meng et al., arXiv 2404.02948
    dora    magnitude times the direction of W + B A      Liu et al., arXiv 2402.09353
    shira   random sparse entries                         Bhardwaj et al., arXiv 2406.13175
    vera    shared random B, A; trained scale vectors     Kopiczko et al., arXiv 2310.11454
    ia3     trained scale of each output                  Liu et al., arXiv 2205.05638

The adapters themselves are the library's own; this file puts them on a model and takes them off.

>>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
>>> handle = PeftAdapter("lora", rank=2).attach(model)
>>> B, A = handle.edit().lora()["0.weight"]
>>> B.shape, A.shape
(torch.Size([6, 2]), torch.Size([2, 8]))
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passband.errors import ConfigError, MissingExtraError
from passband.parts.edits import Change, Dense, LowRank
from passband.parts.targets import find_targets
from passband.tuning.handle import Calibration, Handle

Kind = Literal["lora", "pissa", "dora", "shira", "vera", "ia3"]
ADAPTER = "default"


@dataclass(frozen=True)
class PeftAdapter:
    """
    kind     which of peft's adapters
    rank     of the factors; of shira, whose budget is counted as that of LoRA
    alpha    scale of the update times rank; None: equal to rank
    dropout  on the input of the factors
    targets  endings of module names
    """

    kind: Kind = "lora"
    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    rank_stabilised: bool = False
    targets: tuple[str, ...] = ("all-linear",)

    def config(self, model: nn.Module, seed: int = 0, head: Sequence[str] = ()) -> Any:
        """The configuration object of peft for this model."""
        try:
            import peft
        except ImportError:
            raise MissingExtraError("peft", "tuning") from None
        names = list(find_targets(model, self.targets, head=tuple(head)))
        return _CONFIGS[self.kind](peft, self, names, seed)

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> PeftHandle:
        return PeftHandle(
            model, self.config(model, seed, head), method=self, head=head, steps=steps, seed=seed,
            name=name,
        )


def _lora(peft: Any, m: PeftAdapter, names: list[str], _: int, **more: Any) -> Any:
    alpha = m.rank if m.alpha is None else m.alpha
    return peft.LoraConfig(
        r=m.rank, lora_alpha=alpha, lora_dropout=m.dropout, use_rslora=m.rank_stabilised,
        target_modules=names, **more,
    )


_CONFIGS: dict[str, Callable[[Any, PeftAdapter, list[str], int], Any]] = {
    "lora": _lora,
    "pissa": lambda *a: _lora(*a, init_lora_weights="pissa"),
    "dora": lambda *a: _lora(*a, use_dora=True),
    "shira": lambda peft, m, names, seed: peft.ShiraConfig(
        r=m.rank, random_seed=seed, target_modules=names
    ),
    "vera": lambda peft, m, names, seed: peft.VeraConfig(
        r=m.rank, projection_prng_key=seed, target_modules=names, save_projection=True
    ),
    "ia3": lambda peft, m, names, _: peft.IA3Config(target_modules=names, feedforward_modules=[]),
}


def inject(model: nn.Module, config: Any) -> Any:
    """Put peft's layers into a model; returns peft's object that can take them out again."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    try:
        return PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, config, ADAPTER)
    except ValueError as error:
        raise ConfigError(
            f"peft refuses this model: {error}", expected="a model with Linear layers",
            mend="choose other targets or another rank",
        ) from None


class PeftHandle(Handle):
    """An adapter of peft on a model; it comes off without a trace."""

    def __init__(self, model: nn.Module, config: Any, **options: Any) -> None:
        super().__init__(model, **options)
        before = {n: p.detach().clone() for n, p in model.named_parameters() if n not in self.head}
        self.tuner = inject(model, config)
        for parameter in self.head.values():
            parameter.requires_grad_(True)
        # Some start from factors taken out of W: those weights are kept to be put back.
        self._moved = {
            name: before[f"{name}.weight"] for name, layer in self._layers()
            if not torch.equal(before[f"{name}.weight"], _weight(layer))
        }
        heads = {id(p) for p in self.head.values()}
        self._trained = {
            n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in heads
        }
        self._first = {
            name: _factors(layer) for name, layer in self._layers() if name in self._moved
        }

    def _layers(self) -> Iterator[tuple[str, Any]]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, module in self.model.named_modules():
            if isinstance(module, BaseTunerLayer):
                yield name, module

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self._trained)

    @torch.no_grad()
    def changes(self) -> dict[str, Change]:
        found: dict[str, Change] = {}
        with self._on():
            for name, layer in self._layers():
                factors = _factors(layer)
                if factors:
                    found[f"{name}.weight"] = self._low_rank(name, layer, *factors)
                else:
                    found.update({f"{name}.{n}": d for n, d in _merged(layer).items()})
        return found

    def _low_rank(self, name: str, layer: Any, b: Tensor, a: Tensor) -> LowRank:
        b0, a0 = self._first.get(name) or (None, None)
        weight = _weight(layer)
        return LowRank(
            b, a, b0, a0, scale=float(layer.scaling[ADAPTER]), shape=tuple(weight.shape),
            transposed=bool(getattr(layer, "fan_in_fan_out", False)),
        )

    def _on(self) -> Any:
        from contextlib import nullcontext

        return nullcontext() if self.enabled else _Enabled(self)

    @torch.no_grad()
    def _switch(self, on: bool) -> None:
        self.tuner.enable_adapter_layers() if on else self.tuner.disable_adapter_layers()
        for name, layer in self._layers():
            if name in self._moved:
                weight = _weight(layer)
                other = weight.detach().clone()
                weight.copy_(self._moved[name])
                self._moved[name] = other
        for parameter in self._trained.values():  # peft freezes what it disables
            parameter.requires_grad_(True)

    def _release(self) -> None:
        self.tuner.unload()


class _Enabled:
    """The adapter switched on inside."""

    def __init__(self, handle: PeftHandle) -> None:
        self.handle = handle

    def __enter__(self) -> None:
        self.handle._turn(True)

    def __exit__(self, *_: object) -> None:
        self.handle._turn(False)


def _merged(layer: Any) -> dict[str, Dense]:
    """What merging does to the weight, and to the bias where a kind of adapter scales outputs."""
    own = dict(layer.get_base_layer().named_parameters())
    before = {name: p.detach().clone() for name, p in own.items()}
    layer.merge(adapter_names=[ADAPTER])
    found = {n: Dense(p.detach().float() - before[n].float()) for n, p in own.items()}
    with warnings.catch_warnings():  # inexact where it divides: the bits are put back below
        warnings.simplefilter("ignore", UserWarning)
        layer.unmerge()
    for name, parameter in own.items():
        parameter.copy_(before[name])
    return {n: change for n, change in found.items() if n == "weight" or change.values.any()}


def _weight(layer: Any) -> Tensor:
    weight: Tensor = layer.get_base_layer().weight
    return weight


def _factors(layer: Any) -> tuple[Tensor, Tensor] | None:
    """B [m, r] and A [r, n] of a plain LoRA layer; None for other kinds of adapters."""
    if not getattr(layer, "lora_A", None) or getattr(layer, "lora_magnitude_vector", None):
        return None
    b, a = layer.lora_B[ADAPTER].weight, layer.lora_A[ADAPTER].weight
    return b.detach().float().clone(), a.detach().float().clone()
