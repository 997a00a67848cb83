"""Discriminators of waveforms, and what they and generators are trained by."""

from __future__ import annotations

from passband.parts.critics.losses import (
    HINGE,
    LEAST_SQUARES,
    Penalty,
    critic_loss,
    feature_matching,
    generator_loss,
)
from passband.parts.critics.opinion import Critic, Opinion
from passband.parts.critics.periods import MultiPeriod
from passband.parts.critics.resolutions import MultiResolution
from passband.parts.critics.scales import MultiScale

__all__ = [
    "HINGE", "LEAST_SQUARES", "Critic", "MultiPeriod", "MultiResolution", "MultiScale", "Opinion",
    "Penalty", "critic_loss", "feature_matching", "generator_loss",
]
