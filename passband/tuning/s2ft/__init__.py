"""S2FT: fine-tuning a few attention heads and feed-forward channels as dense blocks."""
