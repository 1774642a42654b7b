"""The kinds of values that keys have, and how a command line writes those that are no plain number or word."""

from typing import Annotated, Any

import tyro
import yaml
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from growth.family import names
from pretrain.config import reading

# Numbers have a largest value: without it a typing error would show as a lack of memory.
Positive = Annotated[int, Field(gt=0, le=10**18)]
Count = Annotated[int, Field(ge=0, le=10**18)]
Tokens = Annotated[int, Field(ge=0, le=10**30)]
Size = Annotated[int, Field(gt=0, le=1 << 24)]
Layers = Annotated[int, Field(gt=0, le=1 << 14)]
Ranks = Annotated[int, Field(gt=0, le=1 << 20)]
Derived = Annotated[int, Field(ge=0, le=1 << 24)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _known_family(name: str) -> str:
    if name not in names():
        raise PydanticCustomError("family", "should be one of {names}", {"names": ", ".join(names())})
    return name


FamilyName = Annotated[str, AfterValidator(_known_family)]
Operator = Annotated[
    str | dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME|{operator: NAME, OPTION: VALUE}",
        instance_from_str=lambda words: reading.parse(words[0]),
        is_instance=lambda value: isinstance(value, (str, dict)),
        str_from_instance=lambda value: [value if isinstance(value, str) else yaml.safe_dump(value).strip()],
    ),
]
Candidates = Annotated[
    tuple[dict[str, Any], ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="[{KEY: VALUE}, ...]",
        instance_from_str=lambda words: tuple(reading.parse(words[0])),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [yaml.safe_dump(list(value), default_flow_style=True).strip()],
    ),
]
