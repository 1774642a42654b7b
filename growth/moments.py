"""What a growth event does with Adam's moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from growth.errors import GrowthError


@dataclass(frozen=True, slots=True)
class Moments:
    """What becomes of Adam's moments, of old elements and of new ones that are made of old ones: "transform" (as
    their gradients), "copy" (as they are) or "reset" (zero, and counted as the newest generation).

    Raises GrowthError for any other word, and where old moments are reset but new ones are not.
    """

    old: Literal["transform", "copy", "reset"] = "transform"
    new: Literal["transform", "copy", "reset"] = "reset"

    def __post_init__(self) -> None:
        for region, value in (("old", self.old), ("new", self.new)):
            if value not in ("transform", "copy", "reset"):
                raise GrowthError(f"moments: {region} is {value!r}: choose transform, copy or reset")
        if self.old == "reset" and self.new != "reset":
            raise GrowthError("moments: new ones cannot be kept where old ones are reset; reset both")


DEFAULT_MOMENTS = Moments()
