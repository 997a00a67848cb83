"""SGMSE+ as a system: configuration, training, and `enhance` for recordings of any length."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from passband.bench.loop import Outcome
from passband.bench.system import Config, Monitor
from passband.errors import ConfigError, PassbandError, PassbandWarning
from passband.parts.chunking import apply_chunked, overlapped
from passband.parts.diffusion import OUVE, SDE, VE, PredictorCorrector, ProbabilityFlow, Sampler
from passband.parts.diffusion.correctors import corrector
from passband.parts.diffusion.predictors import PREDICTORS
from passband.parts.ncsnpp import NCSNpp
from passband.speech.enhancer import Enhancer
from passband.speech.long import LongConfig
from passband.speech.sgmse.dcunet import DCUNet
from passband.speech.sgmse.model import (
    Inner,
    Inputs,
    Outer,
    ScaledScore,
    Scalings,
    ScoreModel,
    Skip,
    Weighting,
)
from passband.speech.sgmse.noise import NoiseField
from passband.speech.spectra import CompressedSpectra, peak
from passband.speech.trained import Run
from passband.speech.waveforms import Wave

if TYPE_CHECKING:
    from passband.data.speech.pairs import Example, Pairs

LOUDEST_NOISE = -10.0  # dB of SNR, median of the training data, below which training goes astray
LOOKED_AT = 32  # training segments of which the SNR is taken


class SGMSEConfig(LongConfig):
    """Defaults are the paper's."""

    seconds: float = Field(2.04, gt=0, le=60, description="of one training segment")
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; null: none")
    ema: float | None = Field(
        0.999, gt=0, lt=1, description="decay of averaged weights, which are then the ones kept"
    )
    batch_size: int = Field(8, gt=0, description="segments of a step")
    window: float = Field(8.0, gt=0, le=600, description="seconds that are processed at once")
    overlap: float = Field(1.0, gt=0, description="seconds that two windows share")
    windows_at_once: int = Field(
        1, ge=1, le=64, description="windows of a long recording in one batch: faster on a GPU, "
        "memory grows with it",
    )
    # representation
    n_fft: int = Field(510, ge=8, le=8192, description="samples of a transform")
    hop_length: int = Field(128, ge=1, description="samples from frame to frame")
    alpha: float = Field(0.5, gt=0, le=1, description="exponent of magnitudes")
    beta: float = Field(0.15, gt=0, description="factor of compressed magnitudes")
    padding: Literal["zeros", "reflect"] = Field(
        "zeros", description="what fills frames up to the multiple that the network needs"
    )
    # network
    backbone: Literal["ncsnpp", "ncsnpp_48k", "ncsnpp_v2", "dcunet"] = Field(
        "ncsnpp", description="ncsnpp_48k: without pyramids; ncsnpp_v2: with factors of t"
    )
    width: int = Field(128, ge=4, description="ncsnpp: channels at the top")
    multipliers: tuple[int, ...] = Field(
        (1, 1, 2, 2, 2, 2, 2), min_length=1, description="ncsnpp: of the width, level by level"
    )
    blocks: int = Field(2, ge=1, description="ncsnpp: residual blocks a level")
    attention: tuple[int, ...] = Field((16,), description="ncsnpp: heights in bins")
    architecture: str = Field(
        "dcunet-20", description="dcunet: dcunet-10, dcunet-16, dcunet-20 or dilated"
    )
    scale: float = Field(1.0, gt=0, description="dcunet: of all widths")
    norm: Literal["complex", "parts"] = Field("complex", description="dcunet: batch normalisation")
    # ncsnpp_v2
    aim: Literal["score", "denoiser"] = Field("score", description="ncsnpp_v2: what is estimated")
    weighting: Weighting = Field("1", description="ncsnpp_v2: of the denoiser's error")
    c_in: Inputs = Field("1", description="ncsnpp_v2: factor of the inputs")
    inner: Inner = Field("1/sigma", description="ncsnpp_v2: factor of the network's output")
    c_skip: Skip = Field("0", description="ncsnpp_v2: factor of x_t in the result")
    c_out: Outer = Field("1", description="ncsnpp_v2: factor of the output in the result")
    sigma_data: float = Field(0.1, gt=0, description="ncsnpp_v2: spread of the data, for edm")
    # process
    process: Literal["ouve", "ve"] = Field(
        "ouve", description="ouve: drifts towards the noisy speech; ve: no drift, from pure noise"
    )
    theta: float = Field(1.5, ge=0, description="stiffness of the drift")
    sigma_min: float = Field(0.05, gt=0, description="noise at the clean end")
    sigma_max: float = Field(0.5, gt=0, description="noise at the noisy end")
    t_eps: float = Field(0.03, gt=0, lt=1, description="smallest time of training and sampling")
    # sampler
    sampler: Literal["pc", "ode"] = Field(
        "pc", description="pc: predictor and corrector; ode: probability flow, no noise on the way"
    )
    predictor: Literal["reverse_diffusion", "euler_maruyama", "none"] = Field(
        "reverse_diffusion", description="pc: the step back in time"
    )
    corrector: Literal["annealed_langevin", "langevin", "none"] = Field(
        "annealed_langevin", description="pc: the step that stays at a time"
    )
    reverse_steps: int = Field(30, ge=1, le=10_000, description="pc: N")
    corrector_steps: int = Field(1, ge=0, le=100, description="pc: a step of the predictor")
    r: float = Field(0.5, gt=0, le=10, description="pc: the corrector's signal-to-noise ratio")
    tolerance: float = Field(1e-5, gt=0, lt=1, description="ode: relative and absolute")
    validation_files: int = Field(20, ge=1, description="recordings enhanced for `select`")

    @model_validator(mode="after")
    def _fits(self) -> SGMSEConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min:g} is below sigma_max {self.sigma_max:g}")
        if self.hop_length > self.n_fft // 2:
            raise ValueError(f"hop_length {self.hop_length} is at most half of n_fft {self.n_fft}")
        if self.predictor == "none" and (self.corrector == "none" or not self.corrector_steps):
            raise ValueError("a sampler has a predictor or a corrector")
        try:
            with torch.device("meta"):
                BACKBONES[self.backbone](self)
        except PassbandError as error:
            raise ValueError(f"{error.what}: {error.expected}") from None
        return self

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1

    def sizes(self) -> tuple[int, int]:
        """As `LongConfig`, in whole frames: those of two windows then fall on each other."""
        frame = self.hop_length
        window, hop = (max(1, samples // frame) * frame for samples in super().sizes())
        return window, hop


def _ncsnpp(c: SGMSEConfig, **settings: Any) -> NCSNpp:
    return NCSNpp(
        c.bins, 4, 2, c.width, c.multipliers, c.blocks, c.attention, **settings
    )


def _dcunet(c: SGMSEConfig) -> DCUNet:
    network = DCUNet(c.architecture, scale=c.scale, norm=c.norm)
    if not network.takes(c.bins):
        raise ConfigError(
            f"n_fft {c.n_fft} with {c.architecture}",
            expected=f"a multiple of {2 * network.strides[0]} that is large enough, such as 512",
        )
    return network


BACKBONES: dict[str, Callable[[SGMSEConfig], nn.Module]] = {
    "ncsnpp": _ncsnpp,
    "ncsnpp_48k": lambda c: _ncsnpp(c, pyramids=False, divide="after"),
    "ncsnpp_v2": lambda c: _ncsnpp(c, divide="never"),
    "dcunet": _dcunet,
}

_PAPER: dict[str, Any] = {"batch_size": 32, "steps": 64_000, "select": "highest pesq"}
# A transform of a quarter of the size gives a quarter of the magnitudes, half when compressed.
_NARROW: dict[str, Any] = {
    "sample_rate": 8000, "n_fft": 126, "hop_length": 32, "beta": 0.3, "seconds": 63 * 32 / 8000,
    "width": 24, "multipliers": (1, 2, 2, 2), "blocks": 1, "lr": 2e-3, "schedule": "cosine",
    "batch_size": 1, "ema": 0.995, "steps": 1200,
}
# Factors of t after Karras et al.: runs of minutes end above the noisy input with them alone.
_SMALL: dict[str, Any] = {
    **_NARROW, "backbone": "ncsnpp_v2", "aim": "denoiser", "weighting": "edm", "c_in": "edm",
    "inner": "1", "c_skip": "edm", "c_out": "edm", "sigma_data": 0.2,
}
_TINY: dict[str, Any] = {**_SMALL, "width": 16, "multipliers": (1, 2, 2), "steps": 2400}


class SGMSE(Enhancer):
    """Speech enhancement and dereverberation by sampling clean speech given the noisy one.

    >>> system = create("sgmse", preset="smoke")
    >>> noisy = np.sin(np.arange(4000) / 10).astype(np.float32)
    >>> system.enhance(noisy, sample_rate=8000).shape
    (4000,)
    >>> bool(system.enhance(np.zeros(4000, np.float32)).any())       # silence stays silence
    False
    """

    Config: ClassVar[type[Config]] = SGMSEConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _PAPER,
        "dereverb": {**_PAPER, "reverse_steps": 50, "r": 0.33},
        "48k": {
            **_PAPER, "backbone": "ncsnpp_48k", "sample_rate": 48_000, "n_fft": 1534,
            "hop_length": 384, "alpha": 0.667, "beta": 0.065, "sigma_min": 0.1, "sigma_max": 1.0,
            "theta": 2.0, "attention": (), "padding": "reflect",
        },
        "v2": {**_PAPER, "backbone": "ncsnpp_v2", "padding": "reflect"},
        "dcunet": {**_PAPER, "backbone": "dcunet", "n_fft": 512},
        "small": _SMALL,
        "small-dcunet": {
            **_NARROW, "backbone": "dcunet", "n_fft": 128, "architecture": "dcunet-10",
            "scale": 0.78,
        },
        "tiny": _TINY,
        "smoke": {**_TINY, "reverse_steps": 3, "steps": 20},
    }

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        c = self.config
        self.spectra = CompressedSpectra(c.n_fft, c.hop_length, c.alpha, c.beta)

    # ---- network and training ----------------------------------------------------------------

    def build(self) -> ScoreModel:
        c = self.config
        network = BACKBONES[c.backbone](c)
        if c.backbone == "ncsnpp_v2":
            scalings = Scalings(c.c_in, c.inner, c.c_skip, c.c_out, c.sigma_data)
            return ScaledScore(network, self.process_of(), scalings, c.aim, c.weighting)
        return ScoreModel(network, self.process_of(), takes_complex=c.backbone == "dcunet")

    def process_of(self) -> SDE:
        """The configured diffusion process."""
        c = self.config
        if c.process == "ve":
            return VE(c.sigma_min, c.sigma_max)
        return OUVE(c.theta, c.sigma_min, c.sigma_max)

    @property
    def segment(self) -> int:
        """Samples of a training segment, in whole frames."""
        hop = self.config.hop_length
        return max(1, super().segment // hop) * hop

    def learn(self, network: nn.Module, pairs: Pairs, run: Run) -> Outcome:
        self._warn_of_loud_noise(pairs)
        return super().learn(network, pairs, run)

    def objective(self, module: Any, batch: Example) -> Tensor:
        clean, noisy = self._spectra_of(batch)
        t_eps = self.config.t_eps
        t = t_eps + (1 - t_eps) * torch.rand(len(noisy), device=noisy.device)
        losses: Tensor = module.loss(clean, noisy, t, torch.randn_like(clean))
        return losses.mean()

    def _spectra_of(self, batch: Example) -> tuple[Tensor, Tensor]:
        """Clean and noisy, both divided by the largest magnitude of the noisy one."""
        spectra, level = self.spectra.to(batch.input.device), peak(batch.input)
        return spectra.analyse(batch.target, level), spectra.analyse(batch.input, level)

    def validate(self, module: Any, pairs: Pairs) -> Mapping[str, float]:
        """Figures of the first recordings, enhanced with the whole sampler: pesq, si_sdr, ..."""
        from passband.data.speech.pairs import Fixed
        from passband.speech.scores import enhancement

        chosen = range(min(self.config.validation_files, len(pairs)))
        return enhancement(self, Fixed([pairs[i] for i in chosen], pairs.sample_rate))

    def _warn_of_loud_noise(self, pairs: Pairs) -> None:
        segments, rng = pairs.segments(self.segment), np.random.default_rng(0)
        ratios = []
        for i in range(min(LOOKED_AT, len(segments))):
            noisy, clean = segments.draw(i, rng)
            energy = [float(x.double().square().sum()) + 1e-12 for x in (clean, noisy - clean)]
            ratios.append(10 * np.log10(energy[0] / energy[1]))
        if np.median(ratios) < LOUDEST_NOISE:
            warnings.warn(
                f"half of the training pairs have an SNR below {np.median(ratios):.0f} dB: below "
                f"about {LOUDEST_NOISE:.0f} dB training is known not to converge, and results are "
                "several times too loud; 0 to 20 dB is advised",
                PassbandWarning, stacklevel=4,
            )

    # ---- enhance -----------------------------------------------------------------------------

    def sampler(self, reverse_steps: int | None = None) -> Sampler:
        """The configured sampler, with another number of steps if one is given."""
        c = self.config
        if c.sampler == "ode":
            return ProbabilityFlow(self.process_of(), c.t_eps, c.tolerance, c.tolerance)
        return PredictorCorrector(
            self.process_of(), PREDICTORS[c.predictor](),
            corrector(c.corrector, c.r, c.corrector_steps),
            c.reverse_steps if reverse_steps is None else reverse_steps, c.t_eps,
        )

    def enhance(
        self, wave: Any, sample_rate: int | None = None, *, seed: int | None = None,
        reverse_steps: int | None = None,
    ) -> Any:
        """[L] -> [L], or [C, L] -> [C, L] channel by channel, as the array type that came.

        sample_rate    of the wave, in Hz; another one than the network's is resampled and back
        seed           of the noise; default: the system's. The same seed gives the same result,
                       in whatever batches and windows
        reverse_steps  N in place of the configured one
        Silence comes back as silence. Raises `DataError` for bad input, `ConfigError` for N < 1.
        """
        given = Wave.of(wave, sample_rate, self.config.sample_rate)
        pieces = self._enhanced(
            [given.samples], peak(given.samples), self.sampler(reverse_steps), self._field(seed)
        )
        return given.back(torch.cat(list(pieces), dim=-1))

    def process(self, noisy: Tensor) -> Tensor:
        return self._window(
            noisy, peak(noisy), [0] * len(noisy), self.sampler(), self._field(None)
        )

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """Write NAME.wav, of the recording's own rate and length.

        Recordings of any length pass in blocks, twice: their peak is needed first. Logs the
        real-time factor.
        """
        from passband.speech.files import convert

        level = self._peak_of(path)
        return convert(
            path, [out / f"{path.stem}.wav"], self.config.sample_rate,
            lambda blocks: (
                y[None] for y in self._enhanced(blocks, level, self.sampler(), self._field(None))
            ),
            monitor,
        )

    def _peak_of(self, path: Path) -> Tensor:
        from passband.data import audio
        from passband.parts.signal.resample import resampled
        from passband.speech.files import BLOCK

        blocks = (torch.as_tensor(block) for block in audio.blocks(path, BLOCK))
        rates = audio.info(path).sample_rate, self.config.sample_rate
        found = [x.abs().amax(-1) for x in resampled(blocks, *rates) if x.shape[-1]]
        return peak(torch.stack(found, dim=-1))

    def _field(self, seed: int | None) -> NoiseField:
        return NoiseField(self.seed if seed is None else seed, self.config.bins)

    def _enhanced(
        self, blocks: Iterable[Tensor], level: Tensor, sampler: Sampler, field: NoiseField
    ) -> Iterator[Tensor]:
        """Blocks [C, n] of a recording with peaks [C] -> pieces of its result, in order."""
        window, hop = self.config.sizes()
        held: list[Tensor] = []
        blocks = iter(blocks)
        for block in blocks:
            held.append(block)
            if sum(x.shape[-1] for x in held) > window:
                break
        else:  # short enough for one go, without any padding to a window
            x = torch.cat(held, dim=-1)
            yield self._computed(x, level, [0] * len(x), sampler, field)
            return
        several, number = self.config.windows_at_once, count()

        def together(x: Tensor) -> Tensor:
            """[C, several windows] -> the same, all windows of it in one batch."""
            first = next(number) * several
            windows = x.unfold(-1, window, hop).flatten(0, 1)
            starts = [(first + i) * hop // self.config.hop_length for i in range(several)] * len(x)
            levels = level.repeat_interleave(several)
            done = self._computed(windows, levels, starts, sampler, field)
            turns = iter(done.unflatten(0, (len(x), several)).unbind(1))
            return apply_chunked(
                x, lambda _: next(turns), window=window, hop=hop, fade=self.config.fade
            )

        yield from overlapped(
            chain(held, blocks), together, window=window + (several - 1) * hop,
            hop=several * hop, fade=self.config.fade,
        )

    def _computed(
        self, noisy: Tensor, level: Tensor, starts: Sequence[int], sampler: Sampler,
        field: NoiseField,
    ) -> Tensor:
        found: Tensor = self.compute(
            lambda x, peaks: self._window(x, peaks, starts, sampler, field), noisy, level
        )
        return found

    def _window(
        self, noisy: Tensor, level: Tensor, starts: Sequence[int], sampler: Sampler,
        field: NoiseField,
    ) -> Tensor:
        """noisy [B, L] with peaks [B], beginning at frames `starts` [B] -> [B, L]."""
        out = torch.zeros_like(noisy)
        sounding = noisy.abs().amax(-1) > 0
        if not bool(sounding.any()):
            return out
        module: Any = self.network
        spectra, level = self.spectra.to(noisy.device), level[sounding]
        y = spectra.analyse(noisy[sounding], level)
        frames = y.shape[-1]
        y = padded(y, -frames % module.network.multiple, self.config.padding)
        chosen = [start for start, on in zip(starts, sounding.tolist(), strict=True) if on]
        x = sampler(module, y, field.at(chosen))[..., :frames]
        out[sounding] = spectra.synthesise(x, level, noisy.shape[-1])
        return out


def padded(spectrum: Tensor, frames: int, mode: str) -> Tensor:
    """[..., T] -> [..., T + frames], with zeros or with the last frames in reverse order.

    >>> padded(torch.tensor([[1.0, 2.0, 3.0]]), 2, "reflect")
    tensor([[1., 2., 3., 2., 1.]])
    """
    if mode == "zeros":
        return torch.nn.functional.pad(spectrum, (0, frames))
    given = spectrum.shape[-1]
    place = torch.arange(given + frames, device=spectrum.device) % max(2 * (given - 1), 1)
    return spectrum[..., torch.minimum(place, 2 * (given - 1) - place)]
