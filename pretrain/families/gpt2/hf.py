"""GPT-2 as transformers' GPT2LMHeadModel: queries, keys and values are one matrix there, and linears are [in, out]."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growth import Architecture
from pretrain.families.common.hf.form import Code, HfForm
from pretrain.families.common.hf.stored import Stored
from pretrain.families.common.hf.values import positive, whole, wholes
from pretrain.families.common.layernorm_bias.hf import architecture_of, sizes_of

LAYER = "transformer.h.{layer}."
PARTS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
ROWS = (
    "transformer.wte.weight",
    "transformer.wpe.weight",
    *(f"{LAYER}{part}.{kind}" for part in PARTS for kind in ("weight", "bias")),
    "transformer.ln_f.weight",
    "transformer.ln_f.bias",
)
SIZES = {"vocab": "vocab_size", "positions": "n_positions", "hidden": "n_embd", "layers": "n_layer", "heads": "n_head"}


def stored(name: str) -> Stored:
    """How a tensor of the file is made."""
    parts = tuple(name.replace("c_attn", f"{x}_proj") for x in "qkv") if "c_attn" in name else (name,)
    return Stored(parts, turned=name.endswith(".weight") and ".c_" in name)


def config(arch: Architecture) -> dict[str, Any]:
    """The keys that follow from the shape and the scalars. Raises UserError for what they cannot say."""
    return {
        **sizes_of(arch, "GPT2LMHeadModel", SIZES),
        "n_inner": arch.sizes["ffn"],
        "layer_norm_epsilon": arch.scalars["norm_eps"],
        "activation_function": "gelu_new",
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
    }


def architecture(imported: Mapping[str, Any], where: str) -> Architecture:
    """Of a config.json of any version of transformers. Raises UserError naming what cannot be taken over."""
    fixed = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
        "quantization_config": (None,),
    }
    ffn = whole(imported, "n_inner", 4 * wholes(imported, ["n_embd"], where)["n_embd"], where)
    eps = positive(imported, "layer_norm_epsilon", 1e-5, where)
    return architecture_of("gpt2", imported, where, SIZES, eps, fixed, {"ffn": ffn})


FORM = HfForm(
    model_type="gpt2",
    model_class="GPT2LMHeadModel",
    rows=ROWS,
    config=config,
    architecture=architecture,
    kept=("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache"),
    stored=stored,
    repeated=(".attn.bias", ".attn.masked_bias"),
    tied={"lm_head.weight": "transformer.wte.weight"},
    base="transformer.",
    code=Code(
        file=Path(__file__).with_name("modeling_gpt2.py"),
        model_type="cambium_gpt2",
        model_class="OrderedGPT2LMHeadModel",
        auto={"AutoConfig": "OrderedGPT2Config", "AutoModelForCausalLM": "OrderedGPT2LMHeadModel"},
        says=("order", "span"),
    ),
)
