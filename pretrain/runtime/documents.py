"""Documents that others may have written: JSON read strictly, and checked against a type before anything uses it."""

import json
import math
import reprlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pretrain.errors import UserError

DEEPEST = 64  # the most levels of lists and mappings; nothing that Cambium writes has 16
LONGEST = 40  # the most digits of a whole number, which is then finite as a float
SHOWN = 80  # the most characters of a value that an error shows

Count = Annotated[int, Field(strict=True, ge=0, le=1 << 62)]
Positive = Annotated[int, Field(strict=True, ge=1, le=1 << 62)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True)]
Object = dict[str, Any]
CLOSED = ConfigDict(extra="forbid")
"""The configuration of a TypedDict whose keys become the arguments of a constructor: no other key may be there."""


def parse(data: bytes, where: Path | str) -> Any:
    """The value of a JSON document. Raises UserError for data that is none.

    JSON is as in RFC 8259, not as in Python: it has no NaN and no infinity, not even spelled 1e999. A value that is
    nested so deeply, or a number so long, that code further on would fail is refused too.
    """
    try:
        value = json.loads(data, parse_constant=_refused, parse_float=_finite, parse_int=_whole)
        _check_depth(value)
        if b"\\ud" in data.lower():  # half a surrogate pair cannot be written to any output
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: damaged, or no JSON: {error}") from error
    return value


def read(path: Path, kind: Any = Any) -> Any:
    """The checked value of a JSON file; raises UserError for one that cannot be read, is no JSON or of another type."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return checked(kind, parse(data, path), path)


def checked(kind: Any, value: Any, where: Path | str) -> Any:
    """Returns the value if it is of the type `kind`, as pydantic understands types; nothing is converted.

    Raises UserError naming the place in the document.
    """
    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
        what = "missing" if problem["type"] == "missing" else f"{_words(problem['msg'])}, not {show(problem['input'])}"
        raise UserError(f"{where}: {one_line(f'{place[:SHOWN]}: ' if place else '')}{what}") from error
    return value


def show(value: Any) -> str:
    """A value as an error shows it: short, and on one line."""
    return _repr.repr(value)[: 2 * SHOWN]


T = TypeVar("T")


def finite(value: T) -> T | None:
    """The same value for JSON, with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}  # type: ignore[return-value]
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]  # type: ignore[return-value]
    return value


def one_line(text: str) -> str:
    """A text from a document as an error shows it, with what cannot be printed escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = SHOWN


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _words(message: str) -> str:
    return message.removeprefix("Input ").removeprefix("Value error, ")


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:SHOWN]} is too large for a number")
    return value


def _whole(text: str) -> int:
    if len(text) > LONGEST:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"lists and mappings in each other, more than {DEEPEST} deep")
        inside = (part for v in level for part in (v.values() if type(v) is dict else v if type(v) is list else ()))
        level = [part for part in inside if type(part) in (dict, list)]
