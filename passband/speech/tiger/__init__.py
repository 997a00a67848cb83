"""TIGER: speech separation by interleaved attention over bands and frames (Xu et al., 2025)."""
