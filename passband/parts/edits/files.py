"""One safetensors file per edit: its tensors, and everything else as JSON in the header.

    tensors   "<parameter>/<part>", e.g. "layers.0.weight/indices"
    header    format, changes (kind, shape and facts of each), base (fingerprint), about

Indices take 32 bits where the tensor has fewer than 2^31 entries, and become a bit mask where more
than 3 % of the entries change.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from passband.errors import CheckpointError, PassbandError

if TYPE_CHECKING:
    from passband.parts.edits.edit import Edit

FORMAT = "1"  # raised when an older reader could misread a file


def write(edit: Edit, path: Path, dtype: torch.dtype | None = None) -> Path:
    """See `Edit.save`."""
    from safetensors.torch import save_file

    tensors = {n: t.cpu().contiguous() for n, t in edit.tensors(dtype).items()}
    header = {"passband": "edit", "format": FORMAT, "edit": json.dumps(edit.facts())}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        save_file(_apart(tensors), temporary, header)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read(path: Path) -> Edit:
    """See `Edit.load`."""
    from safetensors import SafetensorError, safe_open

    from passband.parts.edits.edit import Edit

    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            facts = _facts(path, header)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist", expected="a file written by Edit.save",
        ) from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} can't be read: {error}", expected="a safetensors file written by Edit.save",
            mend="the file is damaged or was never finished: copy it again",
        ) from None
    try:
        return Edit.build(tensors, facts)
    except PassbandError as error:
        raise CheckpointError(
            f"{path}: {error.what}", expected=error.expected, mend=error.mend
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its header is damaged ({type(error).__name__}: {error})",
            expected="a file written by Edit.save",
        ) from None


def _facts(path: Path, header: dict[str, str]) -> dict[str, Any]:
    if header.get("passband") != "edit":
        raise CheckpointError(
            f"{path} holds tensors, but no edit", expected="a file written by Edit.save",
            mend="Edit.between(before, after) makes an edit of two checkpoints",
        )
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {header.get('format')}", expected=f"format {FORMAT}",
            mend="load it with the version of passband that wrote it",
        )
    try:
        facts = json.loads(header["edit"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({error})") from None
    if not isinstance(facts, dict) or not {"changes", "base", "about"} <= facts.keys():
        raise CheckpointError(f"{path}: its header is damaged", expected="changes, base, about")
    return facts


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors refuses tensors that share memory: the same factor in two changes, say."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return apart
