"""Intruder dimensions: how a tuned model differs from its base, and how to repair it."""
