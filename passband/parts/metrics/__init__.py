"""How good a waveform is: one measure a file, batched where the measure allows it."""
