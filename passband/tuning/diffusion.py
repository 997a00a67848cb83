"""A small class-conditional diffusion model of 8x8 images: what generators are fine-tuned on here.

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e,   e ~ N(0, I),   t = 1 ... T         (forward)
    loss = |e - e_theta(x_t, t, c)|^2                                           (epsilon target)
    a_t  = cos^2(pi/2 (t/T + 0.008) / 1.008), normalised to a_0 = 1             (cosine schedule)

x [B, 1, 8, 8] in [-1, 1], t [B] int64 in 1 ... T, c [B] int64 class. Sources: Ho, Jain, Abbeel,
NeurIPS 2020, arXiv 2006.11239; Nichol, Dhariwal, ICML 2021, 2102.09672 (schedule); Song, Meng,
Ermon, ICLR 2021, 2010.02502 (DDIM).

>>> model = UNet(width=8)
>>> diffusion = Diffusion(steps=100)
>>> loss = diffusion.loss(model, torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))
>>> diffusion.ddim(model, torch.tensor([3, 7]), steps=2, seed=0).shape
torch.Size([2, 1, 8, 8])
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import DataError

# ---- the network ---------------------------------------------------------------------------


class UNet(nn.Module):
    """Predicts the noise in x. Width 32 has about half a million parameters.

    width  channels at 8x8; twice as many at 4x4
    """

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.width, wide, embedded = width, 2 * width, 4 * width
        self.time = nn.Sequential(
            nn.Linear(width, embedded), nn.SiLU(), nn.Linear(embedded, embedded)
        )
        self.classes = nn.Embedding(classes, embedded)
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.fine = Residual(width, width, embedded)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.coarse = Residual(width, wide, embedded)
        self.coarse_block = Block(wide)
        self.middle = Residual(wide, wide, embedded)
        self.middle_block = Block(wide)
        self.back = Residual(2 * wide, wide, embedded)
        self.back_block = Block(wide)
        self.up = nn.Conv2d(wide, width, 3, padding=1)
        self.finish = Residual(2 * width, width, embedded)
        self.norm = nn.GroupNorm(_groups(width), width)
        self.leave = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        e = F.silu(self.time(_sinusoids(t, self.width)) + self.classes(c))  # [B, 4 width]
        fine = self.fine(self.enter(x), e)  # [B, width, 8, 8]
        coarse = self.coarse_block(self.coarse(self.down(fine), e))  # [B, 2 width, 4, 4]
        h = self.middle_block(self.middle(coarse, e))
        h = self.back_block(self.back(torch.cat([h, coarse], 1), e))
        h = self.up(F.interpolate(h, scale_factor=2.0))  # [B, width, 8, 8]
        h = self.finish(torch.cat([h, fine], 1), e)
        return self.leave(F.silu(self.norm(h)))


class Residual(nn.Module):
    """x + conv(conv(x) + W e), each after norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, embedded: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_groups(inputs), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.embed = nn.Linear(embedded, outputs)
        self.norm2 = nn.GroupNorm(_groups(outputs), outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.embed(e)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Block(nn.Module):
    """A transformer block over the pixels: attention, then a two-layer network."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).mT  # [B, H W, D]
        h = self.norm1(pixels)
        q, k, v = (
            layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, H W, D / heads]
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        pixels = pixels + self.out(mixed)
        pixels = pixels + self.fc2(F.gelu(self.fc1(self.norm2(pixels))))
        return pixels.mT.reshape(x.shape)


def _groups(channels: int) -> int:
    return math.gcd(8, channels)


def _sinusoids(t: Tensor, width: int) -> Tensor:
    """[B] -> [B, width]."""
    rates = torch.exp(torch.arange(width // 2, device=t.device) * (-math.log(1e4) / (width // 2)))
    angles = t.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


# ---- the process ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Diffusion:
    """Noise in `steps` steps, and two ways back."""

    steps: int = 100

    def signal(self, t: Tensor) -> Tensor:
        """a_t [...] for t = 0 ... steps: the share of the variance that is signal."""
        turn = (t.double() / self.steps + 0.008) / 1.008 * (math.pi / 2)
        start = math.cos(0.008 / 1.008 * math.pi / 2)
        return (turn.cos() / start).square().clamp(1e-5, 1.0)

    def loss(
        self, model: nn.Module, x: Tensor, c: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Mean squared error of the predicted noise at random t; scalar."""
        t = torch.randint(1, self.steps + 1, (len(x),), generator=generator).to(x.device)
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        return F.mse_loss(model(self.noised(x, t, noise), t, c), noise)

    def noised(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t [B, 1, H, W]."""
        a = self.signal(t).to(x.dtype)[:, None, None, None]
        return a.sqrt() * x + (1 - a).sqrt() * noise

    def ddim(self, model: nn.Module, c: Tensor, *, steps: int = 20, seed: int = 0) -> Tensor:
        """Images [B, 1, 8, 8] of the classes c [B], deterministic from noise on."""
        times = torch.linspace(self.steps, 0, steps + 1).round().long()
        return self._sample(model, c, times, eta=0.0, seed=seed)

    def ancestral(self, model: nn.Module, c: Tensor, *, seed: int = 0) -> Tensor:
        """Images [B, 1, 8, 8] of the classes c [B], by all steps of the reverse chain (DDPM)."""
        return self._sample(model, c, torch.arange(self.steps, -1, -1), eta=1.0, seed=seed)

    @torch.no_grad()
    def _sample(
        self, model: nn.Module, c: Tensor, times: Tensor, *, eta: float, seed: int
    ) -> Tensor:
        """DDIM at the given falling times; eta = 1 over all of them is the ancestral sampler."""
        if c.ndim != 1 or not len(c):
            raise DataError(
                f"classes of shape {tuple(c.shape)}", expected="[B], one class for each image"
            )
        generator = torch.Generator().manual_seed(seed)
        shape = (len(c), 1, 8, 8)
        x = torch.randn(shape, generator=generator).to(c.device)
        signals = self.signal(times).tolist()
        for i, t in enumerate(times[:-1].tolist()):
            a, b = signals[i], signals[i + 1]  # b: one step nearer to the image
            noise = model(x, torch.full_like(c, t), c)
            clean = ((x - math.sqrt(1 - a) * noise) / math.sqrt(a)).clamp(-1, 1)
            noise = (x - math.sqrt(a) * clean) / math.sqrt(1 - a)
            sigma = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
            x = math.sqrt(b) * clean + math.sqrt(max(0.0, 1 - b - sigma**2)) * noise
            if sigma > 0:
                x = x + sigma * torch.randn(shape, generator=generator).to(c.device)
        return x
