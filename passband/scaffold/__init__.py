"""Templates of `passband new`: a room that works and is to be replaced piece by piece.

`line/` serves families without tasks of their own (it brings one); a family with tasks has a
folder of its own name here.
"""
