"""The values of a config.json that others wrote, each of its type and in its range, or refused by name."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from pretrain.errors import UserError
from pretrain.runtime import documents
from pretrain.runtime.documents import Count, Number, Positive

Ids = Count | list[Count] | None


class Kept(TypedDict):
    """The keys that say nothing of the shape, and go out again as they came in (see HfForm.kept)."""

    bos_token_id: NotRequired[Ids]
    eos_token_id: NotRequired[Ids]
    pad_token_id: NotRequired[Annotated[int, Field(strict=True, ge=-1)] | None]
    initializer_range: NotRequired[Annotated[Number, Field(ge=0)]]
    use_cache: NotRequired[bool | None]
    max_position_embeddings: NotRequired[Positive]
    attention_dropout: NotRequired[Annotated[Number, Field(ge=0, lt=1)]]
    max_window_layers: NotRequired[Count | None]


class Index(TypedDict):
    """Of model.safetensors.index.json: tensor -> file."""

    weight_map: dict[str, str]


class TokenizerConfig(TypedDict):
    """Of tokenizer_config.json, as far as it is read."""

    do_lower_case: NotRequired[bool | None]


def wholes(config: Mapping[str, Any], keys: Sequence[str], where: str) -> dict[str, int]:
    """Sizes that must be there; raises UserError naming all that are no whole numbers above 0."""
    wrong = [key for key in keys if type(config.get(key)) is not int or config[key] < 1]
    if wrong:
        shown = ", ".join(f"{key} = {documents.show(config[key])}" if key in config else key for key in wrong)
        raise UserError(f"{where}: {shown} must be there, as whole numbers above 0")
    return {key: config[key] for key in keys}


def whole(config: Mapping[str, Any], key: str, default: int, where: str) -> int:
    """A size that may be absent or null."""
    return wholes(config, [key], where)[key] if config.get(key) is not None else default


def positive(config: Mapping[str, Any], key: str, default: float, where: str) -> float:
    """A number above 0 that may be absent, but not null."""
    value = config.get(key, default)
    if type(value) not in (int, float):
        raise UserError(f"{where}: {key} = {documents.show(value)} is no number")
    if not 0 < value < math.inf:
        raise UserError(f"{where}: {key} = {documents.show(value)} must be above 0, and finite")
    return float(value)


def mapping(config: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """A section that may be absent, null or empty."""
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: {key} = {documents.show(value)} is no mapping")
    return value


def positives(config: Mapping[str, Any], key: str, where: str) -> list[float]:
    """A list of numbers above 0."""
    value = config.get(key)
    if not isinstance(value, list):
        raise UserError(f"{where}: {key} = {documents.show(value)} is no list of numbers")
    return [positive({key: item}, key, 0.0, where) for item in value]
