"""Physics-informed networks: plain, with a weighted boundary, with random Fourier features."""
