"""SGMSE+: speech enhancement and dereverberation by a reverse diffusion (Richter et al., 2023)."""
