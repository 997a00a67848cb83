"""Building blocks shared by systems: plain torch and numpy, no knowledge of systems or engine."""
