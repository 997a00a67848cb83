"""Losses of waveforms and spectra, differentiable and averaged over the batch."""
