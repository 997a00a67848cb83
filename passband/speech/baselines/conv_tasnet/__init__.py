"""Conv-TasNet: separation in a learned basis of short frames, by dilated convolutions."""
