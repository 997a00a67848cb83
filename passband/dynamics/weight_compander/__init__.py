"""Weight compander: a bounded curve between what is stored and what is used as a weight."""
