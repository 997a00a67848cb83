"""Rooms with walls that reflect: impulse responses of boxes by image sources.

    h(t) = d0 sum over images i of beta^n_i / d_i  delta(t - (d_i - d0) / c)

d_i distance of image i [m], n_i how often its sound met a wall, d0 that of the source itself: the
direct sound comes at t = 0 with amplitude 1, so that the dry wave is what dereverberation should
give. beta is found such that the energy's decay has the wanted T60, not taken from a formula that
holds for diffuse fields only.

>>> box = Box(size=(6.0, 5.0, 3.0), source=(1.0, 1.5, 1.2), microphone=(4.0, 3.0, 1.5), t60=0.4)
>>> h = box.response(8000)
>>> h.shape, round(float(h[0]), 3)
((3200,), 1.0)

Source: J. B. Allen, D. A. Berkley: Image method for efficiently simulating small-room acoustics,
JASA 65 (1979); images shifted at random by some centimetres (here along the line to the
microphone) against the sweeping echoes of perfect boxes: E. De Sena et al., IEEE/ACM TASLP 23
(2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passband.data.cache import stored_tensors
from passband.errors import ConfigError

SPEED = 343.0  # of sound, m/s
FINE = 8  # parts of a sample, between which an arrival is shared
JITTER = 0.08  # m
Point = tuple[float, float, float]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """A source and a microphone in a room; metres from a corner, seconds.

    t60     time in which the sound falls by 60 dB
    jitter  largest shift of an image
    seed    of these shifts
    """

    size: Point
    source: Point
    microphone: Point
    t60: float
    jitter: float = JITTER
    seed: int = 0

    def __post_init__(self) -> None:
        for name, point in (("source", self.source), ("microphone", self.microphone)):
            if not all(0 < x < length for x, length in zip(point, self.size, strict=True)):
                raise ConfigError(
                    f"{name} at {point} in a room of {self.size}", expected="a point inside",
                )
        if not 0.05 <= self.t60 <= 3.0:
            raise ConfigError(f"t60 = {self.t60}", expected="0.05 to 3 s")
        if self.direct < 0.05:
            raise ConfigError(f"source and microphone {self.direct:.3f} m apart",
                              expected="5 cm or more")

    @property
    def direct(self) -> float:
        """Distance of source and microphone."""
        return float(np.linalg.norm(np.subtract(self.source, self.microphone)))

    def response(self, sample_rate: int) -> NDArray[np.float32]:
        """Impulse response [ceil(t60 sample_rate)], float32."""
        length = int(np.ceil(self.t60 * sample_rate))
        distance, order = self.images()
        late = (distance - self.direct) / SPEED
        walls = reflection(late, order, distance, self.t60) ** np.arange(order.max() + 1.0)
        weight = self.direct / distance * walls[order]
        at = late * (sample_rate * FINE)
        first = at.astype(np.int64)
        after = weight * (at - first)
        fine = np.bincount(first, weight - after, length * FINE + 1)
        fine += np.roll(np.bincount(first, after, length * FINE + 1), 1)
        fine = fine[:length * FINE]
        response = _without_bass(_decimate(fine.astype(np.float64))[:length], sample_rate)
        response[0] += 1.0  # the direct sound, on a sample
        return response.astype(np.float32)

    def images(self) -> tuple[Array, NDArray[np.int64]]:
        """Distances and reflection counts of the images within t60, the source itself left out."""
        rng = np.random.default_rng(self.seed)
        reach = self.direct + SPEED * self.t60
        axes = [
            _axis(x, m, length, reach) for x, m, length in
            zip(self.source, self.microphone, self.size, strict=True)
        ]
        (x, nx), (y, ny), (z, nz) = axes
        square = x[:, None, None] ** 2 + y[None, :, None] ** 2 + z[None, None, :] ** 2
        order = nx[:, None, None] + ny[None, :, None] + nz[None, None, :]
        near = (square < reach**2) & (order > 0)
        distance = np.sqrt(square[near])
        if self.jitter:
            distance += rng.uniform(-self.jitter, self.jitter, len(distance))
        # A shifted image is never nearer than the source: nothing comes before the direct sound.
        distance = np.maximum(distance, self.direct)
        return distance, order[near]


def _axis(source: float, microphone: float, length: float, reach: float) -> tuple[Array, Any]:
    """Along one axis: coordinates of all images from the microphone, and their reflections."""
    n = np.arange(-int(reach / (2 * length)) - 1, int(reach / (2 * length)) + 2)
    same, mirrored = 2 * n * length + source, 2 * n * length - source
    counts = np.concatenate([np.abs(2 * n), np.abs(2 * n - 1)])
    return np.concatenate([same, mirrored]) - microphone, counts


def reflection(late: Array, order: NDArray[np.int64], distance: Array, t60: float) -> float:
    """The factor of a wall with which the energy falls by 60 dB in `t60` seconds.

    The slope is that of the energy still to come, between 5 and 35 dB below the start.
    """
    bins = 200
    step = t60 / bins
    time = np.minimum((late / step).astype(np.int64), bins - 1)
    orders = int(order.max()) + 1
    # Energy by reflections and time, for walls that swallow nothing: beta only weighs its rows.
    table = np.bincount(order * bins + time, distance**-2.0, orders * bins).reshape(orders, bins)
    counts = np.arange(orders)
    low, high = 0.01, 0.9999
    for _ in range(30):
        beta = 0.5 * (low + high)
        if _decay(beta ** (2.0 * counts) @ table, step) > t60:
            high = beta
        else:
            low = beta
    return 0.5 * (low + high)


def _decay(energy: Array, step: float) -> float:
    """Seconds for 60 dB, from a straight line through -5 to -35 dB of Schroeder's integral."""
    left = np.cumsum(energy[::-1])[::-1]
    level = 10 * np.log10(np.maximum(left / left[0], 1e-12))
    part = np.flatnonzero((level <= -5) & (level >= -35))
    if len(part) < 2:
        return 0.0
    slope = np.polyfit(part * step, level[part], 1)[0]
    return float(-60.0 / slope)


def _without_bass(response: Array, sample_rate: int) -> Array:
    """High pass at 80 Hz: all images have the same sign, which no room's lowest tones have."""
    from scipy.signal import butter, sosfilt

    return np.asarray(sosfilt(butter(2, 80.0, "highpass", fs=sample_rate, output="sos"), response))


@cache
def _filter() -> Array:
    """Low pass at the Nyquist frequency of the coarse rate; gain 1 for an impulse on its grid."""
    half = 16 * FINE
    t = np.arange(-half, half + 1) / FINE
    window: Array = np.kaiser(2 * half + 1, 8.0)
    return np.sinc(t) * window


def _decimate(fine: Array) -> Array:
    from scipy.signal import fftconvolve

    kernel = _filter()
    whole = fftconvolve(fine, kernel)[len(kernel) // 2:]
    return np.asarray(whole[::FINE], dtype=np.float64)


class Rooms:
    """A bank of rooms, each with several places of a talker around one microphone.

    responses  [rooms, places, L]
    """

    def __init__(self, responses: NDArray[np.float32], sample_rate: int) -> None:
        self.responses, self.sample_rate = responses, sample_rate

    def __len__(self) -> int:
        return len(self.responses)

    def draw(self, rng: np.random.Generator, talkers: int = 1) -> list[NDArray[np.float32]]:
        """Responses of `talkers` different places in one room."""
        room = self.responses[int(rng.integers(len(self)))]
        if talkers > len(room):
            raise ConfigError(f"{talkers} talkers in rooms with {len(room)} places",
                              expected="no more talkers than places")
        return [room[i] for i in rng.permutation(len(room))[:talkers]]


def random_box(rng: np.random.Generator, t60: float, size: Point, microphone: Point) -> Box:
    """A talker half a metre or more from every wall and 1 to 3 m from the microphone."""
    for _ in range(200):
        place = rng.uniform(0.5, np.subtract(size, 0.5))
        place[2] = rng.uniform(1.0, min(1.9, size[2] - 0.3))
        apart = float(np.linalg.norm(place - np.asarray(microphone)))
        if 1.0 <= apart <= 3.0:
            break
    x, y, z = place.tolist()
    return Box(size, (x, y, z), microphone, t60, seed=int(rng.integers(2**31)))


@cache
def rooms(
    count: int, sample_rate: int, seed: int, *, places: int = 3,
    t60: tuple[float, float] = (0.3, 1.0), edge: tuple[float, float] = (5.0, 15.0),
    height: tuple[float, float] = (2.5, 5.0),
) -> Rooms:
    """Random rooms, made once and kept in the cache; lengths in m, times in s."""

    def make() -> dict[str, Any]:
        import torch

        longest = int(np.ceil(t60[1] * sample_rate))
        bank = np.zeros((count, places, longest), np.float32)
        for i in range(count):
            rng = np.random.default_rng([seed, i])
            size = (*rng.uniform(*edge, 2).tolist(), float(rng.uniform(*height)))
            middle = [rng.uniform(0.3, 0.7) * length for length in size[:2]]
            microphone = (*middle, float(rng.uniform(1.0, 1.8)))
            time = float(rng.uniform(*t60))
            for j in range(places):
                box = random_box(rng, time, size, microphone)  # type: ignore[arg-type]
                found = box.response(sample_rate)
                bank[i, j, :len(found)] = found
        return {"responses": torch.from_numpy(bank)}

    key = {"version": 1, "count": count, "rate": sample_rate, "seed": seed, "places": places,
           "t60": t60, "edge": edge, "height": height, "jitter": JITTER}
    return Rooms(stored_tensors("rooms", key, make)["responses"].numpy(), sample_rate)
