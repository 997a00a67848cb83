"""Encoders of text: small ones pretrained here, MiniLM, the user's own, shapes without weights.

>>> encoder("small").num_parameters(), mlm("small").num_parameters()
(1478400, 1503360)
>>> model = encoder("smoke")
>>> rows = TokenRows.of([[2, 7, 3], [2, 8, 9, 3]])
>>> encode(model, rows, "average").shape
(2, 32)

An encoder is transformers' `BertModel` without a pooler, a masked language model its
`BertForMaskedLM`. `passband.retrieval.packed` runs them without work for padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from passband.errors import CheckpointError, DataError, UnknownNameError
from passband.parts.minilm import minilm, minilm_tokenizer
from passband.parts.model_folders import check_weights, load, read_config, read_tokenizer
from passband.parts.modes import evaluating
from passband.parts.transformers_library import quiet, seeded, transformers
from passband.retrieval.packed import pooled
from passband.retrieval.token_rows import TokenRows
from passband.retrieval.wordpieces import WordPieces

Kind = Literal["encoder", "mlm"]
TOKENS = 8192  # positions of a batch when texts are encoded

_BERT: dict[str, Any] = {
    "model_type": "bert", "vocab_size": 30_522, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512,
}
# What a published backbone, or one of ours, is built as. Names of fields are transformers'.
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        **_BERT, "vocab_size": 8192, "hidden_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 512, "max_position_embeddings": 256,
    },
    "smoke": {
        **_BERT, "vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 256,
    },
    "minilm": {
        **_BERT, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536,
    },
    "bert-base-uncased": _BERT,
    "bert-base-multilingual-cased": {**_BERT, "vocab_size": 119_547},
    "distilbert-base-uncased": {
        "model_type": "distilbert", "vocab_size": 30_522, "dim": 768, "n_layers": 6, "n_heads": 12,
        "hidden_dim": 3072, "max_position_embeddings": 512,
    },
    "roberta-base": {
        **_BERT, "model_type": "roberta", "vocab_size": 50_265, "max_position_embeddings": 514,
        "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    },
}
_LOADERS: dict[Kind, str] = {"encoder": "AutoModel", "mlm": "AutoModelForMaskedLM"}


# ---- fresh weights -------------------------------------------------------------------------------


def encoder(shape: str = "small", *, seed: int = 0, **changes: Any) -> Any:
    """An encoder without a pooler, fresh weights N(0, 0.02) drawn by `seed`, evaluation mode.

    shape    one of SHAPES; its sizes, not its published weights
    changes  fields of its configuration, e.g. vocab_size
    """
    return build(architecture(shape, **changes), "encoder", seed=seed)


def mlm(shape: str = "small", *, seed: int = 0, **changes: Any) -> Any:
    """A masked language model of the same shapes; the decoder is tied to the embeddings."""
    return build(architecture(shape, **changes), "mlm", seed=seed)


def architecture(shape: str, **changes: Any) -> dict[str, Any]:
    """The configuration of a shape as plain values; `UnknownNameError` for another name."""
    if shape not in SHAPES:
        raise UnknownNameError("shape of a backbone", shape, SHAPES)
    return {**SHAPES[shape], **changes}


def build(facts: Mapping[str, Any], kind: Kind, *, seed: int = 0) -> Any:
    """A model of a configuration (as `architecture` or a saved system gives it), evaluation mode.

    Raises `CheckpointError` for a configuration that transformers does not know.
    """
    library = transformers("retrieval")
    fields = dict(facts)
    try:
        config = library.AutoConfig.for_model(fields.pop("model_type"), **fields)
        family = getattr(library, _LOADERS[kind])._model_mapping[type(config)]
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"no {kind} for the architecture {facts.get('model_type')!r}",
            expected="one that transformers knows", mend=str(error)[:200],
        ) from None
    with quiet(), seeded(seed):
        return _made(family, config).eval()


def _made(family: type, config: Any) -> Any:
    plain = "add_pooling_layer" in inspect.signature(family.__init__).parameters
    return family(config, add_pooling_layer=False) if plain else family(config)


# ---- weights that are there ----------------------------------------------------------------------


def start(
    name: str, kind: Kind, *, pretrained: bool = False, seed: int = 0
) -> tuple[Any, WordPieces | None]:
    """What a system starts from: a model, and its word pieces where it brings some.

    name        a shape of SHAPES; "minilm" has its weights; or a folder of transformers
    pretrained  the shape's weights as pretrained here (shapes "small" and "smoke")

    Raises `DataError` for a folder that can't be read, `UnknownNameError` for another name.
    """
    if name == "minilm" and not _on_meta():
        return _minilm(kind, seed), WordPieces.of_transformers(minilm_tokenizer("retrieval"))
    if pretrained:
        from passband.retrieval.pretrained import PRETRAINED, pretrained_backbone

        if name not in PRETRAINED:
            raise UnknownNameError("pretrained backbone", name, PRETRAINED)
        return pretrained_backbone(name, kind, seed=seed)
    if name in SHAPES:
        return build(SHAPES[name], kind, seed=seed), None
    if not Path(name).exists():
        raise UnknownNameError(
            "backbone", name, SHAPES, mend="a name, or the folder of a transformers model",
        )
    return from_folder(name, kind, seed=seed)


def _on_meta() -> bool:
    return torch.get_default_device().type == "meta"


def from_folder(
    folder: str | Path, kind: Kind, *, seed: int = 0
) -> tuple[Any, WordPieces]:
    """A user's own model and its tokenizer; a missing MLM head is drawn by `seed`, decoder tied.

    Raises `DataError`.
    """
    path = Path(folder)
    read_config(path)
    check_weights(path)
    # Float32: what fits an encoder on a GPU in half precision is no start for training on a CPU.
    model, _ = load(path, _LOADERS[kind], seed, output_loading_info=True, dtype=torch.float32)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # never read here; no gradient would reach it
    pieces = WordPieces.of_transformers(read_tokenizer(path))
    if len(pieces) > model.config.vocab_size:
        raise DataError(
            f"{folder}: the tokenizer has {len(pieces)} tokens, the model "
            f"{model.config.vocab_size}",
            expected="a tokenizer that belongs to the model", mend="copy its tokenizer's files",
        )
    return model, pieces


def _minilm(kind: Kind, seed: int) -> Any:
    model = minilm("retrieval")
    model.pooler = None
    if kind == "encoder":
        return model
    # Its weights come without a head: dense and LayerNorm are fresh, the decoder is tied.
    whole = mlm("minilm", seed=seed, **_sizes(model.config))
    whole.bert.load_state_dict(model.state_dict())
    return whole


def _sizes(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in SHAPES["minilm"] if name != "model_type"}


# ---- texts to vectors ----------------------------------------------------------------------------


def encode(
    model: nn.Module, rows: TokenRows, pool: str | Callable[[Tensor, Tensor], Tensor] = "average",
    *, tokens: int = TOKENS,
) -> np.ndarray:
    """Vectors of rows, [N, d] float32, in their order; batches are of rows of like length.

    pool    "average" of the states, "cls", or a function of ids and mask [B, L] -> [B, d]
    tokens  positions of a batch at most: memory, not numbers, depends on it
    """
    device = next(model.parameters()).device
    found: np.ndarray | None = None
    with torch.no_grad(), evaluating(model):
        for places, ids, mask in rows.batches(tokens):
            ids, mask = ids.to(device), mask.to(device)
            vectors = pooled(model, ids, mask, pool) if isinstance(pool, str) else pool(ids, mask)
            part = vectors.float().cpu().numpy()
            if found is None:
                found = np.empty((len(rows), part.shape[1]), np.float32)
            found[places] = part
    return np.empty((0, 0), np.float32) if found is None else found
