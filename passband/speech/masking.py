"""Enhancers whose network estimates a complex mask of the noisy spectrum.

    class Mine(MaskEnhancer):
        Config = MineConfig                     # a MaskConfig
        def build(self): return Network(self.config.width)

The network has `frames`, a `CoveredSTFT`. For noisy [B, L] and lengths [B] it gives the wave
[B, L], with `whole` the wave, the mask and the noisy spectrum, both complex [B, F, T].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from passband.bench.system import Config
from passband.parts.losses.ratio_mask import mask_error, ratio_mask
from passband.parts.metrics.sdr import si_sdr
from passband.parts.signal.levels import normalised
from passband.speech.enhancer import Enhancer
from passband.speech.long import LongConfig

if TYPE_CHECKING:
    from passband.data.speech.pairs import Example, Pairs


class MaskConfig(LongConfig):
    """What networks of masks are trained for."""

    loss: Literal["joint", "si-snr", "mask"] = Field(
        "joint", description="of mask and wave together, or of one of them"
    )
    mask_weight: float | None = Field(
        None, ge=0, description="of the mask's error against dB of SI-SNR; null: the values of a "
        "frame, two for each bin"
    )
    level: float = Field(-25.0, ge=-80, le=0, description="active level of the input, dB")


class MaskEnhancer(Enhancer):
    """Loss w (error of the complex ratio mask) - SI-SNR, input at one active level."""

    Config: ClassVar[type[Config]] = MaskConfig

    def objective(self, module: Any, batch: Example) -> tuple[Tensor, Mapping[str, Tensor]]:
        c = self.config
        noisy, factor = normalised(batch.input, c.level)
        # One factor for both: each its own would change the mask between them.
        ratio, error, bins = self._found(module, noisy, factor * batch.target)
        weight = 2 * bins if c.mask_weight is None else c.mask_weight
        terms = {"mask": weight * error, "si-snr": -ratio}
        loss = terms["mask"] + terms["si-snr"] if c.loss == "joint" else terms[c.loss]
        return loss, {"mask_error": error.detach(), "si_snr": ratio.detach()}

    def validate(self, module: Any, pairs: Pairs) -> Mapping[str, float]:
        """{"si_snr": dB, "mask_error"}, means over whole recordings."""
        values = []
        for i in range(len(pairs)):
            noisy, clean = (x[None] for x in pairs[i])
            noisy, factor = normalised(noisy, self.config.level)
            ratio, error, _ = self._found(module, noisy, factor * clean)
            values.append((float(ratio), float(error)))
        ratios, errors = zip(*values, strict=True)
        return {"si_snr": sum(ratios) / len(ratios), "mask_error": sum(errors) / len(errors)}

    def _found(self, module: Any, noisy: Tensor, clean: Tensor) -> tuple[Tensor, Tensor, int]:
        """Mean SI-SNR in dB, error of the mask, and how many bins there are."""
        wave, mask, spectrum = module(noisy, whole=True)
        error = mask_error(mask, ratio_mask(self.network.frames(clean), spectrum))
        return si_sdr(wave, clean, zero_mean=False).mean(), error, mask.shape[-2]

    def process(self, noisy: Tensor) -> Tensor:
        """[B, L] -> [B, L]. Zeros after the end of a recording enter no level and no pool."""
        positions = torch.arange(1, noisy.shape[-1] + 1, device=noisy.device)
        lengths = ((noisy != 0) * positions).amax(-1).clamp_min(1)
        heard = noisy[:, : int(lengths.max())]
        factor = torch.stack([
            normalised(x[:n], self.config.level)[1]
            for x, n in zip(heard, lengths.tolist(), strict=True)
        ])
        out = self.network(factor * heard, lengths) / factor
        return F.pad(out, (0, noisy.shape[-1] - heard.shape[-1]))
