"""Random changes of image batches that leave the class as it is.

>>> crop_flip(torch.rand(5, 3, 32, 32)).shape
torch.Size([5, 3, 32, 32])
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from passband.errors import ConfigError

Augment = Callable[..., Tensor]


def crop_flip(
    x: Tensor, fill: Tensor | float = 0.0, *, pad: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Each image [C, H, W] of x [B, C, H, W] shifted by up to `pad` pixels, half of them mirrored.

    fill  of the border that comes in, a number or [1, C, 1, 1]: black, in normalised values
    pad   default: an eighth of the height, 4 pixels of 32
    Raises `ConfigError` for what is no batch of images.
    """
    if x.dim() != 4:
        raise ConfigError(
            f"augmentation of examples of shape {list(x.shape[1:])}",
            expected="images [channels, height, width]", mend="augment='none'",
        )
    n, _, height, width = x.shape
    pad = max(1, height // 8) if pad is None else pad
    padded = F.pad(x - fill, (pad, pad, pad, pad)) + fill
    shift = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator, device="cpu")
    flip = torch.rand(n, 1, generator=generator) < 0.5
    rows = shift[0] + torch.arange(height)  # [B, H]
    columns = torch.arange(width).expand(n, width)
    columns = shift[1] + torch.where(flip, columns.flip(1), columns)
    batch = torch.arange(n)[:, None, None]
    rows, columns = rows[:, :, None].to(x.device), columns[:, None, :].to(x.device)
    return padded[batch.to(x.device), :, rows, columns].permute(0, 3, 1, 2).contiguous()


def unchanged(x: Tensor, fill: Tensor | float = 0.0) -> Tensor:
    return x


AUGMENTATIONS: dict[str, Augment] = {"none": unchanged, "crop-flip": crop_flip}
"""Name -> function of (x, fill)."""
