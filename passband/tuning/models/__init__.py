"""Models to adapt: small ones pretrained here, MiniLM, the user's own, and shapes without weights.

>>> model = pretrained_byte_lm("smoke")            # a fresh copy at each call
>>> model.save_pretrained("my-llama")
>>> own = load_model("my-llama", "causal-lm")      # any folder of transformers
>>> meta_model("llama-2-7b").num_parameters()
6738415616

Nothing of transformers is imported before a model is built.
"""

from passband.tuning.models.architectures import ARCHITECTURES, meta_model
from passband.tuning.models.byte_llama import bits_per_byte, byte_lm, pretrained_byte_lm
from passband.tuning.models.folders import (
    head_of,
    load_like,
    load_model,
    load_tokenizer,
    save_like,
)
from passband.tuning.models.sentences import (
    SentenceClassifier,
    mean_reciprocal_rank,
    minilm,
    minilm_tokenizer,
)
from passband.tuning.models.small_vit import digits_vit, pretrained_digits_vit

__all__ = [
    "ARCHITECTURES", "SentenceClassifier", "bits_per_byte", "byte_lm", "digits_vit", "head_of",
    "load_like", "load_model", "load_tokenizer", "mean_reciprocal_rank", "meta_model", "minilm",
    "minilm_tokenizer", "pretrained_byte_lm", "pretrained_digits_vit", "save_like",
]
