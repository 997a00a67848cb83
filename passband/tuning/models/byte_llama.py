"""A Llama of bytes, 857,216 parameters, pretrained on docstrings of the standard library.

>>> model = byte_lm()
>>> model.num_parameters()
857216
>>> model = pretrained_byte_lm("smoke")
>>> held_out = docstrings(SMOKE_MODULES).bytes("test")
>>> bits_per_byte(model, held_out, limit=50) < bits_per_byte(byte_lm(), held_out, limit=50)
True

The pretrained one is what the family's language jobs start from: small enough that a fine-tuning
takes seconds on one core, good enough to have something to forget.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.data.cache import stored_tensors
from passband.data.text import Windows, docstrings, random_windows
from passband.errors import UnknownNameError
from passband.parts.pretraining import pretrain
from passband.tuning.models.library import quiet, seeded, transformers, versions

SMOKE_MODULES = 60  # of the standard library: parsed in under a second


def byte_lm(
    width: int = 128, ffn: int = 344, layers: int = 4, heads: int = 4,
    kv_heads: int | None = None, *, seed: int = 0,
) -> Any:
    """`LlamaForCausalLM` over the 256 bytes, untied, with fresh weights drawn by `seed`.

    kv_heads  heads of keys and values; fewer than `heads` is grouped-query attention
    """
    library = transformers()
    config = library.LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads or heads,
        max_position_embeddings=1024, tie_word_embeddings=False, use_cache=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )
    with quiet(), seeded(seed):
        return library.LlamaForCausalLM(config)


@dataclass(frozen=True)
class Recipe:
    """Shape and pretraining of a byte LM; `modules`: how much of the standard library."""

    width: int = 128
    ffn: int = 344
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    steps: int = 400
    batch_size: int = 32
    length: int = 64
    lr: float = 2e-3
    warmup: int = 20
    modules: int | None = None
    seed: int = 0

    def model(self) -> Any:
        return byte_lm(
            self.width, self.ffn, self.layers, self.heads, self.kv_heads, seed=self.seed
        )


RECIPES = {
    "small": Recipe(),
    "gqa": Recipe(kv_heads=2),
    "smoke": Recipe(width=64, ffn=172, layers=2, steps=40, batch_size=16, lr=8e-3, warmup=4,
                    modules=SMOKE_MODULES),
}


def pretrained_byte_lm(preset: str = "small") -> Any:
    """A fresh copy of the byte LM pretrained on `docstrings()`, in evaluation mode.

    preset  "small" (857,216 parameters), "gqa" (the same with 2 heads of keys and values) or
            "smoke" (2 blocks of width 64, 40 steps)

    Pretrained at the first call, 1 to 2 minutes on one core (smoke: seconds), then read from the
    cache. Raises `UnknownNameError`.
    """
    if preset not in RECIPES:
        raise UnknownNameError("byte LM", preset, RECIPES)
    recipe = RECIPES[preset]
    model = recipe.model()
    key = {
        "version": 1, **asdict(recipe), "data": docstrings(recipe.modules).fingerprint,
        **versions(),
    }
    model.load_state_dict(stored_tensors("byte-lm", key, lambda: _pretrained(recipe)))
    return model.eval()


def _pretrained(recipe: Recipe) -> dict[str, Tensor]:
    model = recipe.model()
    data = docstrings(recipe.modules).bytes("train")
    count = recipe.steps * recipe.batch_size
    batches = iter(random_windows(data, count, recipe.length, recipe.seed).split(recipe.batch_size))

    def loss() -> Tensor:
        ids = next(batches)
        logits = model(input_ids=ids).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    pretrain(model, loss, steps=recipe.steps, lr=recipe.lr, warmup=recipe.warmup)
    return dict(model.state_dict())


@torch.no_grad()
def bits_per_byte(
    model: nn.Module, data: Tensor, *, length: int = 64, batch_size: int = 64,
    limit: int | None = None,
) -> float:
    """Mean of -log2 p(byte | the bytes of its window before it); lower is better.

    data   bytes [N] uint8; each byte but the first is predicted once, in windows of `length`
    limit  at most so many windows, evenly spaced over the data
    Raises `DataError` for less than one window.
    """
    windows = Windows(data, length)
    count = len(windows) if limit is None else min(limit, len(windows))
    chosen = [i * len(windows) // count for i in range(count)]
    training, total = model.training, 0.0
    model.eval()
    try:
        for start in range(0, count, batch_size):
            ids = torch.stack([windows[i][0] for i in chosen[start : start + batch_size]])
            ids = ids.to(next(model.parameters()).device)
            logits = model(input_ids=ids).logits[:, :-1].float()
            total += float(
                F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
            )
    finally:
        model.train(training)
    return total / (count * (length - 1)) / math.log(2)
