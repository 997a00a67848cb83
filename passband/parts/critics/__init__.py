"""Discriminators of waveforms, and what they and generators are trained by."""

from __future__ import annotations

from passband.parts.critics.losses import critic_loss, feature_matching, generator_loss
from passband.parts.critics.opinion import Critic, Opinion
from passband.parts.critics.periods import MultiPeriod
from passband.parts.critics.scales import MultiScale

__all__ = [
    "Critic", "MultiPeriod", "MultiScale", "Opinion", "critic_loss", "feature_matching",
    "generator_loss",
]
