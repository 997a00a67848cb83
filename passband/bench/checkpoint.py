"""Training checkpoints: a folder with `tensors.safetensors` and `facts.json`, whole or not at all.

>>> save(folder, {"step": 3, "optimizer": optimizer.state_dict()}, about={"system": "tiger"})
>>> tree = restore(folder, about={"system": "tiger"})
>>> optimizer.load_state_dict(tree["optimizer"])

Any nesting of dicts, lists, tuples, tensors, numbers, text and None can be saved: tensors go to
one file under the path that leads to them, the rest to JSON. Nothing is pickled. A process killed
at any moment, also while saving, leaves the former checkpoint or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from passband import __version__
from passband.bench.system import recover_folder, replace_folder
from passband.errors import CheckpointError

FORMAT = 1  # raised when an older reader could misread a checkpoint
TENSORS, FACTS = "tensors.safetensors", "facts.json"


def save(folder: Path, tree: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of an older one.

    about  facts that a reader must agree with: system, configuration, budget, seed...
    Raises `CheckpointError` when the folder can't be written.
    """
    tensors: dict[str, Tensor] = {}
    facts = {
        "format": FORMAT, "version": __version__, "about": dict(about),
        "tree": _pack(tree, "", tensors),
    }
    # One fixed name: what a kill leaves behind is cleared by the next save.
    new = folder.with_name(f".{folder.name}.new")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        save_file(tensors, new / TENSORS)
        (new / FACTS).write_text(json.dumps(facts))
        for path in (new / TENSORS, new / FACTS, new):
            _sync(path)
        replace_folder(new, folder)
        _sync(folder.parent)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {folder} can't be written: {error}",
            expected="a folder with room on the disk",
            mend="free some space or choose another folder; the former checkpoint is whole",
        ) from error


def exists(folder: Path) -> bool:
    """Whether there is a checkpoint; puts one back that a kill left half replaced."""
    if folder.parent.exists():
        recover_folder(folder)
    return (folder / FACTS).exists()


def remove(folder: Path) -> None:
    """Delete a checkpoint and what a killed save may have left beside it."""
    for name in (folder.name, f".{folder.name}.new", f".{folder.name}.old"):
        shutil.rmtree(folder.with_name(name), ignore_errors=True)


def restore(folder: Path, about: Mapping[str, Any]) -> Any:
    """The tree that `save` was given, tensors on the CPU.

    Raises `CheckpointError` when the checkpoint is damaged, of another format or version, or when
    one of the facts in `about` differs; the text names it.
    """
    try:
        facts = json.loads((folder / FACTS).read_text())
        tensors = load_file(folder / TENSORS)
        found = (facts["format"], facts["version"], facts["about"], facts["tree"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {folder} can't be read: {error}", expected=f"{FACTS} and {TENSORS}",
            mend="delete the folder and train again without resuming",
        ) from None
    form, version, known, tree = found
    _compare(folder, "checkpoint format", form, FORMAT)
    _compare(folder, "passband version", version, __version__)
    for name, value in json.loads(json.dumps(dict(about))).items():
        _compare(folder, name, known.get(name), value)
    try:
        return _unpack(tree, tensors)
    except KeyError as error:
        raise CheckpointError(
            f"the checkpoint {folder} lacks the tensor {error}", expected="every tensor it names",
            mend="delete the folder and train again without resuming",
        ) from None


def _compare(folder: Path, name: str, found: Any, wanted: Any) -> None:
    if found == wanted:
        return
    if isinstance(found, dict) and isinstance(wanted, dict):
        key = next(k for k in {**found, **wanted} if found.get(k) != wanted.get(k))
        return _compare(folder, f"{name}.{key}", found.get(key), wanted.get(key))
    raise CheckpointError(
        f"the checkpoint {folder} was written with {name} = {_short(found)}",
        expected=f"{name} = {_short(wanted)}, as in this run",
        mend="resume with the settings it was written with, or start anew without resuming",
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- trees: JSON has no tensors, no tuples, and only text as keys ------------------------------


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # A copy: safetensors refuses tensors that share memory.
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        items = [[k, _pack(v, f"{path}/{k}", tensors)] for k, v in value.items()]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        items = [_pack(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else {"list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(
        f"{path.lstrip('/')} is a {type(value).__name__}, which a checkpoint can't hold",
        expected="tensors, numbers, text, None and dicts, lists or tuples of them",
    )


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    return _READERS[kind](content, tensors)


_READERS: dict[str, Any] = {
    # A copy has aligned memory; sums over views into the file may round otherwise.
    "tensor": lambda name, tensors: tensors[name].clone(),
    "dict": lambda items, tensors: {k: _unpack(v, tensors) for k, v in items},
    "list": lambda items, tensors: [_unpack(v, tensors) for v in items],
    "tuple": lambda items, tensors: tuple(_unpack(v, tensors) for v in items),
}
