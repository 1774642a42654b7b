"""LLaMA-2 as transformers' LlamaForCausalLM: the same tensors, names and rotary convention."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growth import Architecture, GrowthError
from pretrain.errors import UserError
from pretrain.families.common.hf.form import Code, HfForm
from pretrain.families.common.hf.values import mapping, positive, positives, whole, wholes
from pretrain.runtime.documents import show

LAYER = "model.layers.{layer}."
ROWS = (
    "model.embed_tokens.weight",
    *(f"{LAYER}self_attn.{p}_proj.weight" for p in "qkvo"),
    *(f"{LAYER}mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
    LAYER + "input_layernorm.weight",
    LAYER + "post_attention_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
)
LONGROPE, FACTORS = "longrope", ("short_factor", "long_factor")
SIZES = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
}


def config(arch: Architecture) -> dict[str, Any]:
    """The keys that follow from the shape and the scalars. Raises UserError for another softmax scale."""
    scale, usual = arch.scalars["softmax_scale"], arch.sizes["head_dim"] ** -0.5
    if not math.isclose(scale, usual, rel_tol=1e-12):
        raise UserError(
            f"transformers' LlamaForCausalLM cannot express this model: its softmax scale is {scale:g}, and theirs is "
            f"always head_dim ** -0.5 = {usual:g}"
        )
    return {
        **{key: arch.sizes[axis] for axis, key in SIZES.items()},
        "num_key_value_heads": arch.sizes["kv_heads"],
        "head_dim": arch.sizes["head_dim"],
        "rms_norm_eps": arch.scalars["norm_eps"],
        "rope_parameters": _rope(arch),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
    }


def _rope(arch: Architecture) -> dict[str, Any]:
    """Plain rotary embeddings; a table of frequencies as LongRoPE with one list of factors for any length, which is
    how transformers spells frequencies that do not follow from theta."""
    theta = {"rope_theta": arch.scalars["rope_theta"]}
    if not arch.rope_frequencies:
        return {**theta, "rope_type": "default"}
    factors = (arch.replace(rope_frequencies=()).frequencies() / arch.frequencies()).tolist()
    same = dict.fromkeys(("factor", "attention_factor"), 1.0)
    return {**theta, "rope_type": LONGROPE, **same, **dict.fromkeys(FACTORS, factors)}


def _is_table(rope: Mapping[str, Any]) -> bool:
    """Whether it is what `_rope` makes of a table of frequencies."""
    factors = [rope.get(key) for key in FACTORS]
    return isinstance(factors[0], list) and factors[0] == factors[1] and rope.get("attention_factor") == 1.0


def architecture(imported: Mapping[str, Any], where: str) -> Architecture:
    """Of a config.json of any version of transformers. Raises UserError naming what cannot be taken over."""
    given = wholes(imported, list(SIZES.values()), where)
    # transformers 5 writes rope_parameters; where the older rope_scaling says anything, it counts instead.
    rope_key = "rope_scaling" if imported.get("rope_scaling") else "rope_parameters"
    rope = mapping(imported, rope_key, where)
    kind = rope.get("rope_type", rope.get("type", "default"))
    table = kind == LONGROPE and _is_table(rope)
    other = {
        "hidden_act": imported.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(imported.get("attention_bias")),
        "mlp_bias": bool(imported.get("mlp_bias")),
        rope_key: kind != "default" and not table,
        "tie_word_embeddings": bool(imported.get("tie_word_embeddings")),
        "quantization_config": bool(imported.get("quantization_config")),
    }
    if any(other.values()):
        odd = ", ".join(f"{key} = {show(imported[key])}" for key, differs in other.items() if differs)
        raise UserError(
            f"{where}: {odd}: Cambium's llama2 has SiLU, no biases, plain rotary embeddings (or a table of "
            "frequencies), an output layer of its own and weights that are not quantized, so it cannot be imported"
        )
    sizes = {axis: given[key] for axis, key in SIZES.items()}
    sizes["kv_heads"] = whole(imported, "num_key_value_heads", sizes["heads"], where)
    sizes["head_dim"] = whole(imported, "head_dim", sizes["hidden"] // sizes["heads"], where)
    eps = positive(imported, "rms_norm_eps", 1e-6, where)
    theta = positive(rope if "rope_theta" in rope else imported, "rope_theta", 10_000.0, where)
    try:
        arch = Architecture("llama2", sizes, {"norm_eps": eps, "rope_theta": theta})
        if not table:
            return arch
        factors = positives(rope, FACTORS[0], where)
        if 2 * len(factors) != sizes["head_dim"]:
            raise UserError(f"{where}: {FACTORS[0]} has {len(factors)} factors and head_dim is {sizes['head_dim']}")
        return arch.replace(rope_frequencies=tuple((arch.frequencies() / factors).tolist()))
    except GrowthError as error:
        raise UserError(f"{where}: {error}") from error


LLAMA = HfForm(
    model_type="llama",
    model_class="LlamaForCausalLM",
    rows=ROWS,
    config=config,
    architecture=architecture,
    repeated=("rotary_emb.inv_freq",),  # old folders have it; it follows from the config
    kept=("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "max_position_embeddings", "use_cache"),
    code=Code(
        file=Path(__file__).with_name("modeling_llama2.py"),
        model_type="cambium_llama2",
        model_class="OrderedLlamaForCausalLM",
        auto={"AutoConfig": "OrderedLlamaConfig", "AutoModelForCausalLM": "OrderedLlamaForCausalLM"},
    ),
)
