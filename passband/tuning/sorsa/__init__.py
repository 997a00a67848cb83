"""SORSA: train the leading singular triples, with singular vectors kept nearly orthonormal."""
