"""A recording of any length through a system, block by block: read, resample, process, write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from passband.bench.system import Monitor, now
from passband.data import audio
from passband.parts.signal.resample import resampled

BLOCK = 1 << 18  # samples that are read at once


def convert(
    path: Path,
    targets: Sequence[Path],
    rate: int,
    process: Callable[[Iterator[Tensor]], Iterable[Tensor]],
    monitor: Monitor | None = None,
) -> list[Path]:
    """Write one file for each output of `process`, with the input's rate, channels and length.

    rate     Hz of what `process` takes and gives
    process  blocks [C, n] -> pieces [K, C, n], as long in all as what came
    Logs `real_time_factor`: seconds of work for each second of sound.
    """
    about = audio.info(path)
    began, read = now(), 0

    def blocks() -> Iterator[Tensor]:
        nonlocal read
        for block in audio.blocks(path, BLOCK):
            yield torch.as_tensor(block)
            read += block.shape[-1]
            if monitor is not None:
                monitor.progress(read / about.frames, f"{read / about.sample_rate:.0f} s")

    pieces = process(resampled(blocks(), about.sample_rate, rate))
    pieces = resampled(pieces, rate, about.sample_rate)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(audio.Writer(target, about.sample_rate, about.channels))
            for target in targets
        ]
        written = 0
        for piece in pieces:
            # Resampling there and back may give a sample more than came, or one less.
            kept = piece[..., : about.frames - written]
            for writer, samples in zip(writers, kept, strict=True):
                writer.write(samples)
            written += kept.shape[-1]
        if written < about.frames:
            for writer in writers:
                writer.write(torch.zeros(about.channels, about.frames - written))
    if monitor is not None:
        spent = now() - began
        monitor.log(0, spent, real_time_factor=spent * about.sample_rate / about.frames)
    return list(targets)
