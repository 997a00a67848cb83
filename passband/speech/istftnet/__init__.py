"""iSTFTNet: a mel vocoder that ends in a small inverse STFT (Kaneko et al., ICASSP 2022)."""
