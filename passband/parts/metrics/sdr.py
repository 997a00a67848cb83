"""Signal-to-distortion ratios in dB, batched, differentiable.

    SNR    = 10 log10 |s|^2 / |s - e|^2                          e estimate, s target [..., L]
    SI-SDR = 10 log10 |a s|^2 / |a s - e|^2,  a = <e, s> / |s|^2    the scale of e doesn't matter

>>> target = torch.randn(4, 2, 8_000)
>>> estimate = target + 0.1 * torch.randn(4, 2, 8_000)
>>> si_sdr(estimate, target).shape, bool((si_sdr(estimate, target) - 20).abs().max() < 1)
(torch.Size([4, 2]), True)

Source: Le Roux, Wisdom, Erdogan, Hershey, SDR - half-baked or well done?, ICASSP 2019,
arXiv 1811.02508.
"""

from __future__ import annotations

from torch import Tensor

from passband.parts.metrics.arrays import Signal, like, same_shape, tensors

EPS = 1e-8


def si_sdr(
    estimate: Signal, target: Signal, zero_mean: bool = True, eps: float = EPS
) -> Signal:
    """Scale-invariant signal-to-distortion ratio in dB: [..., L], [..., L] -> [...].

    >>> target = np.sin(np.arange(1000.0))
    >>> bool(si_sdr(0.3 * target + 0.1, target) > 90)        # neither level nor offset counts
    True

    zero_mean  subtract the mean over time of both first
    eps        energy added to that of the distortion, and ratio added to the ratio. So silence
               as an estimate gives -80 dB and a perfect copy 80 dB + that of its energy.

    Arrays are measured in double precision. Raises `DataError` for unequal shapes.
    """
    e, s = _prepared(estimate, target, zero_mean)
    scale = (e * s).sum(-1, keepdim=True) / (s.square().sum(-1, keepdim=True) + eps)
    return like(_ratio(scale * s, scale * s - e, eps), target)


def snr(estimate: Signal, target: Signal, zero_mean: bool = False, eps: float = EPS) -> Signal:
    """Signal-to-noise ratio in dB: [..., L], [..., L] -> [...].

    >>> float(snr(torch.tensor([1.1, -1.1]), torch.tensor([1.0, -1.0])).round(decimals=3))
    20.0

    Arguments and errors as for `si_sdr`; here the scale counts.
    """
    e, s = _prepared(estimate, target, zero_mean)
    return like(_ratio(s, s - e, eps), target)


def si_sdr_improvement(
    estimate: Signal, target: Signal, mixture: Signal, zero_mean: bool = True
) -> Signal:
    """How much nearer than the mixture the estimate is, SI-SDR in dB: -> [...].

    >>> voices, noise = torch.randn(2, 8_000), torch.randn(2, 8_000)
    >>> si_sdr_improvement(voices + 0.1 * noise, voices, voices.sum(0)).shape
    torch.Size([2])

    estimate, target  [..., L]
    mixture           [..., L], or without the axis of talkers: [B, L] beside [B, K, L]
    """
    mixed, s = tensors(mixture, target)
    if mixed.dim() == s.dim() - 1:
        mixed = mixed.unsqueeze(-2).expand_as(s)
    (e,) = tensors(estimate)
    return like(si_sdr(e, s, zero_mean) - si_sdr(mixed, s, zero_mean), target)


def _prepared(
    estimate: Signal, target: Signal, zero_mean: bool
) -> tuple[Tensor, Tensor]:
    e, s = tensors(estimate, target)
    same_shape(e, s)
    if zero_mean:
        e, s = e - e.mean(-1, keepdim=True), s - s.mean(-1, keepdim=True)
    return e, s


def _ratio(signal: Tensor, distortion: Tensor, eps: float) -> Tensor:
    energy = signal.square().sum(-1)
    return 10 * (energy / (distortion.square().sum(-1) + eps) + eps).log10()
