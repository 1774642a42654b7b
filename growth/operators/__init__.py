"""The operators, one module for each kind; importing this package registers them all."""

from growth.operators import dense, depth, ffn, heads, positions, vocab, width
from growth.operators.registry import AXES, OPERATORS, Operator, default

__all__ = ["AXES", "OPERATORS", "Operator", "default", "dense", "depth", "ffn", "heads", "positions", "vocab", "width"]
