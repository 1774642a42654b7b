"""Transformer-XL in Hugging Face's format: transformers has no class for it (any more), so its code goes with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growth import Architecture, GrowthError
from pretrain.errors import UserError
from pretrain.families.common.hf.form import Code, HfForm
from pretrain.families.common.hf.values import positive, wholes
from pretrain.families.transformer_xl.table import TABLE

SIZES = {
    "vocab": "vocab_size",
    "hidden": "d_model",
    "layers": "n_layer",
    "heads": "n_head",
    "head_dim": "d_head",
    "ffn": "d_inner",
    "sinusoid": "d_sinusoid",
}
SCALARS = {"norm_eps": "layer_norm_epsilon", "softmax_scale": "softmax_scale"}
CODE = Code(
    file=Path(__file__).with_name("modeling_transformer_xl.py"),
    model_type="cambium_transformer_xl",
    model_class="TransformerXLLMHeadModel",
    auto={"AutoConfig": "TransformerXLConfig", "AutoModelForCausalLM": "TransformerXLLMHeadModel"},
)


def config(arch: Architecture) -> dict[str, Any]:
    """The keys that follow from the shape and the scalars."""
    scalars = {key: arch.scalars[scalar] for scalar, key in SCALARS.items()}
    return {**{key: arch.sizes[axis] for axis, key in SIZES.items()}, **scalars}


def architecture(imported: Mapping[str, Any], where: str) -> Architecture:
    """Of the config.json of an export. Raises UserError for sizes and scalars that cannot be."""
    sizes = wholes(imported, list(SIZES.values()), where)
    own = TABLE.default_scalars({axis: sizes[key] for axis, key in SIZES.items()})
    scalars = {scalar: positive(imported, key, own[scalar], where) for scalar, key in SCALARS.items()}
    try:
        return Architecture(TABLE.name, {axis: sizes[key] for axis, key in SIZES.items()}, scalars)
    except GrowthError as error:
        raise UserError(f"{where}: {error}") from error


FORM = HfForm(
    model_type=CODE.model_type,
    model_class=CODE.model_class,
    rows=(),
    config=config,
    architecture=architecture,
    kept=("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache", "max_position_embeddings"),
    code=CODE,
)
