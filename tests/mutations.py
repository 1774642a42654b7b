"""Documents as damage and strangers leave them: valid ones, changed at random.

A mutation changes what is in a JSON document (types, nulls, numbers, paths, keys, order) or its bytes (cut off,
flipped, repeated). The same seed makes the same mutations.
"""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from growth import GrowthError
from pretrain.errors import UserError

RAW = "\0raw"  # a string that begins so is put into the text as it is, without its quotes
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": None},
    "",
    "x",
    "0",
    " ",
    0,
    1,
    -1,
    2,
    7,
    0.5,
    -0.0,
    1e-320,
    1e308,
    2**31,
    2**53 + 1,
    2**63,
    10**30,
    f"{RAW}NaN",
    f"{RAW}Infinity",
    f"{RAW}-Infinity",
    f"{RAW}1e999",
    f"{RAW}{'9' * 5000}",
    f"{RAW}{'[' * 40}{']' * 40}",
    f"{RAW}{'[' * 3000}{']' * 3000}",
    f"{RAW}{'{' + chr(34) + 'a' + chr(34) + ':'}" * 200 + "1" + "}" * 200,
    f'{RAW}"\\ud800"',
    "../../escaped",
    "/etc/passwd",
    "a\0b",
    "two\nlines",
    "\\",
    "x" * 300,
    "weight-00000.safetensors",
)


def of_json(document: Any, seed: int) -> bytes:
    """One mutation of a JSON document."""
    chance = random.Random(seed)
    if chance.random() < 0.15:
        return of_bytes(json.dumps(document).encode(), seed)
    changed = copy.deepcopy(document)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        changed = _changed(changed, chance)
    return _text(changed).encode(errors="surrogatepass")


def of_bytes(data: bytes, seed: int) -> bytes:
    """One mutation of any file."""
    chance = random.Random(seed)
    at, to = (chance.randrange(len(data) + 1) for _ in range(2))
    return chance.choice(
        (
            lambda: data[:at],
            lambda: data[at:],
            lambda: b"",
            lambda: data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :],
            lambda: data[:at] + bytes(chance.randrange(256) for _ in range(8)) + data[at + 8 :],
            lambda: data[:at] + b"\xff" * 8 + data[at + 8 :],
            lambda: data[:at] + b"\0" * 8 + data[at + 8 :],
            lambda: data[:at] + data[to:],
            lambda: data[:at] + data[min(at, to) : max(at, to)] + data[at:],
        )
    )()


def _changed(document: Any, chance: random.Random) -> Any:
    place, other = _place(document, chance), _place(document, chance)
    if place is None or other is None:
        return _any(chance)
    (parent, key), (other_parent, other_key) = place, other
    value = parent[key]

    def put(new: Any) -> None:
        parent[key] = new

    def rename() -> None:
        if isinstance(parent, dict):
            parent[chance.choice(("x", "", "../x", *map(str, VALUES[:4])))] = parent.pop(key)
        else:
            parent.reverse()

    def add() -> None:
        if isinstance(value, dict):
            value[chance.choice(("unknown", "", "layers", "exp_avg"))] = _any(chance)
        elif isinstance(value, list):
            value.insert(chance.randrange(len(value) + 1), copy.deepcopy(chance.choice([*value, _any(chance)])))
        else:
            put([value])

    def drop() -> None:
        del parent[key]

    def number() -> None:
        if isinstance(value, (int, float)):
            put(chance.choice((value + 1, value - 1, -value, value * 2, float(value), str(value), value * 10**6)))
        else:
            put(_any(chance))

    def twice() -> None:
        if isinstance(parent, dict):
            put(f"{RAW}{_text(value)},{json.dumps(key)}:{_text(_any(chance))}")
        else:
            parent.append(copy.deepcopy(value))

    def swap() -> None:
        put(copy.deepcopy(other_parent[other_key]))

    chance.choice((lambda: put(_any(chance)), number, drop, rename, add, twice, swap))()
    return document


def _any(chance: random.Random) -> Any:
    """A value of its own: it may be changed in turn."""
    return copy.deepcopy(chance.choice(VALUES))


def _place(document: Any, chance: random.Random) -> tuple[Any, Any] | None:
    """(container, key) of something in a document: by a walk from its top, so that what it is about is met as often as
    the many numbers deep in it."""
    place, value = None, document
    while isinstance(value, (dict, list)) and value and (place is None or chance.random() < 0.75):
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        place, value = (value, key), value[key]
    return place


def _text(value: Any) -> str:
    """JSON, but for the strings that are raw."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, str) and value.startswith(RAW):
        return value.removeprefix(RAW)
    return json.dumps(value)


def refused(read: Callable[[], object], seed: int) -> bool:
    """Whether a reader refuses what it reads, as it should: with one line that says what is wrong.

    Any other exception, and a message of several lines or with what a terminal would take as a command, fails.
    """
    try:
        read()
    except (UserError, GrowthError) as error:
        message = str(error)
        assert message.isprintable(), f"seed {seed}: {message!r}"
        assert message.strip(), f"seed {seed}: an empty message"
        return True
    except BaseException as error:  # a panic of code in Rust is no Exception
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    return False


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """The files below a folder, with their sizes and times."""
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}
