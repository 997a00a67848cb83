"""Recordings of any length, in windows at constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from passband.parts.chunking import Align, Process, overlapped
from passband.speech.trained import SpeechConfig


class LongConfig(SpeechConfig):
    """What is longer than a window is cut into windows that overlap and are cross-faded."""

    window: float = Field(12.0, gt=0, le=600, description="seconds that are processed at once")
    overlap: float = Field(2.0, gt=0, description="seconds that two windows share")
    fade: Literal["linear", "hann", "centre"] = Field(
        "linear", description="how windows go over into each other; centre: a cut in the middle"
    )

    @model_validator(mode="after")
    def _overlap_is_shorter(self) -> LongConfig:
        if self.overlap > self.window / 2:
            raise ValueError(f"overlap {self.overlap:g} is at most half of window {self.window:g}")
        return self

    def sizes(self) -> tuple[int, int]:
        """Samples of a window, and from one to the next."""
        window = round(self.window * self.sample_rate)
        return window, max(1, window - round(self.overlap * self.sample_rate))

    def in_windows(
        self, blocks: Iterable[Tensor], process: Process, align: Align | None = None
    ) -> Iterator[Tensor]:
        """Blocks [C, n] of one recording -> pieces [..., n'], as long in all.

        What fits into one window is processed as it is: the zeros that would fill the window
        would enter the statistics of networks that see all of what they get.
        """
        window, hop = self.sizes()
        blocks, start, count = iter(blocks), [], 0
        for block in blocks:
            start.append(block)
            count += block.shape[-1]
            if count > window:
                break
        if 0 < count <= window:
            yield process(torch.cat(start, dim=-1))
        else:
            yield from overlapped(
                chain(start, blocks), process, window=window, hop=hop, fade=self.fade, align=align
            )
