"""What the sections of a curriculum have in common."""

from pydantic import ConfigDict


class Section:
    """A section of a curriculum. An unknown key is an error, never ignored; so is a number that is infinite or NaN."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
