"""GP-HM: high-frequency and multi-scale PDEs with Gaussian processes (Fang et al., ICLR 2024)."""
