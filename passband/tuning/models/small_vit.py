"""A vision transformer of 202,186 parameters for 8x8 digits.

>>> digits_vit().num_parameters()
202186
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from passband.data.cache import stored_tensors
from passband.data.digits import RARE, Digits, biased, digits
from passband.errors import UnknownNameError
from passband.parts.pretraining import pretrain
from passband.tuning.models.library import quiet, seeded, transformers, versions

STEPS, SMOKE_STEPS, BATCH, LR, WARMUP = 300, 60, 32, 2e-3, 5
# Of fresh weights, about width^-1/2. The usual 0.02 suits widths near 1000; here it would cost most
# of the 300 steps.
SPREAD = 0.1


def digits_vit(*, seed: int = 0) -> Any:
    """`ViTForImageClassification` with patches of 2x2, fresh weights drawn by `seed`.

    pixel_values [N, 1, 8, 8] -> logits [N, 10]. Without dropout.
    """
    library = transformers()
    config = library.ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256,
        image_size=8, patch_size=2, num_channels=1, num_labels=10,
        initializer_range=SPREAD, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with quiet(), seeded(seed):
        return library.ViTForImageClassification(config)


def _upright() -> Digits:
    return digits().train


def _biased() -> Digits:
    return biased(digits().train, keep=RARE, noise=0.3, seed=0)


KINDS: dict[str, Callable[[], Digits]] = {"upright": _upright, "biased": _biased}


def pretrained_digits_vit(kind: str = "upright", *, smoke: bool = False) -> Any:
    """A fresh copy of the transformer pretrained on 1,197 digits, in evaluation mode.

    kind   "upright": clean labels; "biased": 30 % of the labels are wrong, and classes 5 to 9
           have a fifth of their images
    smoke  60 steps in place of 300

    Trained at the first call, about ten seconds, then read from the cache. Raises
    `UnknownNameError`.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of digits", kind, KINDS)
    data, steps = KINDS[kind](), SMOKE_STEPS if smoke else STEPS
    key = {
        "version": 2, "kind": kind, "spread": SPREAD, "steps": steps, "batch": BATCH, "lr": LR,
        "warmup": WARMUP, "data": digits().fingerprint, **versions(),
    }
    model = digits_vit()
    model.load_state_dict(stored_tensors("digits-vit", key, lambda: _pretrained(data, steps)))
    return model.eval()


def _pretrained(data: Digits, steps: int) -> dict[str, Tensor]:
    model = digits_vit()
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        index = torch.randint(len(data), (BATCH,), generator=generator)
        logits = model(pixel_values=data.images[index]).logits
        return F.cross_entropy(logits, data.labels[index])

    pretrain(model, loss, steps=steps, lr=LR, warmup=WARMUP)
    return dict(model.state_dict())
