"""BSRNN: band-split recurrent separation, with the bands and masks of TIGER."""
