"""Convolution Attention for transformers, which has no class for it: every model goes with its code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growth import Architecture, GrowthError
from pretrain.config.levels import kinds, levels_of
from pretrain.errors import UserError
from pretrain.families.common.hf.form import Code, HfForm
from pretrain.families.common.hf.values import positive, wholes
from pretrain.families.convolution_attention.table import TABLE
from pretrain.runtime.documents import show

MODEL_TYPE, MODEL_CLASS = "cambium_convolution_attention", "ConvolutionAttentionForCausalLM"
SIZES = {
    "vocab": "vocab_size",
    "positions": "max_position_embeddings",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
}
SCALARS = {"norm_eps": "rms_norm_eps", "softmax_scale": "softmax_scale"}


def config(arch: Architecture) -> dict[str, Any]:
    """The keys that follow from the shape and the scalars."""
    return {
        **{key: arch.sizes[axis] for axis, key in SIZES.items()},
        **{key: arch.scalars[name] for name, key in SCALARS.items()},
        "levels": list(levels_of(TABLE, arch.kinds)),
        "tie_word_embeddings": False,
    }


def architecture(imported: Mapping[str, Any], where: str) -> Architecture:
    """Of a config.json that an export has. Raises UserError naming what cannot be taken over."""
    sizes = {axis: wholes(imported, [key], where)[key] for axis, key in SIZES.items()}
    scalars = {name: positive(imported, key, 0.0, where) for name, key in SCALARS.items()}
    levels = imported.get("levels")
    if not isinstance(levels, list) or not all(type(blocks) is int and 0 <= blocks <= 1024 for blocks in levels):
        raise UserError(f"{where}: levels = {show(levels)} must be a list of numbers of blocks")
    try:
        of = kinds(TABLE, levels)
        return Architecture(TABLE.name, {**sizes, **TABLE.fixed, "layers": len(of)}, scalars, kinds=of)
    except GrowthError as error:
        raise UserError(f"{where}: {error}") from error


FORM = HfForm(
    model_type=MODEL_TYPE,
    model_class=MODEL_CLASS,
    rows=(),
    config=config,
    architecture=architecture,
    kept=("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range"),
    code=Code(
        file=Path(__file__).with_name("modeling_convolution_attention.py"),
        model_type=MODEL_TYPE,
        model_class=MODEL_CLASS,
        auto={"AutoConfig": "ConvolutionAttentionConfig", "AutoModelForCausalLM": MODEL_CLASS},
    ),
)
