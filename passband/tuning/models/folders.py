"""Models in folders of the user's own, as transformers' `save_pretrained` writes them.

>>> byte_lm(32, 64, 2, 4).save_pretrained("my-llama")
>>> model = load_model("my-llama", "causal-lm")
>>> tokenizer = load_tokenizer("my-llama")       # bytes here: 256 tokens, and no tokenizer's files

Weights are read from safetensors only: a pickle can run code. Nothing is downloaded, and no code
out of a folder is run.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from passband.data.instructions import ByteTokenizer
from passband.errors import CheckpointError, DataError, PassbandWarning, UnknownNameError
from passband.parts.model_folders import (
    TOKENIZER_FILES,
    check_weights,
    load,
    read_config,
    read_tokenizer,
)
from passband.tuning.models.library import quiet, transformers
from passband.tuning.models.sentences import SentenceClassifier

if TYPE_CHECKING:
    from passband.parts.edits import Edit

# kind -> transformers' class that finds the architecture; "sentences" is wrapped by ours.
KINDS = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "encoder": "AutoModel",
    "sentences": "AutoModel",
}
WITH_HEAD = ("classification", "image-classification", "sentences")
HEADS = ("classifier", "score")  # names of fresh heads in transformers' classifiers and in ours
OWN_HEAD = "classifier.safetensors"  # of a SentenceClassifier, beside its encoder


def load_model(folder: str | Path, kind: str, labels: int | None = None, *, seed: int = 0) -> Any:
    """A model from a folder with config.json and safetensors, in the type it was saved in.

    kind    "causal-lm", "masked-lm", "classification", "image-classification", "encoder", or
            "sentences": a `SentenceClassifier` on the folder's encoder
    labels  number of classes, for kinds with a head; where it differs from the folder's, or the
            folder has no head, the head is fresh and drawn by `seed` (`head_of` names it)

    Raises `DataError` for a folder that holds no such model, or its weights as a pickle.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of model", kind, KINDS)
    folder = Path(folder)
    config = read_config(folder)
    check_weights(folder)
    if kind == "sentences":
        return _sentences(folder, labels, seed)
    options: dict[str, Any] = {"output_loading_info": True, "dtype": "auto"}
    if kind in WITH_HEAD and labels is not None:
        options |= {"num_labels": labels, "ignore_mismatched_sizes": True}
    model, info = load(folder, KINDS[kind], seed, **options)
    fresh = {str(name) for name in info["missing_keys"]}
    fresh |= {str(entry[0]) for entry in info["mismatched_keys"]}
    strange = sorted(n for n in fresh if kind not in WITH_HEAD or not n.startswith(HEADS))
    if strange and kind != "encoder":
        saved = ", ".join(config.get("architectures") or ["?"])
        warnings.warn(
            f"{len(strange)} tensors of {folder} are not in its files and are drawn at random, "
            f"e.g. {strange[0]}; it was saved as {saved}", PassbandWarning, stacklevel=2,
        )
    return model


def _sentences(folder: Path, labels: int | None, seed: int) -> SentenceClassifier:
    from safetensors.torch import load_file

    head = load_file(folder / OWN_HEAD) if (folder / OWN_HEAD).is_file() else None
    classes = labels or (len(head["weight"]) if head else None)
    if classes is None:
        raise DataError(
            f"{folder} has no head that says how many classes there are",
            expected="the number of labels", mend="give labels=",
        )
    encoder, _ = load(folder, "AutoModel", seed, output_loading_info=True, dtype="auto")
    model = SentenceClassifier(classes, encoder, seed=seed).eval()
    if head and head["weight"].shape == model.classifier.weight.shape:
        model.classifier.load_state_dict(head)
    return model


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a folder; bytes for a model of 256 tokens without one.

    Raises `DataError` where there is none.
    """
    folder = Path(folder)
    config = read_config(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        if config.get("vocab_size") == ByteTokenizer.vocab_size:
            return ByteTokenizer()
        raise DataError(
            f"{folder} has no tokenizer", expected="tokenizer.json or the like",
            mend="tokenizer.save_pretrained(folder)",
        )
    return read_tokenizer(folder)


def head_of(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the parameters of a classifier's head; empty for other models."""
    return tuple(name for name, _ in model.named_children() if name in HEADS)


def load_like(folder: str | Path, edit: Edit) -> Any:
    """The model of a folder, built such that it has every parameter that an edit changes.

    Raises `CheckpointError` where no kind of model on this folder has them all.
    """
    folder = Path(folder)
    read_config(folder)
    check_weights(folder)
    wanted = set(edit.changes)
    sizes = [c.shape[0] for n, c in edit.changes.items() if n.startswith(HEADS) and c.shape]
    # A head's last layer is the smallest of its tensors.
    labels = min(sizes) if sizes else None
    fewest: set[str] = wanted
    for kind in KINDS:
        names = _names(folder, kind)
        if wanted <= names:
            return load_model(folder, kind, labels if kind in WITH_HEAD else None)
        fewest = min(fewest, wanted - names, key=len)
    raise CheckpointError(
        f"the model of {folder} lacks {len(fewest)} of {len(wanted)} tensors that the edit "
        f"changes, e.g. {min(fewest)}",
        expected="the model that was adapted", mend="give the folder of that model",
    )


def _names(folder: Path, kind: str) -> set[str]:
    """Names of the parameters of a kind of model on this folder; none where it doesn't exist."""
    library = transformers()
    try:
        with quiet(), torch.device("meta"):
            config = library.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model: nn.Module = getattr(library, KINDS[kind]).from_config(config)
            if kind == "sentences":
                model = SentenceClassifier(2, model)
    except (ValueError, KeyError, AttributeError):
        return set()
    return {name for name, _ in model.named_parameters()}


def save_like(model: nn.Module, folder: str | Path, out: str | Path) -> Path:
    """Write a model to `out` as a transformers folder, with the tokenizer's files of `folder`.

    `out` appears whole or not at all; it must not be there yet, or be a folder written so before.
    Raises `DataError`.
    """
    from safetensors.torch import save_file

    folder, out = Path(folder), Path(out)
    if out.exists() and not (out / "config.json").is_file():
        raise DataError(
            f"{out} is there and holds no model", expected="a new folder", mend="choose another"
        )
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    own = isinstance(model, SentenceClassifier)
    saved: Any = model.encoder if own else model
    with quiet():
        saved.save_pretrained(new)
    if own:
        head = {n: t.detach().contiguous() for n, t in model.classifier.state_dict().items()}
        save_file(head, new / OWN_HEAD)
    written = {p.name for p in new.iterdir()}
    for path in folder.iterdir():
        if path.name not in written and _goes_along(path):
            shutil.copyfile(path, new / path.name)
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return out


def _goes_along(path: Path) -> bool:
    """Tokenizer, chat template, generation settings, licence: all that isn't weights."""
    texts = (".json", ".txt", ".model", ".jinja", ".md", "")
    return path.is_file() and path.suffix in texts and not path.name.endswith(".index.json")
