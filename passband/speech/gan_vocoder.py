"""Vocoders that learn against discriminators: what HiFi-GAN and its descendants have in common.

    class Mine(GANVocoder):
        Config = MineConfig                       # a GANVocoderConfig
        def build(self): return Network(...)      # a MelNetwork: mel [B, M, T] -> wave [B, T hop]

    L_D = sum (1 - D(y))^2 + D(G)^2
    L_G = a sum (1 - D(G))^2 + f feature matching + m L1(log-mel(y), log-mel(G))

Per step the discriminators first, on a wave without gradient, then the generator against their new
weights. The loss's mel spectrogram reaches half the sample rate. Other discriminators, penalties
and distances: override `build_critics`, `penalty`, `critic_weights` and `distance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from passband.bench.loop import LoopConfig, Outcome, Stage
from passband.bench.optim import build_optimizer
from passband.bench.streams import Streams
from passband.bench.system import Config
from passband.errors import CheckpointError, ConfigError
from passband.parts.critics import (
    LEAST_SQUARES,
    MultiPeriod,
    MultiScale,
    Opinion,
    Penalty,
    critic_loss,
    feature_matching,
    generator_loss,
)
from passband.parts.losses.spectral import LogMelL1
from passband.parts.mel_upsampler import LARGE, LIGHT, Blocks, fused
from passband.parts.signal.mel import LogMel
from passband.speech.frame_stream import FrameStream, in_pieces
from passband.speech.given_mels import GivenMels, recordings_of
from passband.speech.published import read_weights
from passband.speech.trained import Run
from passband.speech.vocoder import Vocoder, VocoderConfig, read_mel

if TYPE_CHECKING:
    from passband.data.speech.pairs import Pairs, Segments

SEGMENT = 8192  # samples of a training segment in the papers
BLOCKS: dict[str, Blocks] = {"large": LARGE, "light": LIGHT}
# How the generator and the discriminators are trained: by HiFi-GAN's code, and by iSTFTNet's paper.
HIFIGAN: dict[str, Any] = {
    "optimizer": "adamw", "lr": 2e-4, "betas": (0.8, 0.99), "weight_decay": 0.01,
    "lr_decay": 0.999, "batch_size": 16, "steps": 2_500_000, "seconds": SEGMENT / 22_050,
}
ISTFTNET: dict[str, Any] = HIFIGAN | {
    "optimizer": "adam", "betas": (0.5, 0.9), "weight_decay": 0.0, "lr_decay": 1.0,
}

# What learns on two cores in minutes, and in seconds: the same for all that are compared.
SMALL: dict[str, Any] = {
    "channels": 64, "seconds": 4096 / 22_050, "batch_size": 4, "critic_width": 1 / 16,
    "steps": 400, "lr": 1e-3,
}
SMOKE: dict[str, Any] = {
    "channels": 32, "seconds": 2048 / 22_050, "batch_size": 2, "critic_width": 1 / 32,
    "steps": 10, "lr": 2e-3,
}


class MelNetwork(Protocol):
    """A generator in two parts: what has weights, and how its output becomes a wave.

    around  frames of mel before and after a piece that its samples depend on
    """

    @property
    def around(self) -> tuple[int, int]: ...

    def __call__(self, mel: Tensor) -> Tensor: ...

    def features(self, mel: Tensor) -> Tensor: ...

    def finish(self, hidden: Tensor) -> Tensor: ...


class AdversarialConfig(VocoderConfig):
    """Discriminators, the weights of the losses, and use; a network's own fields follow."""

    seconds: float = Field(
        SEGMENT / 22_050, gt=0, le=60, description="of a training segment, rounded to whole frames"
    )
    optimizer: str = Field("adamw", description="of the loop's, for both players")
    lr: float = Field(2e-4, gt=0, description="first learning rate, of both players")
    betas: tuple[float, float] = Field((0.8, 0.99), description="Adam's decay rates, in [0, 1)")
    weight_decay: float = Field(0.01, ge=0, description="of the optimiser")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; null: none")
    lr_decay: float = Field(
        0.999, gt=0, le=1, description="lr is multiplied by this every epoch; 1: `schedule` rules"
    )

    win_length: int | None = Field(
        None, gt=0, description="samples of the analysis window; null: n_fft"
    )
    critic_width: float = Field(1.0, gt=0, le=4, description="of the discriminators' channels")
    mel_weight: float = Field(45.0, ge=0, description="of the log-mel loss")
    feature_weight: float = Field(2.0, ge=0, description="of feature matching")
    adversarial_weight: float = Field(1.0, ge=0, description="of the adversarial loss")
    critic_start: int = Field(
        0, ge=0, description="steps of the generator alone, before there are discriminators"
    )
    pretrained: str | None = Field(
        None, description="weights to start from: a saved system or a published .pt checkpoint"
    )
    mels: str | None = Field(
        None, description="folder of NAME.npy mels to fine-tune on, one for each recording NAME"
    )
    keep_critics: bool = Field(
        False, description="save the discriminators too, so that `pretrained` goes on with them"
    )
    chunk: int = Field(512, gt=0, description="frames that are vocoded at once")
    inference: Literal["float32", "bf16"] = Field(
        "float32", description="arithmetic of the convolutions when vocoding; bf16 is about 1.7 "
        "times as fast on CPUs that have it, 50 dB below the signal off"
    )


class GANVocoderConfig(AdversarialConfig):
    """A network that up-samples as HiFi-GAN's does."""

    channels: int = Field(512, gt=0, description="of the first layer, halved at every stage")
    rates: tuple[int, ...] = Field((8, 8), description="of the up-sampling stages")
    kernels: tuple[int, ...] | None = Field(
        None, description="of the up-sampling layers; null: twice the rate, 3 for a rate of 1"
    )
    blocks: Literal["large", "light"] = Field(
        "large", description="residual blocks: large (V1, V2: kernels 3, 7, 11) or light (V3)"
    )
    initial: Literal["normal", "default"] = Field(
        "default", description="first weights: torch's, or normal: N(0, 0.01) as the papers say"
    )

    @field_validator("rates", "kernels")
    @classmethod
    def _positive(cls, values: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if values is not None and (not values or min(values) < 1):
            raise ValueError("whole numbers above 0, at least one")
        return values


class GANVocoder(Vocoder):
    """Base of the rooms. A subclass gives `build`."""

    Config: ClassVar[type[Config]] = AdversarialConfig
    penalty: Penalty = LEAST_SQUARES

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._critics: nn.ModuleList | None = None
        self._fused: tuple[Any, MelNetwork] | None = None

    def log_mel(self) -> LogMel:
        c = self.config
        window = c.win_length or c.n_fft
        return LogMel(c.sample_rate, c.n_fft, c.hop_length, window, c.n_mels, c.fmin, c.fmax)

    @property
    def segment(self) -> int:
        hop = self.config.hop_length
        return max(1, round(self.config.seconds * self.config.sample_rate / hop)) * hop

    # ---- what a method may change ----------------------------------------------------------

    def build_critics(self) -> Sequence[nn.Module]:
        """Fresh discriminators, `parts.critics.Critic` each."""
        width = self.config.critic_width
        return [MultiPeriod(width=width), MultiScale(width=width)]

    def critic_weights(self) -> Sequence[float] | None:
        """Of all their sub-discriminators in turn; None: 1 each."""
        return None

    def distance(
        self, wave: Tensor, made: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What the generator lowers besides what the discriminators say, and values to log.

        wave, made  [B, L], the recording's and the generator's
        hidden      what the network made its wave of
        """
        found = self._mel_loss.to(wave.device)(made.float(), wave)
        return self.config.mel_weight * found, {"mel": found.detach()}

    # ---- learning --------------------------------------------------------------------------

    def learn(self, network: nn.Module, pairs: Pairs, run: Run) -> Outcome:
        c = self.config
        critics = self._critics = self._new_critics()
        if c.pretrained:
            self._start_from(c.pretrained, network, critics)
        data = self._segments(pairs)
        self._mel_loss = self._loss_spectrum()
        self._condition = self.log_mel()
        epoch = len(data) / min(c.batch_size, len(data))  # steps
        config = self.loop_config()
        if c.lr_decay < 1:
            config = self.loop_config(schedule="step", drop=c.lr_decay, drop_every=epoch)
        players = {"generator": network, "critic": critics}
        valid = None if run.valid is None else run.valid.at(c.sample_rate)
        validate = None
        if c.select != "last" and valid is not None:
            def validate(players: Any) -> Mapping[str, float]:
                return self.validate(players["generator"], valid)
        outcome = run.train(
            players, None, data, config, step=self._step, validate=validate,
            optimizer={n: build_optimizer(p.parameters(), config) for n, p in players.items()},
        )
        critics.eval()
        return outcome

    def _segments(self, pairs: Pairs) -> Segments:
        c = self.config
        if c.mels:
            frames = self.segment // c.hop_length
            return GivenMels(
                recordings_of(pairs, c.sample_rate), c.mels, self._read, hop=c.hop_length,
                frames=frames,
            )
        return pairs.segments(self.segment)

    def _read(self, path: Path) -> Tensor:
        mel = torch.from_numpy(read_mel(path))
        self._check(mel)
        return mel

    def _step(self, stage: Stage, batch: Any) -> Mapping[str, Any]:
        """One turn of both players on waves [B, L], with their mels where those were given."""
        given, wave = batch
        mel = given if given.ndim == 3 else self._condition.to(wave.device)(wave)
        generator, critics = stage.module["generator"], stage.module["critic"]
        hidden = generator.features(mel)
        fake = generator.finish(hidden)
        if stage.iteration < self.config.critic_start:
            distance, values = self.distance(wave, fake, hidden)
            nothing = torch.zeros_like(distance)
            silent = dict.fromkeys(("critic", "adversarial", "features"), nothing)
            return {"loss": stage.update(distance, "generator"), **silent, **values}

        # One pass over both halves: the weights' norms are computed once.
        both = [_halves(o, len(wave)) for o in _judged(critics, torch.cat([wave, fake.detach()]))]
        weights = self.critic_weights()
        critic = stage.update(
            critic_loss([a for a, _ in both], [b for _, b in both], self.penalty, weights),
            "critic",
        )

        c = self.config
        with _frozen(critics), parametrize.cached():
            with torch.no_grad():
                real = _judged(critics, wave) if c.feature_weight else []
            opinions = _judged(critics, fake)
            adversarial = generator_loss(opinions, self.penalty, weights)
            features = adversarial.new_zeros(())
            if real:
                features = feature_matching(real, opinions, weight=1.0, weights=weights)
            distance, values = self.distance(wave, fake, hidden)
            loss = stage.update(
                c.adversarial_weight * adversarial + c.feature_weight * features + distance,
                "generator",
            )
        return {
            "loss": loss, "critic": critic, "adversarial": adversarial.detach(),
            "features": features.detach(), **values,
        }

    def validate(self, module: Any, pairs: Pairs) -> Mapping[str, float]:
        """`mel`: log-mel L1 of whole validation recordings."""
        device = next(module.parameters()).device
        loss, analysis = self._loss_spectrum().to(device), self.log_mel().to(device)
        distances = []
        with torch.no_grad():
            for example in pairs:
                wave = example.input.to(device)[None]
                made = module(analysis(wave))
                length = min(made.shape[-1], wave.shape[-1])
                distances.append(float(loss(made[:, :length], wave[:, :length])))
        return {"mel": sum(distances) / max(1, len(distances))}

    def _loss_spectrum(self) -> LogMelL1:
        c = self.config
        return LogMelL1(c.sample_rate, c.n_fft, c.hop_length, c.win_length, c.n_mels, c.fmin)

    def _new_critics(self) -> nn.ModuleList:
        with torch.random.fork_rng(devices=[]):
            # A place of their own in the stream of first weights, beside the generator's.
            torch.default_generator.manual_seed(Streams(self.seed).init.torch_seed(1))
            return nn.ModuleList(self.build_critics())

    def _start_from(self, path: str, network: nn.Module, critics: nn.ModuleList) -> None:
        found = read_weights(path)
        players = {"": network, "critics.": critics}
        given = {name for name in found if name.startswith("critics.")}
        for prefix, module in players.items():
            part = {
                n.removeprefix(prefix): t for n, t in found.items() if (n in given) == bool(prefix)
            }
            if prefix and not part:
                continue
            try:
                module.load_state_dict(part)
            except RuntimeError as error:
                raise CheckpointError(
                    f"the weights of {path} don't fit: {str(error).splitlines()[1].strip()}",
                    expected="a checkpoint of the same variant",
                    mend="take its preset, and its channels, rates and kernels",
                ) from None

    def loop_config(self, **changes: Any) -> LoopConfig:
        c = self.config
        if c.lr_decay < 1 and c.schedule != "constant":
            raise ConfigError(
                f"schedule = {c.schedule!r} together with lr_decay = {c.lr_decay:g}",
                expected="one of them", mend="set lr_decay=1, or schedule='constant'",
            )
        return super().loop_config(**changes)

    # ---- vocoding --------------------------------------------------------------------------

    def process(self, mel: Tensor) -> Tensor:
        return in_pieces(self.stream(), mel, self.config.chunk)

    def stream(self) -> FrameStream:
        """Vocode while frames arrive; samples come `after` frames late.

        >>> from passband import create
        >>> stream = create("istftnet", preset="smoke").stream()
        >>> state = stream.start(batch=1)
        >>> samples, state = stream.push(torch.randn(1, 80, 30), state)
        >>> samples.shape[-1] == (30 - stream.after) * 256
        True
        >>> stream.finish(state).shape[-1] == stream.after * 256
        True
        """
        net = self._plain()
        before, after = net.around
        return FrameStream(self._infer(net), self.config.hop_length, before, after)

    def _infer(self, net: MelNetwork) -> Any:
        reduced = self.config.inference == "bf16"

        def infer(mel: Tensor) -> Tensor:
            with torch.no_grad():
                if not reduced:
                    return net(mel)
                with torch.autocast(mel.device.type, torch.bfloat16):
                    hidden = net.features(mel)
                return net.finish(hidden.float())

        return infer

    def _plain(self) -> MelNetwork:
        """The network with plain weights, folded anew when the learned ones have moved."""
        now = [(id(p), p._version) for p in self.network.parameters()]
        if self._fused is None or self._fused[0] != now:
            self._fused = now, fused(self.network)
        return self._fused[1]

    # ---- state -----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        kept = dict(super().state())
        if self.config.keep_critics and self._critics is not None:
            kept |= {f"critics.{name}": t for name, t in self._critics.state_dict().items()}
        return kept

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        critics = {n: a for n, a in state.items() if n.startswith("critics.")}
        super().load_state({n: a for n, a in state.items() if n not in critics}, extra)
        if critics:
            self._critics = self._new_critics()
            self._critics.load_state_dict({
                n.removeprefix("critics."): torch.as_tensor(a) for n, a in critics.items()
            })
            self._critics.eval()


def _judged(critics: Any, wave: Tensor) -> list[Opinion]:
    return [opinion for critic in critics for opinion in critic(wave)]


def _halves(opinion: Opinion, count: int) -> tuple[Opinion, Opinion]:
    """Of a batch whose first `count` waves are recordings; features are not asked for here."""
    return Opinion(opinion.score[:count], []), Opinion(opinion.score[count:], [])


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Without gradients for its weights: the generator's turn needs them for its wave alone."""
    for p in module.parameters():
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in module.parameters():
            p.requires_grad_(True)
