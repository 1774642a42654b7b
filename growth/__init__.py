"""Growth as linear maps on the logical axes of a model."""

from growth.architecture import Architecture, LogicalTensor
from growth.between import between
from growth.box import Box
from growth.errors import GrowthError
from growth.evaluate.sources import MixCache
from growth.generations import Generations
from growth.plan import Plan, identity, initial

__all__ = [
    "Architecture",
    "Box",
    "Generations",
    "GrowthError",
    "LogicalTensor",
    "MixCache",
    "Plan",
    "between",
    "identity",
    "initial",
]
