"""Fine-tuning: one algebra of weight edits, and methods on it.

Methods are used on any `nn.Module` in a loop of one's own (`passband.tuning.handle`), or through
the verb `adapt` of their systems.
"""
