"""Empirical risk minimisation: the mean of the domains' risks, no penalty."""

from __future__ import annotations

from passband.dynamics.domains import DomainClassifier


class Erm(DomainClassifier):
    """
    >>> system = Erm.from_preset("smoke")
    """
