"""What is compared, from the user's files: two checkpoints, or a base and an adapter.

    folder/base, folder/tuned       checkpoints of transformers (safetensors, sharded or not)
    folder/base, folder/adapter     a LoRA adapter of peft; or adapter.safetensors, a saved edit
    pair.json                       {"base": PATH, "tuned": PATH} or {"base": PATH, "adapter": PATH}
    an adapter of peft whose configuration names a base model that is a folder here

>>> import tempfile, torch
>>> from safetensors.torch import save_file
>>> folder = Path(tempfile.mkdtemp())
>>> for name in ("base", "tuned"):
...     (folder / name).mkdir()
...     save_file({"w": torch.eye(2)}, folder / name / "model.safetensors")
>>> subject = read_subject(folder)
>>> list(subject.base), torch.equal(subject.base["w"], subject.tuned["w"])
(['w'], True)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from passband.errors import CheckpointError, DataError
from passband.parts.edits import Change, Edit, LowRank

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
PREFIX = "base_model.model."
# Layers of GPT-2 and its kin that are stored [in, out].
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "q_attn.weight")
CONV1D_MODELS = ("gpt2", "imagegpt", "openai-gpt", "decision_transformer")


@dataclass(frozen=True)
class Subject:
    """Base weights, and what became of them. transposed: names stored [in, out]."""

    base: Mapping[str, Tensor]
    tuned: Mapping[str, Tensor] | Edit
    transposed: tuple[str, ...]


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a model's folder, each read when it is asked for.

    Raises `CheckpointError` for folders without safetensors files, and for damaged ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = _files(folder)

    @cached_property
    def _place(self) -> dict[str, Path]:
        return {name: path for path in self._files for name in _opened(path).keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = _opened(self._place[name]).get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    @property
    def transposed(self) -> tuple[str, ...]:
        """Names of weights that this architecture stores [in, out]."""
        path = self.folder / "config.json"
        kind = json.loads(path.read_text()).get("model_type") if path.is_file() else None
        if kind not in CONV1D_MODELS:
            return ()
        return tuple(name for name in self if name.endswith(CONV1D))


def is_subject(path: Path) -> bool:
    """Whether a path names something to compare, and is not just a model."""
    return path.suffix == ".json" or (path / "base").is_dir() or (path / ADAPTER[0]).is_file()


def read_subject(path: Path) -> Subject:
    """Raises `DataError` for a path of no known form, `CheckpointError` for files that fail."""
    base, tuned = _named(path)
    weights = Checkpoint(base)
    if tuned.suffix == ".safetensors":
        return Subject(weights, Edit.load(tuned), weights.transposed)
    if (tuned / ADAPTER[0]).is_file():
        return Subject(weights, read_adapter(tuned, weights), weights.transposed)
    return Subject(weights, Checkpoint(tuned), weights.transposed)


def _named(path: Path) -> tuple[Path, Path]:
    """Paths of the base and of what it is compared with."""
    if path.is_file():
        found = _json(path)
        second = found.get("tuned") or found.get("adapter")
        if "base" in found and second:
            return path.parent / found["base"], path.parent / second
    elif (path / ADAPTER[0]).is_file():
        base = _json(path / ADAPTER[0]).get("base_model_name_or_path")
        if base and (path / base).is_dir():
            return path / base, path
    else:
        for name in ("tuned", "adapter", "adapter.safetensors"):
            if (path / "base").is_dir() and (path / name).exists():
                return path / "base", path / name
    raise DataError(
        f"{path} does not say what to compare",
        expected="a folder with base/ and tuned/ (or adapter/, or adapter.safetensors)",
        mend='or a file pair.json: {"base": "PATH", "tuned": "PATH"}, paths from its own folder',
    )


def read_adapter(folder: Path, base: Mapping[str, Tensor]) -> Edit:
    """A plain LoRA adapter of peft as an edit of base weights, without building the model.

    Raises `CheckpointError` for other kinds of adapters, and for modules that the base lacks.
    """
    config, tensors = _json(folder / ADAPTER[0]), Checkpoint(folder)
    odd = [n for n in ("use_dora", "lora_bias", "use_qalora") if config.get(n)]
    if config.get("peft_type") != "LORA" or odd:
        raise CheckpointError(
            f"{folder} holds {' with '.join([str(config.get('peft_type')), *odd])}",
            expected="plain LoRA factors", mend="merge it in peft and compare two checkpoints",
        )
    changes: dict[str, Change] = {}
    flipped = bool(config.get("fan_in_fan_out"))
    for key in tensors:
        if not key.endswith(".lora_A.weight"):
            continue
        module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        A, B = tensors[key].float(), tensors[key.replace("lora_A", "lora_B")].float()
        name = _found(f"{module}.weight", base, folder)
        changes[name] = LowRank(
            B, A, scale=_scale(config, module, len(A)), shape=tuple(base[name].shape),
            transposed=flipped,
        )
    return Edit(changes, None, {"method": "LoRA", "folder": folder.name})


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha over rank (or over its root), with peft's exceptions by module."""
    patterns = config.get("alpha_pattern") or {}
    own = (a for ending, a in patterns.items() if f".{module}".endswith(f".{_plain(ending)}"))
    alpha = next(own, config.get("lora_alpha", rank))
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _plain(pattern: str) -> str:
    return pattern.replace("\\", "").removeprefix("^").removesuffix("$")


def _found(name: str, base: Mapping[str, Tensor], folder: Path) -> str:
    """The base's own name of a tensor: heads on top of a model put a prefix before it."""
    if name in base:
        return name
    close = [n for n in base if n.endswith(f".{name}") or name.endswith(f".{n}")]
    if len(close) == 1:
        return close[0]
    raise CheckpointError(
        f"{folder} adapts {name}, which the base {'has twice' if close else 'lacks'}",
        expected="the model that the adapter was trained on",
        mend=f"its tensors are called {', '.join(list(base)[:3])}, ...",
    )


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_json(index)["weight_map"].values()))
        return [folder / name for name in names]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        raise CheckpointError(
            f"{folder} has {pickled[0] if pickled else 'no weights'}",
            expected="model.safetensors, or its shards with model.safetensors.index.json",
            mend="save it again with save_pretrained(..., safe_serialization=True)",
        )
    return found


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} can't be read: {error}", expected="a safetensors file",
            mend="the file is damaged: copy or download it again",
        ) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}", expected="JSON") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no object", expected="JSON with names")
    return found
