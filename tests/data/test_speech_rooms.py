"""Image sources against geometry done by hand, and the reverberation time that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from passband.data.speech.rooms import SPEED, Box, Rooms, reflection, rooms
from passband.errors import ConfigError

RATE = 16_000


def box(**changes: object) -> Box:
    values = {"size": (6.0, 5.0, 3.0), "source": (1.0, 1.5, 1.2), "microphone": (4.0, 3.0, 1.5),
              "t60": 0.4, "jitter": 0.0} | changes
    return Box(**values)  # type: ignore[arg-type]


def test_the_first_reflections_are_mirrors_in_the_six_walls() -> None:
    room = box()
    distance, order = room.images()
    mirrored = []
    for axis in range(3):
        for wall in (0.0, room.size[axis]):
            image = np.array(room.source)
            image[axis] = 2 * wall - image[axis]
            mirrored.append(np.linalg.norm(image - np.array(room.microphone)))
    np.testing.assert_allclose(np.sort(distance[order == 1]), np.sort(mirrored), rtol=1e-12)
    # One wall, one edge, ...: the lattice has (2 n^2 + 1) 2 images of order n, all within reach.
    assert [int((order == n).sum()) for n in (1, 2, 3)] == [6, 18, 38]


def test_all_images_within_reach_are_there() -> None:
    """As many as fit into the sphere: one image a room volume."""
    room = box(t60=0.5)
    distance, _ = room.images()
    reach = room.direct + SPEED * room.t60
    expected = 4 / 3 * np.pi * reach**3 / np.prod(room.size)
    assert len(distance) == pytest.approx(expected, rel=0.02)


def test_an_early_reflection_arrives_in_time_and_strength() -> None:
    """Source and microphone by the floor of a high hall: the floor's echo stands alone."""
    room = box(size=(40.0, 40.0, 40.0), source=(20.0, 20.0, 2.0), microphone=(21.0, 20.0, 2.0),
               t60=0.2)
    h = room.response(RATE)
    late = (np.sqrt(1 + 16) - 1) / SPEED
    distance, order = room.images()
    assert h[0] == pytest.approx(1.0, abs=1e-3)
    window = slice(round(late * RATE) - 8, round(late * RATE) + 9)
    t = np.arange(len(h))[window] / RATE
    shape = np.sinc((t - late) * RATE)
    amplitude = float(h[window] @ shape)
    # beta / d by the distances' ratio; the high pass takes a few per cent.
    beta = reflection((distance - room.direct) / SPEED, order, distance, room.t60)
    assert amplitude == pytest.approx(beta / np.sqrt(17), rel=0.1)
    np.testing.assert_allclose(h[window], amplitude * shape, atol=0.1 * abs(amplitude))


@pytest.mark.parametrize("t60", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("size", [(5.0, 6.0, 2.5), (12.0, 8.0, 4.0)])
def test_the_decay_has_the_wanted_reverberation_time(t60: float, size: tuple[float, ...]) -> None:
    """Schroeder's integral of the response itself, between -5 and -30 dB."""
    h = box(size=size, t60=t60, jitter=0.08).response(8000).astype(float)
    left = np.cumsum((h**2)[:0:-1])[::-1]
    level = 10 * np.log10(left / left[0])
    part = np.flatnonzero((level < -5) & (level > -30))
    seconds = -60 / np.polyfit(part / 8000, level[part], 1)[0]
    assert seconds == pytest.approx(t60, rel=0.15)


def test_nothing_comes_before_the_direct_sound_and_rates_agree() -> None:
    room = box(jitter=0.08)
    high, low = room.response(16_000), room.response(8000)
    assert high[0] == pytest.approx(1.0, abs=0.02)
    assert np.abs(high[1:8]).max() < 0.05  # the floor's echo is a millisecond away
    spectra = [np.abs(np.fft.rfft(h, 16 * 4096 * k)[: 4096 * 3]) for h, k in ((high, 2), (low, 1))]
    np.testing.assert_allclose(spectra[0], spectra[1], rtol=0.1, atol=0.05 * spectra[0].max())


def test_the_bank_is_drawn_from_without_giving_one_place_twice() -> None:
    bank = rooms(2, 8000, 7, places=2, t60=(0.2, 0.3), edge=(4.0, 5.0))
    assert isinstance(bank, Rooms)
    assert bank.responses.shape == (2, 2, 2400)
    first, second = bank.draw(np.random.default_rng(0), 2)
    assert not np.array_equal(first, second)
    with pytest.raises(ConfigError, match="3 talkers"):
        bank.draw(np.random.default_rng(0), 3)


@pytest.mark.parametrize("wrong", [
    {"source": (7.0, 1.0, 1.0)}, {"microphone": (0.0, 1.0, 1.0)}, {"t60": 0.0}, {"t60": 9.0},
    {"source": (4.0, 3.0, 1.49)},
])
def test_impossible_rooms(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        box(**wrong)
