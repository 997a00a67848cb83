"""What the separators, enhancers and vocoders are compared with."""
