"""The operators, one module for each kind; importing this package registers them all."""

from growth.operators import depth, heads, vocab, width
from growth.operators.registry import AXES, OPERATORS, Operator

__all__ = ["AXES", "OPERATORS", "Operator", "depth", "heads", "vocab", "width"]
