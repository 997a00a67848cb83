"""Published architectures without weights, on the meta device: shapes and counts, no memory.

>>> model = meta_model("llama-3-8b")
>>> model.num_parameters()
8030261248

The numbers are those of the models' own configurations, written out here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from passband.errors import UnknownNameError
from passband.tuning.models.library import quiet, transformers


@dataclass(frozen=True)
class Architecture:
    """Names of transformers' classes, what the configuration says, and the parameters it gives."""

    model: str
    config: str
    fields: dict[str, Any]
    parameters: int


def _decoder(
    family: str, parameters: int, *, vocabulary: int, width: int, ffn: int, layers: int,
    heads: int, kv_heads: int, tied: bool = False, **more: Any,
) -> Architecture:
    fields = dict(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied, **more,
    )
    return Architecture(f"{family}ForCausalLM", f"{family}Config", fields, parameters)


_BASE: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "num_labels": 2,
}

# The encoders are those of the papers' experiments: sequence classifiers with two classes.
_ALL = {
    "llama-2-7b": _decoder(
        "Llama", 6_738_415_616, vocabulary=32_000, width=4096, ffn=11_008, layers=32, heads=32,
        kv_heads=32,
    ),
    "llama-2-13b": _decoder(
        "Llama", 13_015_864_320, vocabulary=32_000, width=5120, ffn=13_824, layers=40, heads=40,
        kv_heads=40,
    ),
    "llama-3-8b": _decoder(
        "Llama", 8_030_261_248, vocabulary=128_256, width=4096, ffn=14_336, layers=32, heads=32,
        kv_heads=8,
    ),
    "mistral-7b": _decoder(
        "Mistral", 7_241_732_096, vocabulary=32_000, width=4096, ffn=14_336, layers=32, heads=32,
        kv_heads=8,
    ),
    "gemma-7b": _decoder(
        "Gemma", 8_537_680_896, vocabulary=256_000, width=3072, ffn=24_576, layers=28, heads=16,
        kv_heads=16, tied=True, head_dim=256,
    ),
    # Without any head, pooler included.
    "mbert": Architecture(
        "BertModel", "BertConfig", dict(_BASE, vocab_size=119_547), 177_853_440,
    ),
    "roberta-base": Architecture(
        "RobertaForSequenceClassification", "RobertaConfig",
        dict(_BASE, vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1),
        124_647_170,
    ),
    "deberta-v3-base": Architecture(
        "DebertaV2ForSequenceClassification", "DebertaV2Config",
        dict(
            _BASE, vocab_size=128_100, max_position_embeddings=512, type_vocab_size=0,
            relative_attention=True, position_buckets=256, max_relative_positions=-1,
            norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"],
            position_biased_input=False, pooler_dropout=0, pooler_hidden_act="gelu",
        ),
        184_423_682,
    ),
}
ARCHITECTURES: tuple[str, ...] = tuple(_ALL)


def meta_model(name: str) -> Any:
    """A model of that architecture whose tensors have shapes and no values.

    Raises `UnknownNameError` for a name that is not in `ARCHITECTURES`.
    """
    if name not in _ALL:
        raise UnknownNameError("architecture", name, ARCHITECTURES)
    found, library = _ALL[name], transformers()
    config = getattr(library, found.config)(**found.fields)
    with quiet(), torch.device("meta"):
        return getattr(library, found.model)(config)
