"""A network from noisy to clean spectra without any diffusion."""
