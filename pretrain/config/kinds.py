"""The kinds of values that keys have, and how a command line writes those that are no plain number or word."""

from typing import Annotated, Any, Literal

import tyro
import yaml
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from growth.family import names
from pretrain.config import reading
from pretrain.config.orders import KINDS

# Numbers have a largest value: without it a typing error would show as a lack of memory.
Positive = Annotated[int, Field(gt=0, le=10**18)]
Count = Annotated[int, Field(ge=0, le=10**18)]
Tokens = Annotated[int, Field(ge=0, le=10**30)]
Size = Annotated[int, Field(gt=0, le=1 << 24)]
MOST_LAYERS = 1 << 14
Layers = Annotated[int, Field(gt=0, le=MOST_LAYERS)]
Ranks = Annotated[int, Field(gt=0, le=1 << 20)]
Derived = Annotated[int, Field(ge=0, le=1 << 24)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _known_family(name: str) -> str:
    if name not in names():
        raise PydanticCustomError("family", "should be one of {names}", {"names": ", ".join(names())})
    return name


def _order(order: str | dict[str, int] | None) -> str | dict[str, int] | None:
    if isinstance(order, str) and (not order or set(order) == set(KINDS)):
        return order
    if order is None or (isinstance(order, dict) and len(order) == 1 and order.get("par", 2) >= 2):
        return order
    form = "one of sandwich: k, par: p from 2 on, or a word of s (attention) and f (MLP), such as ssfsff"
    raise PydanticCustomError("order", "should be {form}", {"form": form})


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
Order = Annotated[
    str | dict[Literal["sandwich", "par"], Annotated[int, Field(ge=0, le=MOST_LAYERS)]] | None,
    AfterValidator(_order),
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="None|{sandwich: K}|{par: P}|LETTERS",
        instance_from_str=lambda words: reading.parse(words[0].replace("None", "null")),
        is_instance=lambda value: value is None or isinstance(value, (str, dict)),
        str_from_instance=lambda value: [value if isinstance(value, str) else yaml.safe_dump(value).split("\n")[0]],
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
