"""Signals in time and frequency: transforms, mel scales, compression, sample rates, levels."""
