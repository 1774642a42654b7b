"""What the config.json of a model that goes with its code says beside the keys of transformers' own class."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from growth import Architecture, GrowthError
from growth.span import Span
from pretrain.config.orders import KINDS
from pretrain.errors import UserError
from pretrain.runtime import documents


def applied(says: Mapping[str, Any], usual: Architecture, where: str) -> Architecture:
    """The model of a config.json whose other keys make the usual one. says: those that a Code (see
    pretrain.families.common.hf.form) can, as far as they are there. Raises UserError for an order or for spans that the
    model cannot have, and where there is neither."""
    arch, span = usual, says.get("span")
    if says.get("order") or not span:
        arch = _ordered(arch, says.get("order"), where)
    return _with_spans(arch, span, where) if span else arch


def _ordered(arch: Architecture, order: Any, where: str) -> Architecture:
    if not isinstance(order, str) or len(order) != arch.layers or not set(order) <= set(KINDS):
        raise UserError(
            f"{where}: order = {documents.show(order)} must be a word of s and f, with a letter for each of the "
            f"{arch.layers} layers"
        )
    return arch.replace(kinds=tuple(KINDS[letter] for letter in order))


def _with_spans(arch: Architecture, span: Any, where: str) -> Architecture:
    if not isinstance(span, dict) or span.keys() != {"max", "ramp"}:
        raise UserError(f"{where}: span = {documents.show(span)} must have max and ramp, in tokens, and nothing else")
    try:
        return replace(arch, span=Span.from_json(span))
    except GrowthError as error:
        raise UserError(f"{where}: span: {error}") from error
