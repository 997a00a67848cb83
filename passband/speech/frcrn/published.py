"""The names of the released weights, FRCRN_SE_16K of ClearerVoice-Studio, in ours.

>>> theirs = {"unet2.fsmn_dec3.fsmn_im_L1.linear.bias": torch.zeros(128)}
>>> list(renamed(theirs))
['unets.1.after.3.imaginary.inner.bias']
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from passband.data.tensor_files import read_tensors
from passband.errors import CheckpointError

NAMES = tuple((re.compile(theirs), ours) for theirs, ours in (
    (r"^(model\.|module\.)*", ""),
    (r"^unet2\.", "unets.1."),
    (r"^unet\.", "unets.0."),
    (r"\bencoder(\d+)\.", r"encoders.\1."),
    (r"\bdecoder(\d+)\.", r"decoders.\1."),
    (r"\bfsmn_enc(\d+)\.(fsmn_(re|im))_L1", r"before.\1.\2"),
    (r"\bfsmn_dec(\d+)\.(fsmn_(re|im))_L1", r"after.\1.\2"),
    (r"\bfsmn\.(fsmn_(re|im))_L1", r"memories.0.\1"),
    (r"\bfsmn\.(fsmn_(re|im))_L2", r"memories.1.\1"),
    (r"\bse_layer_enc(\d+)\.", r"skip_attention.\1."),
    (r"\bse_layer_dec(\d+)\.", r"attention.\1."),
    (r"\blinear\.conv_", "last.conv_"),
    (r"\b(conv|transconv)\.t?conv_", "conv."),
    (r"\bbn\.bn_", "norm."),
    (r"\b(conv_|fc_|fsmn_)(?=re?\b|im?\b)", ""),
    (r"\b(r|re)\b", "real"),
    (r"\b(i|im)\b", "imaginary"),
    (r"\blinear\.(?=weight|bias)", "inner."),
    (r"\bconv1\.weight$", "taps"),
))
# The transform, which is fixed, and the same layers a second time, as members of lists.
DROPPED = re.compile(
    r"^(model\.|module\.)*(i?stft\.|unet2?\.(encoders|decoders|fsmn_(enc|dec)|se_layers_\w+)\.)"
)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released weights by the names of `FRCRN(spare=True)`, two U-Nets, in its shapes."""
    found = {}
    for name, tensor in state.items():
        if DROPPED.match(name):
            continue
        for theirs, ours in NAMES:
            name = theirs.sub(ours, name)
        # Their filter is a kernel [C, 1, K, 1], the oldest element first.
        found[name] = tensor[:, 0, :, 0].flip(1) if name.endswith(".taps") else tensor
    return found


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a released file (.pt, .bin or .safetensors), by our names; no code is run.

    Raises `CheckpointError` for files that hold anything else.
    """
    state = read_tensors(path)
    for key in ("model", "state_dict"):
        inner = state.get(key) if isinstance(state, dict) else None
        state = inner if isinstance(inner, dict) else state
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path} holds no tensors by name", expected="a state dict")
    return renamed(state)
