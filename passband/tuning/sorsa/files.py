"""SORSA's own factors on disk, so that training can go on without a decomposition.

    <layer>.sorsa_A [r, n], .sorsa_S [r], .sorsa_B [m, r]     as they are
    <layer>.sorsa_A0, .sorsa_B0                               as they began, B0 with S0 in it
    header                                                    configuration, fingerprint of the base

The residual is never written: it is the base weight minus c B0 A0. For use without more training
`handle.edit().save(path)` is enough.

>>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
>>> handle = SORSA(rank=2).attach(model)
>>> path = save_factors(handle, "sorsa.safetensors")
>>> edit = handle.detach()
>>> handle = load_factors(path, model)
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from passband.errors import CheckpointError, PassbandError
from passband.parts.edits import Fingerprint, fingerprint
from passband.parts.low_rank import LowRankFactors
from passband.tuning.sorsa.model import SORSA, SORSAHandle

KIND, FORMAT = "sorsa factors", "1"
PARTS = ("A", "S", "B", "A0", "B0")


def save_factors(handle: SORSAHandle, path: str | Path) -> Path:
    """Write the factors and the head, under a temporary name first."""
    from safetensors.torch import save_file

    tensors = {
        f"{name}.sorsa_{part}": getattr(f, part).detach().cpu().contiguous()
        for name, f in handle.factors.items() for part in PARTS
    }
    tensors |= {n: p.detach().cpu().contiguous() for n, p in handle.head.items()}
    header = {
        "passband": KIND, "format": FORMAT, "config": json.dumps(asdict(handle.method)),
        "head": json.dumps(list(handle.head)), "base": json.dumps(handle.base.to_json()),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        save_file(tensors, temporary, header)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_factors(path: str | Path, model: nn.Module, **options: Any) -> SORSAHandle:
    """Attach SORSA to `model`, the pretrained one, where a saved run left off.

    options  of `SORSA.attach`: steps, seed, name
    Raises `CheckpointError` for other files and for another base (with the tensors that differ).
    """
    header, tensors = _read(Path(path))
    try:
        config = json.loads(header["config"])
        method = SORSA(**(config | {"targets": tuple(config["targets"])}))
        head, base = json.loads(header["head"]), Fingerprint.from_json(json.loads(header["base"]))
        layers = sorted({name.rpartition(".sorsa_")[0] for name in tensors if ".sorsa_" in name})
        start = {
            layer: LowRankFactors(
                *(tensors[f"{layer}.sorsa_{part}"] for part in ("A", "B", "S")),
                A0=tensors[f"{layer}.sorsa_A0"], B0=tensors[f"{layer}.sorsa_B0"],
                scale=method.scale, dropout=method.dropout,
            ) for layer in layers
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None
    _check_base(path, base, fingerprint(model, without=head))
    ordered = {name: start[name] for name, _ in model.named_modules() if name in start}
    handle = SORSAHandle(model, ordered, method=method, head=head, **options)
    for name, parameter in handle.head.items():
        parameter.data.copy_(tensors[name])
    return handle


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            header = dict(file.metadata() or {})
            if (header.get("passband"), header.get("format")) != (KIND, FORMAT):
                raise CheckpointError(
                    f"{path} holds no factors of SORSA", expected="a file of save_factors"
                )
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _check_base(path: str | Path, wanted: Fingerprint, found: Fingerprint) -> None:
    if wanted.sha256 == found.sha256:
        return
    differ = [n for n, d in wanted.tensors.items() if found.tensors.get(n) != d]
    raise CheckpointError(
        f"{path} belongs to another base: {', '.join(differ[:5])} differ",
        expected="the pretrained model that was tuned", mend="load the same checkpoint and dtype",
    )


def _damaged(path: str | Path, error: Exception) -> PassbandError:
    return CheckpointError(f"{path} can't be read: {error}", expected="a file of save_factors")
