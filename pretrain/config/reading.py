"""Reads a curriculum's YAML: no duplicate keys, defaults merged under every stage, errors that name file and key."""

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

SIZE, DEPTH = 100_000, 50  # the most values with aliases written out, the most levels
_PREFIX = "tag:yaml.org,2002:"
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")  # the kinds that JSON has too: no dates, sets or bytes


class _Loader(yaml.SafeLoader):
    """YAML as a configuration needs it: 1e6 and 3e-4 are numbers (YAML 1.2), and nothing is a date."""

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        """The value of a number, word or null. Raises YAMLError if its text is not one, such as `!!int x`."""
        try:
            value = yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            kind = node.tag.removeprefix(_PREFIX)
            raise yaml.MarkedYAMLError(problem=f"{node.value!r} is no {kind}", problem_mark=node.start_mark) from error
        if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            raise yaml.MarkedYAMLError(problem=f"{value!r} has a character that is none", problem_mark=node.start_mark)
        return value


_Loader.yaml_implicit_resolvers = {  # a copy, since the table of the parent class is shared
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in (f"{_PREFIX}float", f"{_PREFIX}timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    f"{_PREFIX}float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\.inf|\.nan)$", re.IGNORECASE),
    list("-+0123456789."),
)
_Loader.yaml_constructors = {
    f"{_PREFIX}{kind}": (
        yaml.SafeLoader.yaml_constructors[f"{_PREFIX}{kind}"] if kind in ("seq", "map") else _Loader.construct_plain
    )
    for kind in _KINDS
} | {None: yaml.SafeLoader.yaml_constructors[None]}


def parse(text: str) -> Any:
    """The value of a YAML document: mappings with words for keys, lists, words, numbers, booleans and null.

    Raises ValueError, in one line with the place, for what is no YAML, a key that is given twice or is no word, values
    that contain themselves, and documents of more than `SIZE` values.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _measure(node, {}, 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{': '.join(filter(None, (error.context, error.problem)))}{place}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError(f"values lie more than {DEPTH} deep in each other") from None


def _measure(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    """How many values a node stands for with aliases written out. sizes: by id, the number for each node that has been
    measured, and 0 for those that are being measured.

    Raises MarkedYAMLError for keys that are no words or are there twice, and for what is too large or endless.
    """

    def wrong(problem: str, at: yaml.Node) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)

    if id(node) in sizes:
        if not sizes[id(node)]:
            raise wrong("a value contains itself", node)
        return sizes[id(node)]
    if depth > DEPTH:
        raise wrong(f"values lie more than {DEPTH} deep in each other", node)
    sizes[id(node)] = 0
    parts = []
    if isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise wrong("a key is a word, and this is a list or a mapping", key)
            if key.tag == f"{_PREFIX}bool":  # the word `on`, which YAML takes for true
                key.tag = f"{_PREFIX}str"
            if key.tag not in (f"{_PREFIX}str", f"{_PREFIX}merge"):
                raise wrong(f"a key is a word: write {key.value!r} in quotation marks if you mean it", key)
            if key.value in seen:
                raise wrong(f"{key.value!r} was given before, and again here: remove one of them", key)
            seen.add(key.value)
            parts.append(value)
    size = 1 + sum(_measure(part, sizes, depth + 1) for part in parts)
    if size > SIZE:
        raise wrong(f"with its aliases written out, this is more than {SIZE} values", node)
    sizes[id(node)] = size
    return size


def read(path: Path) -> dict[str, Any]:
    """The mapping at the top of a YAML file. Raises UserError when there is none."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a curriculum, such as configs/demo.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except ValueError as error:
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
    lists = stacking if isinstance(stacking, Mapping) and set(stacking) == {"layers", "epochs"} else {}
    layers, epochs = lists.get("layers"), lists.get("epochs")
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
    by_place: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        path, fields = _known_path(kind, item["loc"])
        if item["type"] == "unexpected_keyword_argument":
            known = [*fields, *sections] if len(path) == 1 else fields
            hint = _in_another_section(kind, path) or did_you_mean(str(path[-1]), known)
            message = f"unknown key{hint} (known keys: {', '.join(known)})"
        elif item["type"] == "missing":
            message = "missing"
            while isinstance(path[-1], int):  # the item is missing at the end of a list
                path, message = path[:-1], f"item {path[-1]} is missing"
        else:
            message = f"{item['msg'].removeprefix('Input ')}, not {_describe(item['input'])}"
            if item["type"] == "finite_number" and path[-1] == "clip":
                message += " (0 is no clipping)"
        messages = by_place.setdefault(_place(path, raw, missing=message == "missing"), [])
        if message not in messages:
            messages.append(message)
    lines = [f"{key}: {', or '.join(messages)}" for key, messages in by_place.items()]
    return join_problems(where, lines)


def join_problems(where: str, lines: Sequence[str]) -> str:
    """Makes one message of one or several problems of a file."""
    if len(lines) == 1:
        return f"{where}: {lines[0]}"
    return f"{where}: {len(lines)} errors\n" + "\n".join(f"  {line}" for line in lines)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """', did you mean X?' for the nearest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings, and lists of them, to a single one with keys such as a.b and a.c[0].d."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(flatten(item, f"{prefix}{key}."))
        elif isinstance(item, list) and item and all(isinstance(each, Mapping) for each in item):
            for number, each in enumerate(item):
                flat.update(flatten(each, f"{prefix}{key}[{number}]."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _merge(default: Any, value: Any) -> Any:
    if isinstance(default, Mapping) and isinstance(value, Mapping):
        return {**default, **{key: _merge(default.get(key), item) for key, item in value.items()}}
    return value


def _known_path(kind: type, location: Sequence[int | str]) -> tuple[list[int | str], list[str]]:
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


def _in_another_section(kind: type, path: Sequence[int | str]) -> str:
    """', did you mean SECTION.KEY?' for a section beside that of an unknown key that has it, or nothing."""
    for section in _known_path(kind, path[:-1])[1]:
        place = (*path[:-2], section, path[-1])
        known, fields = _known_path(kind, place)
        if len(known) == len(place) and path[-1] in fields:
            return f", did you mean '{section}.{path[-1]}'?"
    return ""


def _place(path: Sequence[int | str], raw: Any, missing: bool) -> str:
    """The key as the file spells it: in the stage when it stands there, else among the defaults at the top; of a number
    that stands for a section, the section's."""
    if not missing and not _has(raw, path) and not _has(raw, path[2:]) and _has(raw, path[2:-1]):
        path = path[:-1]
    written = _spelled(path)
    if len(path) > 2 and path[0] == "stages":
        default = _spelled(path[2:])
        if missing:
            return f"{written} (or {default} for all stages)" if len(path) > 3 else written
        if not _has(raw, path) and _has(raw, path[2:]):
            return default
    return written


def _spelled(path: Sequence[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


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
    return "nothing" if value is None else f"{value!r:.200}"
