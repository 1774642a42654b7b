"""What a family must say to be read from and written to the checkpoints of Megatron-LM: its arguments there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from growth import Architecture, GrowthError
from pretrain.errors import UserError
from pretrain.families.common.hf.values import positive, whole, wholes

NOTHING = {
    "num_experts": (None, 0),
    "multi_latent_attention": (False, None),
    "mtp_num_layers": (None, 0),
    "qk_layernorm": (False,),
    "add_qkv_bias": (False,),
    "qk_l2_norm": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "apply_layernorm_1p": (False,),
    "layernorm_zero_centered_gamma": (False,),
    "rotary_interleaved": (False,),
    "rotary_percent": (1.0,),
    "rotary_seq_len_interpolation_factor": (None, 1),
    "use_rope_scaling": (False,),
    "window_size": (None,),
    "softmax_type": ("vanilla", None),
    "attention_output_gate": (False,),
    "linear_attention_type": (None,),
    "experimental_attention_variant": (None,),
    "heterogeneous_layers_config_path": (None,),
    "hybrid_override_pattern": (None,),
    "is_hybrid_model": (False,),
}
"""Arguments that a model must leave as they are, with the values that say so; the first is what an absent one means."""

SIZES = {
    "hidden": "hidden_size",
    "layers": "num_layers",
    "heads": "num_attention_heads",
}


@dataclass(frozen=True)
class MegatronForm:
    """fixed: the arguments that tell this family from others, with the values that it has; the first is Megatron's own
    word. sizes: axes that other families may not have -> arguments. scalars: logical scalars -> arguments.
    constants: logical scalars that Megatron-LM has as they are here. grouped: whether query heads share keys, so that
    there is an axis kv_heads."""

    fixed: Mapping[str, tuple[Any, ...]]
    sizes: Mapping[str, str]
    scalars: Mapping[str, str]
    constants: Mapping[str, float] = field(default_factory=dict)
    grouped: bool = False

    def odd(self, args: Mapping[str, Any]) -> list[str]:
        """The arguments that this family cannot have."""
        every = {**NOTHING, **self.fixed}
        return [key for key, values in every.items() if args.get(key, _absent(self, key)) not in values]

    def architecture(self, family: str, args: Mapping[str, Any], where: str) -> Architecture:
        """Of the arguments of a checkpoint, spelled as `spelled` does. Raises UserError naming what is not there."""
        sizes = {axis: wholes(args, [key], where)[key] for axis, key in {**SIZES, **self.sizes}.items()}
        sizes["vocab"] = wholes(args, ["padded_vocab_size"], where)["padded_vocab_size"]
        hidden, heads = sizes["hidden"], sizes["heads"]
        sizes["head_dim"] = whole(args, "kv_channels", hidden // heads, where)
        sizes["ffn"] = whole(args, "ffn_hidden_size", 4 * hidden, where)
        groups = whole(args, "num_query_groups", heads, where) if args.get("group_query_attention") else heads
        if self.grouped:
            sizes["kv_heads"] = groups
        elif groups != heads:
            raise UserError(f"{where}: num_query_groups = {groups}: Cambium's {family} has a key for each query head")
        defaults = {"norm_epsilon": 1e-5, "rotary_base": 10_000.0, "rope_scaling_factor": 8.0}
        scalars = {name: positive(args, key, defaults[key], where) for name, key in self.scalars.items()}
        try:
            return Architecture(family, sizes, {**self.constants, **scalars})
        except GrowthError as error:
            raise UserError(f"{where}: {error}") from error

    def arguments(self, arch: Architecture) -> dict[str, Any]:
        """Those of an architecture. Raises UserError for what Megatron-LM's model cannot be."""
        s, usual = arch.sizes, arch.sizes["head_dim"] ** -0.5
        if arch.mixed or arch.shared or arch.adapters or arch.span or arch.rope_frequencies:
            raise UserError(
                "Megatron-LM has no such model: its layers are all alike, none is shared, none has adapters, its heads "
                "see all there is, and its rotary frequencies follow from rotary_base"
            )
        for name, theirs in {"softmax_scale": usual, **self.constants}.items():
            if not math.isclose(arch.scalars[name], theirs, rel_tol=1e-12):
                raise UserError(
                    f"Megatron-LM has no such model: its {name} is {arch.scalars[name]:g}, and theirs is {theirs:g}"
                )
        groups = s.get("kv_heads", s["heads"])
        return {
            **{key: values[0] for key, values in {**NOTHING, **self.fixed}.items()},
            **{key: s[axis] for axis, key in {**SIZES, **self.sizes}.items()},
            **{key: arch.scalars[name] for name, key in self.scalars.items()},
            "kv_channels": s["head_dim"],
            "ffn_hidden_size": s["ffn"],
            "group_query_attention": groups != s["heads"],
            "num_query_groups": groups,
            "padded_vocab_size": s["vocab"],
        }


def _absent(form: MegatronForm, key: str) -> Any:
    """What an argument that is not there means: Megatron's default."""
    return DEFAULTS[key] if key in DEFAULTS else {**NOTHING, **form.fixed}[key][0]


DEFAULTS = {
    "swiglu": False,
    "normalization": "LayerNorm",
    "position_embedding_type": "learned_absolute",
    "add_bias_linear": True,
    "untie_embeddings_and_output_weights": False,
    "gelu": "tanh",
    "squared_relu": False,
    "quick_geglu": False,
}


def spelled(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as Megatron-LM of today spells them, from those of older versions and of Megatron-DeepSpeed."""
    now = dict(args)
    for new, old in (("norm_epsilon", "layernorm_epsilon"), ("num_query_groups", "num_key_value_heads")):
        if old in now and new not in args:
            now[new] = now[old]
    if "num_key_value_heads" in args and "group_query_attention" not in args:
        now["group_query_attention"] = now["num_query_groups"] != now.get("num_attention_heads")
    norms = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
    if isinstance(word := now.get("normalization"), str):
        now["normalization"] = norms.get(word.lower(), word)
    if now.get("use_rotary_position_embeddings"):
        now["position_embedding_type"] = "rope"
    if "disable_bias_linear" in args and "add_bias_linear" not in args:
        now["add_bias_linear"] = not now["disable_bias_linear"]
    # Megatron's fused gelu with its bias is that with tanh, as is OpenAI's; without fusion it is the exact one.
    fused = now.get("bias_gelu_fusion", True) or now.get("openai_gelu", False)
    now["gelu"] = "tanh" if fused else "exact"
    return now
