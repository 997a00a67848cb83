"""Vocos: a GAN vocoder whose layers all run at the rate of frames (Siuzdak, ICLR 2024)."""
