"""The one exception of the algebra."""


class GrowthError(ValueError):
    """An impossible growth: names the axis, both sizes, and what could be done instead."""
