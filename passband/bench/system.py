"""The contract of a system: configuration, fit, verbs, save and load.

    class Mine(System):
        Config = MineConfig
        presets = {"paper": {}, "small": {"width": 32}, "smoke": {"width": 8}}
        verbs = ("forecast",)
        def fit(self, data, budget=Budget(), monitor=None): ...
        def forecast(self, series, horizon): ...
        def state(self): ...                 # arrays by name
        def load_state(self, state, extra): ...

A baseline is the same with `kind = "baseline"` in its card.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from passband.bench.budget import Budget
from passband.errors import CheckpointError, ConfigError, UnknownNameError

FORMAT = 1  # of a saved folder; raised when an older reader could misread it

Array: TypeAlias = Any  # numpy.ndarray or torch.Tensor; torch is not imported here


class Config(BaseModel):
    """Base of all configurations: immutable, unknown fields refused, every field described."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


AnyConfig: TypeAlias = Config  # inside System the name Config is its class attribute


class Monitor(Protocol):
    """Receives what happens during a fit: curves for the report, progress for the terminal."""

    def log(self, step: int, seconds: float, **values: float) -> None:
        """One row of curves, e.g. loss, residual, learning rate."""

    def progress(self, fraction: float, text: str = "") -> None:
        """Share of the work done, in [0, 1]."""

    def test_error(self, system: System) -> None:
        """Optional look at the truth for the report's error-against-time curves.

        The engine times this call and subtracts it; its value never reaches the system.
        """


class NullMonitor:
    """Ignores everything: the default when `fit` is called from a user's own code."""

    def log(self, step: int, seconds: float, **values: float) -> None:
        return None

    def progress(self, fraction: float, text: str = "") -> None:
        return None

    def test_error(self, system: System) -> None:
        return None


class System(ABC):
    """Base class of every system and baseline.

    config  an instance of the class's `Config`; None takes the preset `small`
    seed    of the initialisation stream; data and training streams are the engine's
    """

    Config: ClassVar[type[AnyConfig]] = AnyConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    verbs: ClassVar[tuple[str, ...]] = ()
    needs_fit: ClassVar[bool] = True  # False: `apply` works from a preset, nothing is trained first
    id: str = ""  # set by the catalog; the class name stands in when built directly
    checkpoints: Path | None = None  # folder of this fit's checkpoint, set by the engine
    resume: bool = False  # continue from it, when it holds one

    def __init__(self, config: AnyConfig | None = None, *, seed: int = 0) -> None:
        self.config: Any = config if config is not None else self.configure("small")
        self.seed = seed

    # ---- configuration -------------------------------------------------------------------

    @classmethod
    def configure(cls, preset: str = "small", **overrides: Any) -> AnyConfig:
        """The configuration of a preset with single fields changed; errors name the field."""
        if preset not in cls.presets:
            raise UnknownNameError("preset", preset, cls.presets)
        for name in overrides:
            if name not in cls.Config.model_fields:
                raise UnknownNameError("configuration field", name, cls.Config.model_fields)
        return validate(cls.Config, {**cls.presets[preset], **overrides})

    @classmethod
    def from_preset(cls, preset: str = "small", *, seed: int = 0, **overrides: Any) -> Self:
        """
        >>> from passband import create
        >>> system = create("gp-hm", preset="small", kernel="gm")
        """
        return cls(cls.configure(preset, **overrides), seed=seed)

    # ---- work ----------------------------------------------------------------------------

    @abstractmethod
    def fit(
        self, data: Any, budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        """Learn from a task's data within a budget.

        Returns what was spent and found: at least {"steps": int, "selected": str}, where
        `selected` names the rule that chose the returned iterate ("last", "residual", ...).
        """

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """Apply the system's main verb to one of the user's files; returns what was written.

        monitor  hears of the progress of what takes long
        """
        raise ConfigError(
            f"{self.id or type(self).__name__} can't be applied to files",
            expected="a system with a file verb", mend="use its verbs from Python: "
            + ", ".join(self.verbs),
        )

    # ---- size and state ------------------------------------------------------------------

    @abstractmethod
    def state(self) -> dict[str, Array]:
        """All learned arrays by name (NumPy arrays or tensors); enough to restore every verb."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Array], extra: Mapping[str, Any]) -> None:
        """Restore what `state` and `extra` gave."""

    def extra(self) -> dict[str, Any]:
        """Small JSON facts that belong to the state (a grid's box, names of classes...)."""
        return {}

    def parameter_count(self) -> int:
        """Number of learned scalars; the default counts the state's elements."""
        return int(sum(int(np.prod(a.shape)) for a in self.state().values()))

    def save(self, folder: str | Path) -> Path:
        """Write `config.json` and `state.safetensors` into a folder, all or nothing."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write_state(temporary / "state.safetensors", self.state())
            facts = {
                "format": FORMAT,
                "system": self.id,
                "class": f"{type(self).__module__}:{type(self).__qualname__}",
                "seed": self.seed,
                "config": self.config.model_dump(mode="json"),
                "extra": self.extra(),
            }
            with (temporary / "config.json").open("w") as file:
                json.dump(facts, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a saved system. `passband.load(folder)` finds the class by itself."""
        facts = read_facts(folder)
        here = f"{cls.__module__}:{cls.__qualname__}"
        if facts["class"] != here:
            raise CheckpointError(
                f"{folder} holds a {facts['class']}", expected=here,
                mend="passband.load(folder) builds the right class",
            )
        system = cls(validate(cls.Config, facts["config"]), seed=facts["seed"])
        system.id = facts["system"]
        system.load_state(_read_state(Path(folder) / "state.safetensors"), facts["extra"])
        return system


def validate(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a configuration; pydantic's complaints become one `ConfigError` that names fields."""
    try:
        return config(**values)
    except ValidationError as error:
        problems = error.errors()
        first = problems[0]
        name = ".".join(map(str, first["loc"])) or config.__name__
        field = config.model_fields.get(str(first["loc"][0])) if first["loc"] else None
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(
            f"configuration field {name!r} = {first['input']!r}{more}",
            expected=first["msg"].removeprefix("Input should be ").removeprefix("Value error, "),
            mend=f"{name} is: {field.description}" if field and field.description else "",
        ) from None


def read_facts(folder: str | Path) -> dict[str, Any]:
    """The checked `config.json` of a saved system."""
    path = Path(folder) / "config.json"
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is no saved system: config.json is missing",
            expected="a folder written by save() or `passband train`",
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} can't be read: {error}", expected="JSON") from None
    needed = {"format", "system", "class", "seed", "config", "extra"}
    if not isinstance(facts, dict) or not needed <= facts.keys():
        raise CheckpointError(f"{path} lacks fields", expected=", ".join(sorted(needed)))
    if facts["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {facts['format']}", expected=f"format {FORMAT}",
            mend="load it with the version of passband that wrote it, or train again",
        )
    return facts


def replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder in place of an older one; a kill leaves the old or the new one.

    POSIX has no atomic exchange of folders in Python's reach: the old one steps aside first, and
    `recover_folder` brings it back when a kill hits between the two renames.
    """
    aside = target.with_name(f".{target.name}.old")
    recover_folder(target)
    if target.exists():
        target.rename(aside)
    new.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Undo a replacement that a kill interrupted, and clear what it left behind."""
    aside = target.with_name(f".{target.name}.old")
    if aside.exists():
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)


def _write_state(path: Path, state: Mapping[str, Array]) -> None:
    arrays = {name: a for name, a in state.items() if isinstance(a, np.ndarray)}
    tensors = {name: a for name, a in state.items() if name not in arrays}
    if tensors:
        import torch
        from safetensors.torch import save_file as save_torch

        tensors.update({name: torch.from_numpy(a.copy()) for name, a in arrays.items()})
        save_torch({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, path)
    else:
        from safetensors.numpy import save_file as save_numpy

        save_numpy({n: np.ascontiguousarray(a) for n, a in arrays.items()}, path)


def _read_state(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        try:
            return dict(load_file(path))
        except (KeyError, TypeError):  # NumPy has no bfloat16; torch reads the same file
            from safetensors.torch import load_file as load_torch

            return dict(load_torch(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} can't be read: {error}", expected="a safetensors file",
            mend="the file is damaged or was never finished: train again or copy it again",
        ) from None


def now() -> float:
    """Seconds of a clock that never goes back."""
    return time.perf_counter()
