"""The kinds of layers of the families here: attention and an MLP, or one of the two alone, each with its norm before it
and its residual branch."""

KINDS = ("layer", "attention", "mlp")
ATTENTION, MLP = ("layer", "attention"), ("layer", "mlp")
"""The kinds that have attention, and those that have an MLP."""
