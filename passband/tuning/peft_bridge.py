"""Edits and peft: ours as adapters that peft loads, peft's as edits of ours.

    an edit that has exact factors (low-rank, block)  ->  a LoRA folder on the ORIGINAL model
    a LoRA adapter folder of peft                     ->  an edit

Ranks differ between layers, so each has its own in `rank_pattern`; the scale is in the factors
(alpha = rank). A fresh head goes to peft's `modules_to_save`.

>>> from peft import PeftModel
>>> from passband.tuning.sorsa.model import SORSA
>>> model = byte_lm(32, 64, 2, 4)
>>> edit = SORSA(rank=4).attach(model).detach()
>>> [path.name for path in write_peft(edit, Path("adapter"))]
['adapter_config.json', 'adapter_model.safetensors']
>>> adapted = PeftModel.from_pretrained(model, "adapter")      # peft's own loader
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from passband.errors import CheckpointError, DataError
from passband.parts.edits import Change, Edit, LowRank, Replace, fingerprint
from passband.parts.targets import is_transposed

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_peft(edit: Edit, folder: Path, *, base_model: str = "") -> list[Path]:
    """Write a folder that `PeftModel.from_pretrained` loads; [] where no exact form exists.

    base_model  name or path of the pretrained model, for the adapter's configuration
    """
    low_rank = {n: c for n, c in edit.changes.items() if not isinstance(c, Replace)}
    factors = {n: c.lora() for n, c in low_rank.items()}
    if not factors or any(pair is None for pair in factors.values()):
        return []
    if any(not name.endswith(".weight") for name in factors):
        return []
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, pair in factors.items():
        assert pair is not None
        module = name.removesuffix(".weight")
        b, a = (t.detach().float().contiguous() for t in pair)
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b
        ranks[module] = len(a)
    heads = {n: c for n, c in edit.changes.items() if isinstance(c, Replace)}
    for name, head in heads.items():
        tensors[f"{PREFIX}{name}"] = head.delta().contiguous()
    flipped = {getattr(c, "transposed", False) for c in low_rank.values()}
    if len(flipped) > 1:
        raise DataError(
            "the edit mixes Linear and Conv1D layers", expected="one kind, as peft has one flag",
            mend="export the two kinds apart with Edit.only",
        )
    rank = max(ranks.values())
    patterns = {f"{re.escape(n)}": r for n, r in ranks.items() if r != rank}
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(ranks),
        "rank_pattern": patterns, "alpha_pattern": dict(patterns), "lora_dropout": 0.0,
        "bias": "none", "fan_in_fan_out": flipped == {True}, "task_type": None,
        "inference_mode": True, "base_model_name_or_path": base_model or None,
        "modules_to_save": sorted({n.rsplit(".", 1)[0] for n in heads}) or None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2))
    return [folder / CONFIG, folder / WEIGHTS]


def read_peft(folder: Path, model: nn.Module) -> Edit:
    """A LoRA adapter folder as an edit of `model`, the pretrained model it was trained on.

    Raises `CheckpointError` for other kinds of adapters and for shapes that don't fit.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} can't be read: {error}", expected=f"{CONFIG} and {WEIGHTS}",
            mend="save the adapter with save_pretrained(..., safe_serialization=True)",
        ) from None
    _plain_lora(folder, config)
    modules = dict(model.named_modules())
    changes: dict[str, Change] = {}
    for key, a in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        b = tensors[key.replace("lora_A", "lora_B")]
        if name not in modules:
            raise CheckpointError(
                f"the model has no module {name!r}", expected="the model that peft adapted",
                mend="take the same class of model (with or without its head)",
            )
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        changes[f"{name}.weight"] = LowRank(
            b.float(), a.float(), scale=_scale(config, name, len(a)), shape=tuple(weight.shape),
            transposed=is_transposed(modules[name]),
        )
    saved = {
        k.removeprefix(PREFIX): t for k, t in tensors.items() if ".lora_" not in k
    }
    changes.update({n: Replace(t) for n, t in saved.items()})
    return Edit(changes, fingerprint(model, without=saved), {"method": "LoRA", "config": config})


def _plain_lora(folder: Path, config: dict[str, Any]) -> None:
    odd = [n for n in ("use_dora", "lora_bias", "use_qalora", "use_bdlora") if config.get(n)]
    if config.get("peft_type") != "LORA" or odd:
        kind = " with ".join([str(config.get("peft_type")), *odd])
        raise CheckpointError(
            f"{folder} holds {kind}", expected="plain LoRA factors",
            mend="merge it in peft and take Edit.between(before, after)",
        )


def _scale(config: dict[str, Any], name: str, rank: int) -> float:
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


@torch.no_grad()
def to_peft(model: nn.Module, edit: Edit, folder: Path) -> Any:
    """`model` as a PeftModel with the edit as its adapter; `folder` keeps the adapter's files.

    The model must be the pretrained one. Raises `DataError` where no exact form exists.
    """
    from peft import PeftModel

    if not write_peft(edit, folder):
        raise DataError(
            "the edit has no exact form as LoRA", expected="low-rank or block changes of layers",
            mend="merge it into the model instead: edit.apply(model)",
        )
    return PeftModel.from_pretrained(model, str(folder))
