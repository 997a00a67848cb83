"""HiFi-GAN: the GAN vocoder that most later ones start from (Kong et al., NeurIPS 2020)."""
