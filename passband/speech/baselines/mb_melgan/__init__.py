"""Multi-band MelGAN: a light GAN vocoder of four sub-bands (Yang et al., SLT 2021)."""
