"""BitFit: full fine-tuning of biases and norms alone; a card without code of its own."""
