"""CorDA: low-rank factors from a decomposition that looks at the layer's inputs."""
