"""Reading a curriculum's YAML: no duplicate keys, defaults merged under every stage, errors that name file and key."""

import dataclasses
import difflib
import itertools
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pretrain.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML with two repairs: 1e6 and 3e-4 are numbers (YAML 1.2), and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, yaml.Mark] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    f"{key!r} was given before", seen[key], "and again here: remove one of them", key_node.start_mark
                )
            seen[key] = key_node.start_mark
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {  # a copy: the table of the parent class is shared
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\.inf|\.nan)$", re.IGNORECASE),
    list("-+0123456789."),
)


def read(path: Path) -> dict[str, Any]:
    """The mapping at the top of a YAML file. Raises UserError when there is none."""
    try:
        with path.open(encoding="utf-8") as file:
            value = yaml.load(file, Loader=_Loader)  # a SafeLoader
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a curriculum, such as configs/demo.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: a curriculum is a mapping with the keys name and stages, this is {_describe(value)}")
    return value


def expand_stacking(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`stacking: {layers: [3, 6], epochs: [1, 3]}` as the stages that it stands for (Gong et al., 2019, "Efficient
    training of BERT by progressively stacking"): each trains its epochs and starts as copies of the stage before.

    Raises UserError when it is not two lists of the same length with growing layers, or stands next to `stages`.
    """
    raw = dict(raw)
    if "stacking" not in raw:
        return raw
    stacking = raw.pop("stacking")
    given = stacking if isinstance(stacking, Mapping) and set(stacking) == {"layers", "epochs"} else {}
    layers, epochs = given.get("layers"), given.get("epochs")
    if not (isinstance(layers, list) and isinstance(epochs, list) and layers and len(layers) == len(epochs)):
        raise UserError(
            f"{where}: stacking: give two lists of one length, such as {{layers: [3, 6, 12], epochs: [1, 1, 3]}}, not "
            f"{stacking!r}"
        )
    if "stages" in raw:
        raise UserError(f"{where}: stacking: it stands for stages, and stages are given too; remove one of them")
    if not all(isinstance(n, int) and n > 0 for n in layers) or any(b <= a for a, b in itertools.pairwise(layers)):
        raise UserError(f"{where}: stacking.layers: {layers!r} must be whole numbers that grow from stage to stage")
    raw["stages"] = [
        {
            "name": f"layers-{n}",
            "model": {"layers": n},
            "train": {"epochs": e},
            "grow": {"layers": "stack", "schedule": "restart"},
        }
        for n, e in zip(layers, epochs, strict=True)
    ]
    return raw


def merge_defaults(raw: Mapping[str, Any], sections: Sequence[str]) -> dict[str, Any]:
    """The document with its top-level `sections` and seed merged under every entry of `stages`."""
    merged = {key: value for key, value in raw.items() if key not in sections}
    stages = raw.get("stages")
    if isinstance(stages, list):
        defaults = {section: raw.get(section, {}) for section in sections}
        defaults["seed"] = raw.get("seed", 0)
        merged["stages"] = [_merge(defaults, stage) if isinstance(stage, Mapping) else stage for stage in stages]
    return merged


def explain(error: ValidationError, kind: type, where: str, raw: Any, sections: Sequence[str] = ()) -> str:
    """All errors of a validation, one line for each key, at the place in the file where its value stands.

    `sections` are the keys known at the top besides those of `kind`.
    """
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        path, fields = _known_path(kind, item["loc"])
        if item["type"] == "unexpected_keyword_argument":
            known = [*fields, *sections] if len(path) == 1 else fields
            message = f"unknown key{did_you_mean(str(path[-1]), known)} (known keys: {', '.join(known)})"
        elif item["type"] == "missing":
            message = "missing"
            while isinstance(path[-1], int):  # an item of a list that is too short
                path, message = path[:-1], f"item {path[-1]} is missing"
        else:
            message = f"{item['msg'].removeprefix('Input ')}, not {_describe(item['input'])}"
        messages = found.setdefault(_place(path, raw, missing=message == "missing"), [])
        if message not in messages:
            messages.append(message)
    lines = [f"{key}: {', or '.join(messages)}" for key, messages in found.items()]
    return join_problems(where, lines)


def join_problems(where: str, lines: Sequence[str]) -> str:
    """One message for one or several problems of a file."""
    if len(lines) == 1:
        return f"{where}: {lines[0]}"
    return f"{where}: {len(lines)} errors\n" + "\n".join(f"  {line}" for line in lines)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """', did you mean X?' for the nearest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _merge(default: Any, value: Any) -> Any:
    if isinstance(default, Mapping) and isinstance(value, Mapping):
        return {**default, **{key: _merge(default.get(key), item) for key, item in value.items()}}
    return value


def _known_path(kind: type, location: tuple[int | str, ...]) -> tuple[list[int | str], list[str]]:
    """The part of pydantic's location that names keys and list indices, and the field names next to its last key.

    What follows a union's tag ("tuple[int, ...]") is about one reading of the value, not a place in the file.
    """
    path: list[int | str] = []
    fields: list[str] = []
    current: Any = kind
    for part in location:
        if isinstance(part, int):
            current = typing.get_args(current)[0] if typing.get_origin(current) is tuple else None
            path.append(part)
        elif dataclasses.is_dataclass(current):
            fields = [item.name for item in dataclasses.fields(current)]
            current = typing.get_type_hints(current).get(part)
            path.append(part)
        else:
            break
        if typing.get_origin(current) in (typing.Union, types.UnionType):
            break
    return path, fields


def _place(path: Sequence[int | str], raw: Any, missing: bool) -> str:
    """The key as the file spells it: in the stage when it stands there, else among the defaults at the top."""
    written = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if len(path) > 2 and path[0] == "stages":
        default = ".".join(str(part) for part in path[2:])
        if missing:
            return f"{written} (or {default} for all stages)" if len(path) > 3 else written
        if not _has(raw, path) and _has(raw, path[2:]):
            return default
    return written


def _has(value: Any, path: Sequence[int | str]) -> bool:
    for part in path:
        if isinstance(part, int):
            if not isinstance(value, list) or part >= len(value):
                return False
        elif not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    return "nothing" if value is None else repr(value)
