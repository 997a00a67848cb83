"""Folders as transformers' `save_pretrained` writes them: checked, then read.

>>> read_config(Path("not-there"))
Traceback (most recent call last):
...
passband.errors.DataError: not-there is not there
  expected: the folder of a transformers model
  to mend:  the folder that holds its config.json and model.safetensors

Weights are read from safetensors only: a pickle can run code. Nothing is downloaded, and no code
out of a folder is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from passband.errors import DataError
from passband.parts.transformers_library import quiet, seeded, transformers

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model",
    "sentencepiece.bpe.model",
)


def load(folder: Path, loader: str, seed: int, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model in evaluation mode by the transformers class `loader`, and its loading info.

    seed     of what the folder lacks and transformers draws
    options  of `from_pretrained`; `output_loading_info=True` among them
    Raises `DataError` where transformers can't read it.
    """
    from safetensors import SafetensorError

    library = transformers()
    try:
        with quiet(), seeded(seed):
            model, info = getattr(library, loader).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        first = str(error).strip().split("\n")[0]
        raise DataError(
            f"{folder} can't be read as {loader}: {first}",
            expected="a folder that transformers reads as this kind of model",
            mend="choose another kind, or save the model again with save_pretrained",
        ) from error
    return model.eval(), info


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; `DataError` where there is none."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is {'a file' if folder.exists() else 'not there'}",
            expected="the folder of a transformers model",
            mend="the folder that holds its config.json and model.safetensors",
        )
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{folder} has no config.json, only {names}",
            expected="a folder written by save_pretrained", mend="model.save_pretrained(folder)",
        ) from None
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path} can't be read: {error}", expected="JSON", mend="save the model again"
        ) from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no object", expected="JSON", mend="save the model again")
    return found


def check_weights(folder: Path) -> None:
    """Raise `DataError` unless there are safetensors with no shard missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, OSError) as error:
            raise DataError(
                f"{index} can't be read: {error!r}", expected="the index of the shards",
                mend="copy the folder again",
            ) from None
        missing = sorted(name for name in shards if not (folder / name).is_file())
        if missing:
            raise DataError(
                f"{folder} lacks {len(missing)} of {len(shards)} shards, e.g. {missing[0]}",
                expected="all files of the model", mend="copy the folder again",
            )
        return
    if (folder / "model.safetensors").is_file():
        return
    pickles = sorted(p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt*")))
    if pickles:
        raise DataError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which could run code",
            expected="model.safetensors",
            mend="convert it once, if you trust where it comes from: python -c \"from transformers "
            "import AutoModelForCausalLM as M; M.from_pretrained('OLD').save_pretrained('NEW')\", "
            "with the class that fits, and copy the tokenizer's files",
        )
    raise DataError(
        f"{folder} has no weights", expected="model.safetensors beside config.json",
        mend="model.save_pretrained(folder)",
    )


def read_tokenizer(folder: Path) -> Any:
    """The transformers tokenizer of a folder; `DataError` where it can't be read."""
    library = transformers()
    try:
        with quiet():
            return library.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().split("\n")[0]
        raise DataError(
            f"the tokenizer of {folder} can't be read: {first}",
            expected="files that transformers reads", mend="tokenizer.save_pretrained(folder)",
        ) from error
