"""Fish: the gradients of any two domains are to point the same way."""
